"""Taxonomies: ordered sets of emotion labels, the map from FER+ to FER2013, and other names of emotions."""

from __future__ import annotations

import re
import unicodedata
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

BASIC = Taxonomy("basic", ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry"))
"""The six basic emotions and neutral: the output that joins a network's FER2013 and FER+ heads."""

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

# Names of the FER+ emotions without accents: in other datasets, then in German, French, Spanish, Portuguese
# and Italian.
_WORDS = {
    "neutral": "neutral normal none natural neutre neutro neutra neutrale",
    "happiness": "happiness happy joy smile freude glucklich gluecklich frohlich joie joyeux heureux content "
    "alegria alegre felicidad feliz felicidade felicita felice gioia",
    "surprise": "surprise surprised surprising uberraschung uberrascht ueberraschung ueberrascht surpris "
    "sorpresa sorprendido surpresa surpreso sorpreso",
    "sadness": "sadness sad unhappy trauer traurig traurigkeit tristesse triste tristeza tristezza",
    "anger": "anger angry mad wut wutend wuetend arger aerger verargert zorn zornig colere encolere fache "
    "enojo enojado enfado enfadado ira raiva zangado rabbia arrabbiato",
    "disgust": "disgust disgusted ekel angeekelt geekelt degout degoute asco disgusto disgustado nojo "
    "disgustato",
    "fear": "fear fearful afraid scared angst angstlich aengstlich furcht peur apeure effraye miedo temor "
    "asustado medo assustado paura spaventato impaurito",
    "contempt": "contempt contemptuous verachtung verachtlich mepris meprisant desprecio desprezo disprezzo",
}
_EMOTIONS = {word: emotion for emotion, words in _WORDS.items() for word in words.split()}

KNOWN: Mapping[str, Taxonomy] = MappingProxyType({t.id: t for t in (FER2013, FERPLUS)})
"""The taxonomies of data sets. :data:`BASIC` has the labels of FER2013, and is an output of models only."""


def get_taxonomy(taxonomy_id: str) -> Taxonomy:
    """Return a known taxonomy by its id.

    Raises:
        TaxonomyError: If there is no such taxonomy.
    """
    try:
        return KNOWN[taxonomy_id]
    except KeyError:
        raise TaxonomyError(f"unknown taxonomy {taxonomy_id!r}; known are {', '.join(KNOWN)}") from None


def emotion_of(name: str) -> str | None:
    """Return the FER+ label that a name means, or None.

    Example:
        >>> emotion_of("Fearful"), emotion_of("Überraschung"), emotion_of("03_disgusted"), emotion_of("yawn")
        ('fear', 'surprise', 'disgust', None)
    """
    plain = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return _EMOTIONS.get(re.sub(r"^[\d\s._-]+|[\s._-]+", "", plain))
