"""One colour for each emotion, the same in every label set: for pictures, plots, tables and pages.

The colours can be distinguished under protanopia, deuteranopia and tritanopia as well: in the simulations of
Machado et al. (2009), any two differ by at least 0.115 in OKLab.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ferkit.core.taxonomy import emotion_of


class Colour(NamedTuple):
    """A colour."""

    hex: str  # ``#rrggbb``, as CSS, Matplotlib and Rich take it
    terminal: int  # index of a similar colour among the 256 of a terminal

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0..255."""
        return int(self.hex[1:3], 16), int(self.hex[3:5], 16), int(self.hex[5:7], 16)


EMOTIONS = {
    "anger": Colour("#cc2f3b", 160),
    "disgust": Colour("#66cf90", 78),
    "fear": Colour("#5a12a8", 55),
    "happiness": Colour("#fbdf2a", 220),
    "sadness": Colour("#3e70c4", 26),
    "surprise": Colour("#e67508", 208),
    "neutral": Colour("#8e959d", 246),
    "contempt": Colour("#683006", 94),
}
"""The colours by emotion, under the names of FER+."""

UNCERTAIN = Colour("#4d5157", 239)
"""The colour of faces without a label: their largest probability is too small."""

_OTHERS = (
    Colour("#f2a0c8", 218),
    Colour("#17a3a3", 37),
    Colour("#b9d53f", 149),
    Colour("#9ad4f5", 117),
    Colour("#8c1d5a", 89),
)  # of labels that are not among the emotions


def palette(labels: Iterable[str]) -> dict[str, Colour]:
    """Return the colour of each label of a label set.

    A label that is not an emotion, or an emotion that an earlier label has already, gets a further colour;
    there are five of them, which then repeat.

    Example:
        >>> palette(["happy", "boredom"])["happy"].hex
        '#fbdf2a'
    """
    colours: dict[str, Colour] = {}
    others = 0
    for label in labels:
        emotion = emotion_of(label)
        colour = None if emotion is None else EMOTIONS[emotion]
        if colour is None or colour in colours.values():
            colour = _OTHERS[others % len(_OTHERS)]
            others += 1
        colours[label] = colour
    return colours
