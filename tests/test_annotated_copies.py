"""Annotated copies: their names beside existing files, and the signatures by which they are replaced."""

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

from ferkit.batch.copies import CopyNames, sign, signature
from ferkit.core.images import WRITABLE, encode_image, load_image


def test_copies_take_no_name_of_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a-faces.jpg").write_bytes(b"the user's")
    (tmp_path / "a-faces-2.jpg").mkdir()
    if sys.platform != "win32":  # links need rights there
        (tmp_path / "a-faces-3.jpg").symlink_to(tmp_path / "nowhere")
    names = CopyNames(tmp_path)
    free = 3 if sys.platform == "win32" else 4
    given = [names.choose(source).name for source in ("a.jpg", "b/a.jpg", "b/a.jpg")]
    assert given == [f"a-faces-{free + k}.jpg" for k in range(3)]


def test_a_copy_that_was_edited_is_not_replaced(tmp_path: Path) -> None:
    """A known fault: exiftool keeps what follows the picture, and its edits were overwritten."""
    drawn = sign(b"picture with a title", signature("a.jpg"))
    (tmp_path / "a-faces.jpg").write_bytes(drawn)
    assert CopyNames(tmp_path).choose("a.jpg").name == "a-faces.jpg"
    for edited in (drawn.replace(b"title", b"TITLE"), b"more " + drawn, drawn[len("picture") :]):
        (tmp_path / "a-faces.jpg").write_bytes(edited)
        assert CopyNames(tmp_path).choose("a.jpg").name == "a-faces-2.jpg"


def test_choosing_a_name_takes_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known fault: the k-th photo of a name looked up k paths."""
    asked = 0
    look = os.lstat

    def counted(path: Any, **options: Any) -> os.stat_result:
        nonlocal asked
        asked += 1
        return look(path, **options)

    for k in range(300):
        name = "a-faces.jpg" if k == 0 else f"a-faces-{k + 1}.jpg"
        (tmp_path / name).write_bytes(sign(b"picture", signature(f"{k}/a.jpg")))
    names = CopyNames(tmp_path)
    monkeypatch.setattr(os, "lstat", counted)
    targets = [names.choose(f"{k}/a.jpg") for k in reversed(range(600))]
    assert len(set(targets)) == 600
    assert {target.name for target in targets} >= {path.name for path in tmp_path.iterdir()}
    assert asked < 600 * 30  # it was the square: 600 * 300 paths, each of several folders


def test_copies_never_take_the_name_of_an_input_or_of_each_other(tmp_path: Path) -> None:
    inputs = [tmp_path / "a.jpg", tmp_path / "sub" / "a.jpg", tmp_path / "A.jpg", tmp_path / "a-faces.jpg"]
    names = CopyNames(tmp_path, inputs)
    targets = [names.choose(path) for path in inputs]
    assert len({str(t).casefold() for t in targets}) == 4
    assert not {str(t).casefold() for t in targets} & {str(i).casefold() for i in inputs}
    assert [t.name for t in targets] == [
        "a-faces-2.jpg",
        "a-faces-3.jpg",
        "A-faces-4.jpg",
        "a-faces-faces.jpg",
    ]


@pytest.mark.parametrize(
    ("source", "name"), [("x.gif", "x-faces.png"), ("y", "y-faces.png"), ("z.PNG", "z-faces.PNG")]
)
def test_copies_have_the_format_of_the_photo_if_it_can_be_written(
    tmp_path: Path, source: str, name: str
) -> None:
    assert CopyNames(tmp_path).choose(source) == tmp_path / name


@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_signed_picture_can_be_read(suffix: str) -> None:
    rgb = np.full((40, 50, 3), 90, np.uint8)
    content = encode_image(rgb, suffix)
    signed = sign(content, signature(content))
    assert np.array_equal(load_image(signed), load_image(content))
    with Image.open(io.BytesIO(signed)) as image:
        assert image.size == (50, 40)
        image.load()
    assert cv2.imdecode(np.frombuffer(signed, np.uint8), cv2.IMREAD_COLOR).shape == (40, 50, 3)
