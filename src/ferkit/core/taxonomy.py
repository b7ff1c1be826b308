"""Taxonomies: ordered sets of emotion labels, and the map from FER+ to FER2013."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ferkit.core.errors import TaxonomyError


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """An ordered set of emotion labels.

    Args:
        id: Short name, also the name of a model's output: letters, digits, ``_`` and ``-`` only.
        labels: Label k is column k of a probability array.

    Raises:
        TaxonomyError: If the id is invalid, or the labels are fewer than two, empty or repeated.
    """

    id: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Validate the id and the labels."""
        if not self.id or not self.id.replace("_", "").replace("-", "").isalnum():
            raise TaxonomyError(
                f"a taxonomy's id must consist of letters, digits, '_' and '-'. Received: {self.id!r}"
            )
        if len(self.labels) < 2:
            raise TaxonomyError(
                f"taxonomy {self.id!r} needs at least two labels. Received: {list(self.labels)}"
            )
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise TaxonomyError(
                f"labels of {self.id!r} must be distinct and not empty. Received: {list(self.labels)}"
            )

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self.labels)

    def index(self, label: str) -> int:
        """Return the column of ``label``.

        Raises:
            TaxonomyError: If the taxonomy has no such label.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise TaxonomyError(
                f"taxonomy {self.id!r} has no label {label!r}; it has {', '.join(self.labels)}"
            ) from None


FER2013 = Taxonomy("fer2013", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"))
"""The order of the ``emotion`` column (Goodfellow et al. 2013)."""

FERPLUS = Taxonomy(
    "ferplus",
    ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
)
"""The order of the vote columns (Barsoum et al. 2016), without ``unknown`` and ``NF``."""

FERPLUS_TO_FER2013: Mapping[str, str | None] = MappingProxyType(
    {
        "neutral": "neutral",
        "happiness": "happy",
        "surprise": "surprise",
        "sadness": "sad",
        "anger": "angry",
        "disgust": "disgust",
        "fear": "fear",
        "contempt": None,
    }
)
"""The FER2013 label of each FER+ label; FER2013 has no contempt."""

KNOWN: Mapping[str, Taxonomy] = MappingProxyType({t.id: t for t in (FER2013, FERPLUS)})


def get_taxonomy(taxonomy_id: str) -> Taxonomy:
    """Return a known taxonomy by its id.

    Raises:
        TaxonomyError: If there is no such taxonomy.
    """
    try:
        return KNOWN[taxonomy_id]
    except KeyError:
        raise TaxonomyError(f"unknown taxonomy {taxonomy_id!r}; known are {', '.join(KNOWN)}") from None
