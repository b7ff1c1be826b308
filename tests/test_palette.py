"""The palette: one colour for an emotion in every label set, distinguishable under colour blindness."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from ferkit.core.palette import EMOTIONS, UNCERTAIN, palette
from ferkit.core.taxonomy import BASIC, FER2013, FERPLUS

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0; for linear RGB.
SIMULATIONS = {
    "normal": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "protanopia": [
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ],
    "deuteranopia": [
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ],
    "tritanopia": [
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ],
}
# Ottosson 2020, https://bottosson.github.io/posts/oklab/
TO_LMS = [
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
]
TO_OKLAB = [
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
]


def linear(rgb: tuple[int, int, int]) -> NDArray[np.float64]:
    share = np.array(rgb) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array(TO_OKLAB) @ np.cbrt(np.array(TO_LMS) @ rgb)


@pytest.mark.parametrize("name", SIMULATIONS)
def test_any_two_emotions_differ_under_colour_blindness(name: str) -> None:
    seen = {
        emotion: oklab(np.clip(np.array(SIMULATIONS[name]) @ linear(colour.rgb), 0, 1))
        for emotion, colour in EMOTIONS.items()
    }
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.115, (one, other)


def test_an_emotion_has_one_colour_in_every_label_set() -> None:
    fer2013, ferplus = palette(FER2013.labels), palette(FERPLUS.labels)
    assert palette(BASIC.labels) == fer2013
    pairs = {"angry": "anger", "happy": "happiness", "sad": "sadness", "fear": "fear", "neutral": "neutral"}
    for one, other in pairs.items():
        assert fer2013[one] == ferplus[other] == EMOTIONS[other]
    assert len(set(fer2013.values())) == 7
    assert len(set(ferplus.values())) == 8
    assert UNCERTAIN not in {*fer2013.values(), *ferplus.values()}


def test_other_labels_have_their_own_colours() -> None:
    colours = palette(["happy", "joy", "boredom", "pain"])
    assert colours["happy"] == EMOTIONS["happiness"]
    assert len(set(colours.values())) == 4
    assert palette(["pain"])["pain"] not in EMOTIONS.values()
    assert len(palette(map(str, range(20)))) == 20


def test_emotions_have_their_colours_under_other_names() -> None:
    colours = palette(["Angry", "fearful", "joie", "yawn"])
    assert [colours[label] for label in ("Angry", "fearful", "joie")] == [
        EMOTIONS[emotion] for emotion in ("anger", "fear", "happiness")
    ]


def test_a_colour_has_hex_and_rgb_values() -> None:
    assert EMOTIONS["anger"].hex == "#cc2f3b"
    assert EMOTIONS["anger"].rgb == (0xCC, 0x2F, 0x3B)
