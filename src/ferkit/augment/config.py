"""The parameters of augmentation, and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AugmentConfig(BaseModel):
    """The parameters of augmentation; the defaults change nothing.

    Lengths are shares of the image's side, angles are degrees, gray values lie in 0..255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mirror: float = Field(0.0, ge=0, le=1, description="probability of left-right")
    upside_down: float = Field(0.0, ge=0, le=1, description="probability of top-bottom")
    rotation: float = Field(0.0, ge=0, le=180, description="uniform in +- degrees")
    shift: float = Field(0.0, ge=0, le=0.5, description="uniform in +- share of the side")
    zoom: tuple[float, float] = Field((1.0, 1.0), description="log-uniform; above 1 enlarges")
    stretch: float = Field(0.0, ge=0, le=0.5, description="aspect ratio within 1 +- stretch")
    interpolation: Literal["bilinear", "cubic"] = Field(
        "bilinear", description="of rotated, zoomed or stretched faces; cubic is sharper"
    )
    brightness: float = Field(0.0, ge=0, le=1, description="added: uniform in +- share of 255")
    contrast: float = Field(0.0, ge=0, lt=1, description="factor about the image's mean, 1 +-")
    gamma: float = Field(
        0.0, ge=0, lt=5, description="exponent of the gray values: log-uniform, 1 to 1 + gamma"
    )
    low_light: float = Field(
        0.0, ge=0, le=1, description="probability of a fifth to half the light, with noise"
    )
    yaw: float = Field(0.0, ge=0, le=60, description="head turned on a cylinder: uniform in +- degrees")
    glasses: float = Field(0.0, ge=0, le=1, description="probability of drawn dark glasses")
    mask: float = Field(0.0, ge=0, le=1, description="probability of a drawn mask over mouth and nose")
    downscale: float = Field(0.0, ge=0, le=1, description="probability of shrinking and enlarging again")
    downscale_to: tuple[float, ...] = Field(
        (0.75, 0.5, 0.375), min_length=1, description="shares of the side to shrink to, equally likely"
    )
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = Field((0.3, 1.2), description="uniform, in pixels of a face of 48")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of JPEG compression")
    jpeg_quality: tuple[float, float] = Field((10.0, 60.0), description="uniform")
    erasing: float = Field(0.0, ge=0, le=1, description="probability of one erased rectangle")
    erasing_area: tuple[float, float] = Field((0.02, 0.2), description="share of the image")
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta distribution; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of the Beta distribution; 0 is off")
    mix_probability: float = Field(
        1.0, ge=0, le=1, description="share of images mixed; halved where both are on"
    )

    @model_validator(mode="after")
    def _ranges(self) -> AugmentConfig:
        low, high = self.zoom
        if not 0.2 <= low <= high <= 5:
            raise ValueError(f"zoom must be 0.2 <= low <= high <= 5, not {list(self.zoom)}")
        low, high = self.erasing_area
        if not 0 < low <= high < 1:
            raise ValueError(f"erasing_area must be 0 < low <= high < 1, not {list(self.erasing_area)}")
        if any(not 0.1 <= share < 1 for share in self.downscale_to):
            raise ValueError(f"downscale_to must lie in 0.1 <= share < 1, not {list(self.downscale_to)}")
        low, high = self.blur_sigma
        if not 0 < low <= high <= 3:
            raise ValueError(f"blur_sigma must be 0 < low <= high <= 3, not {list(self.blur_sigma)}")
        low, high = self.jpeg_quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"jpeg_quality must be 1 <= low <= high <= 100, not {list(self.jpeg_quality)}")
        return self

    @property
    def moves(self) -> bool:
        """Whether faces are transformed geometrically."""
        return bool(
            self.mirror
            or self.upside_down
            or self.rotation
            or self.shift
            or self.stretch
            or self.zoom != (1.0, 1.0)
        )


_STRONG: dict[str, Any] = {
    "mirror": 0.5,
    "rotation": 15.0,
    "shift": 0.1,
    "zoom": (0.83, 1.25),
    "stretch": 0.08,
    "brightness": 0.2,
    "contrast": 0.3,
    "erasing": 0.5,
    "mixup": 0.2,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # The student project also copied rare classes, which is `data.balance = "copies"` of a recipe.
    "student": {"mirror": 0.5, "upside_down": 0.5},
    "mirror": {"mirror": 0.5},
    "modern": {
        "mirror": 0.5,
        "rotation": 12.0,
        "shift": 0.083,
        "zoom": (0.87, 1.2),
        "brightness": 0.15,
        "contrast": 0.25,
    },
    "strong": _STRONG,
    "photos": {
        **_STRONG,
        "interpolation": "cubic",
        "erasing": 0.25,
        "gamma": 0.6,
        "low_light": 0.1,
        "yaw": 30.0,
        "glasses": 0.08,
        "mask": 0.06,
        "downscale": 0.25,
        "blur": 0.2,
        "jpeg": 0.25,
    },
}
PRESETS: Mapping[str, AugmentConfig] = MappingProxyType(
    {name: AugmentConfig.model_validate(values) for name, values in _PRESETS.items()}
)
"""Named augmentations; ``student`` is the student project's, ``photos`` is for photos of any quality."""
