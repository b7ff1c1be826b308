"""Results and requests as models: the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Box = Field(description="Left, top, right, bottom in pixels of the upright picture.")
_DATA_URL = "As a data URL: data:image/...;base64,..."


class ActivationMap(BaseModel):
    """Where in a face the network saw its leading label."""

    label: str = Field(examples=["happy"])
    corners: list[list[float]] = Field(
        description="x, y in pixels of the picture: upper left, upper right, lower right, lower left."
    )
    png: str = Field(description=f"The map, transparent where it is cold. {_DATA_URL}")


class Quality(BaseModel):
    """What speaks for or against a face."""

    model_config = {"extra": "allow"}


class FaceModel(BaseModel):
    """A face and its expression."""

    model_config = {"extra": "allow"}

    box: list[float] = Box
    score: float = Field(description="How sure the detector is, 0..1.")
    landmarks: dict[str, list[float]] | None = Field(description="x, y by name; null if unknown.")
    quality: Quality | None
    label: str = Field(description="The most probable label, or uncertain.", examples=["happy"])
    confidence: float = Field(description="The largest probability, calibrated.")
    probabilities: dict[str, float] = Field(description="Probability of every label; they sum to one.")
    activation_map: ActivationMap | None = None


class PhotoModel(BaseModel):
    """A photo and its faces; as `ferkit predict --format json` prints it."""

    source: str | None = Field(description="The client's name of the photo, if it has one.")
    width: int
    height: int
    taxonomy: str = Field(examples=["basic"])
    faces: list[FaceModel] = Field(description="The surest first; empty if there is none.")
    annotated: str | None = Field(None, description=f"The photo with the faces drawn in. {_DATA_URL}")


class UnreadablePhoto(BaseModel):
    """A photo, among others, that could not be read."""

    source: str | None
    error: str


class JobModel(BaseModel):
    """A job on a clip."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    name: str | None = Field(description="The client's name of the clip, if it has one.")
    created: float = Field(description="Seconds since 1970.")
    started: float | None
    finished: float | None
    expires: float | None = Field(description="When the job and its results are removed.")
    attempts: int
    frames: int = Field(description="Frames that are done.")
    share: float | None = Field(description="Part of the clip that is done, 0..1; null if unknown.")
    error: str | None
    summary: dict[str, Any] | None = Field(description="As `ferkit video --json` prints it.")
    results: dict[str, str] = Field(description="Paths of the results: jsonl, csv, timeline, annotated.")


class TaxonomyModel(BaseModel):
    """A taxonomy of a model."""

    id: str
    labels: list[str]
    activation_maps: bool


class ModelModel(BaseModel):
    """A model."""

    name: str
    architecture: str
    parameters: int
    input_size: int
    default_taxonomy: str
    taxonomies: list[TaxonomyModel]


class LimitsModel(BaseModel):
    """Limits that a client can mind before it sends."""

    body_mib: float
    pixels: int
    photos: int
    clip_mib: float
    clip_seconds: float
    frame_mib: float
    frame_pixels: int
    job_hours: float


class ModelsModel(BaseModel):
    """Models, detector, palette and limits."""

    models: list[ModelModel]
    detector: str
    palette: dict[str, str] = Field(description="Colour of every label, #rrggbb.")
    limits: LimitsModel
    version: str


class HealthModel(BaseModel):
    """State of the server."""

    status: Literal["ok", "busy"]


PHOTO_EXAMPLE = [
    {
        "source": "astronaut.jpg",
        "width": 512,
        "height": 512,
        "taxonomy": "basic",
        "faces": [
            {
                "box": [182.1, 58.3, 270.2, 178.0],
                "score": 0.93,
                "landmarks": {"left_eye": [205.0, 104.1], "right_eye": [245.7, 103.2]},
                "quality": {"size": 119.7, "sharpness": 0.6, "flags": []},
                "label": "happy",
                "confidence": 0.99,
                "probabilities": {"neutral": 0.01, "happy": 0.99},
            }
        ],
    }
]
"""What a photo with one face gives."""

JOB_EXAMPLE = {
    "id": "0f8fad5bd9cb469fa16570867728950e",
    "state": "running",
    "name": "clip.mp4",
    "created": 1_760_000_000.0,
    "started": 1_760_000_001.2,
    "finished": None,
    "expires": None,
    "attempts": 1,
    "frames": 120,
    "share": 0.4,
    "error": None,
    "summary": None,
    "results": {},
}
"""A job that runs."""
