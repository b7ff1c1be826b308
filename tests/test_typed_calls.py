"""Calls as a user's own typed code makes them: mypy looks at this file, and each of them works, too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import numpy as np
from PIL import Image

from ferkit import Photo, Recognizer
from ferkit.core.images import write_image

if TYPE_CHECKING:
    from ferkit.core.images import ImageSource

GRAY = np.zeros((48, 48, 3), np.uint8)


def test_a_list_of_one_kind_of_photo_is_a_list_of_photos_to_mypy_too(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GRAY)
    recognizer = Recognizer(detector="none")
    names: list[str] = [str(tmp_path / "a.png")]
    paths = sorted(tmp_path.glob("*.png"))
    either: list[str | Path] = [*names, *paths]
    several: list[ImageSource] = [*names, *paths, GRAY]
    assert_type(recognizer.predict(names), list[Photo])
    assert_type(recognizer.predict(paths), list[Photo])
    assert_type(recognizer.predict(tuple(names)), list[Photo])
    assert_type(recognizer.predict(either), list[Photo])
    assert_type(recognizer.predict(several), list[Photo])
    assert_type(recognizer.predict([names[0], paths[0].read_bytes()]), list[Photo])
    assert_type(recognizer.predict((names[0], paths[0].read_bytes(), GRAY)), list[Photo])
    assert_type(recognizer.predict([]), list[Photo])
    assert len(recognizer.predict(several)) == 3


def test_one_photo_of_any_kind_is_a_photo_to_mypy_too(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GRAY)
    recognizer = Recognizer(detector="none")
    photo = assert_type(recognizer.predict(str(tmp_path / "a.png")), Photo)
    assert_type(recognizer.predict(tmp_path / "a.png"), Photo)
    assert_type(recognizer.predict((tmp_path / "a.png").read_bytes()), Photo)
    assert_type(recognizer.predict(GRAY), Photo)
    assert_type(recognizer.predict(Image.fromarray(GRAY)), Photo)
    assert_type(recognizer.predict(io.BytesIO((tmp_path / "a.png").read_bytes())), Photo)
    with (tmp_path / "a.png").open("rb") as stream:
        assert_type(recognizer.predict(stream), Photo)
    assert len(photo.faces) == 1
