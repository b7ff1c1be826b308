"""Annotated copies: what they are called beside what is there already, and how they are known again."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ferkit.core.images import WRITABLE, encode_image, load_image
from ferkit.recognize.drawing import AnnotatedNames, sign, signature


def test_annotated_pictures_take_no_name_of_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a-faces.jpg").write_bytes(b"somebody's own")
    (tmp_path / "a-faces-2.jpg").mkdir()
    if sys.platform != "win32":  # links need rights there
        (tmp_path / "a-faces-3.jpg").symlink_to(tmp_path / "nowhere")
    names = AnnotatedNames(tmp_path)
    free = 3 if sys.platform == "win32" else 4
    given = [names.name(source).name for source in ("a.jpg", "b/a.jpg", "b/a.jpg")]
    assert given == [f"a-faces-{free + k}.jpg" for k in range(3)]


def test_a_copy_that_was_changed_before_its_signature_is_somebodys_own(tmp_path: Path) -> None:
    """A known fault: exiftool keeps what is after the picture, and what it had saved was overwritten."""
    drawn = sign(b"picture with a title", signature("a.jpg"))
    (tmp_path / "a-faces.jpg").write_bytes(drawn)
    assert AnnotatedNames(tmp_path).name("a.jpg").name == "a-faces.jpg"
    for edited in (drawn.replace(b"title", b"TITLE"), b"more " + drawn, drawn[len("picture") :]):
        (tmp_path / "a-faces.jpg").write_bytes(edited)
        assert AnnotatedNames(tmp_path).name("a.jpg").name == "a-faces-2.jpg"


def test_naming_takes_as_long_for_the_last_photo_of_a_name_as_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: the k-th photo of a name asked the system for k paths, links and all."""
    asked = 0
    look = os.lstat

    def counted(path: Any, **options: Any) -> os.stat_result:
        nonlocal asked
        asked += 1
        return look(path, **options)

    for k in range(300):
        name = "a-faces.jpg" if k == 0 else f"a-faces-{k + 1}.jpg"
        (tmp_path / name).write_bytes(sign(b"picture", signature(f"{k}/a.jpg")))
    names = AnnotatedNames(tmp_path)
    monkeypatch.setattr(os, "lstat", counted)
    targets = [names.name(f"{k}/a.jpg") for k in reversed(range(600))]
    assert len(set(targets)) == 600
    assert {target.name for target in targets} >= {path.name for path in tmp_path.iterdir()}
    assert asked < 600 * 30  # it was the square: 600 * 300 paths, each of several folders


@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_signed_picture_is_read_like_any_other(suffix: str) -> None:
    rgb = np.full((40, 50, 3), 90, np.uint8)
    content = encode_image(rgb, suffix)
    signed = sign(content, signature(content))
    assert np.array_equal(load_image(signed), load_image(content))
    with Image.open(io.BytesIO(signed)) as image:
        assert image.size == (50, 40)
        image.load()
    assert cv2.imdecode(np.frombuffer(signed, np.uint8), cv2.IMREAD_COLOR).shape == (40, 50, 3)
