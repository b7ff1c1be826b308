"""What a picture can be given as: read, or refused in one short line that says what to pass."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import modelzoo
from ferkit import Photo, Recognizer
from ferkit.core.errors import ImageError
from ferkit.core.images import encode_image, load_image

RGB = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
CONTENT = encode_image(RGB, ".png")
TEXT = base64.b64encode(CONTENT).decode()


class AsyncUpload:
    """As of Starlette: read is a coroutine, file is an ordinary file."""

    def __init__(self) -> None:
        self.file = io.BytesIO(CONTENT)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


class Reader:
    """As of many frameworks: no more than a method read."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def read(self, size: int = -1) -> Any:
        return self._content


@pytest.mark.parametrize(
    "source",
    [
        io.BytesIO(CONTENT),
        Reader(CONTENT),
        AsyncUpload(),
        memoryview(CONTENT),
        f"data:image/png;base64,{TEXT}",
        f"DATA:;BASE64,{TEXT[:40]}\n{TEXT[40:]}",
        Image.fromarray(RGB),
    ],
    ids=["BytesIO", "reader", "upload", "memoryview", "data URI", "lines", "Pillow"],
)
def test_streams_uploads_and_data_uris_are_read(source: Any) -> None:
    assert np.array_equal(load_image(source), RGB)


def test_an_open_file_is_read_from_its_position(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"header" + CONTENT)
    with (tmp_path / "a.bin").open("rb") as stream:
        stream.seek(6)
        assert np.array_equal(load_image(stream), RGB)
        with pytest.raises(ImageError, match="empty or at its end"):
            load_image(stream)
    with pytest.raises(ImageError, match="closed file"):
        load_image(stream)
    with (tmp_path / "a.bin").open(encoding="latin-1") as text, pytest.raises(ImageError, match="mode 'rb'"):
        load_image(text)  # type: ignore[arg-type]


class AsyncReader:
    async def read(self, size: int = -1) -> bytes:
        return CONTENT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (0, "Received: int. Pass the frames of a camera as RGB arrays"),
        (np.int64(0), "Received: int64. Pass the frames"),
        (None, "Received: NoneType"),
        ([[1, 2], [3, 4]], "Received: list"),
        (AsyncReader(), "pass its bytes: await stream.read()"),
        (Reader("text"), "mode 'rb'"),
        (io.BytesIO(), "empty"),
        ("data:image/png;base64,%%%", "not valid base64"),
        (f"data:image/png;base64,{TEXT[:-3]}", "is it complete?"),
        (f"data:image/png;base64,{TEXT[: len(TEXT) // 2 // 4 * 4]}", "the data URI is damaged"),
        ("data:,hello", "must be base64. Received: data:,"),
        (TEXT * 10, "characters"),
    ],
)
def test_other_sources_are_refused_in_one_short_line(source: Any, message: str) -> None:
    """A known fault: the message about a data URI had 108,715 characters."""
    with pytest.raises(ImageError) as caught:
        load_image(source)
    text = str(caught.value)
    assert message in text
    assert len(text) < 250
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_closed_pillow_image_is_an_error_that_says_so(kind: str, loaded: bool) -> None:
    """A known fault: it ended predict_each, or was called damaged."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    image = Image.open(buffer)
    if loaded:
        image.load()
    image.close()
    with pytest.raises(ImageError, match="the Pillow image is closed; pass it while it is open"):
        load_image(image)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are those of Unix")
def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pass its bytes"):
        load_image(tmp_path / "pipe")


@pytest.mark.skipif(sys.platform == "win32", reason="paths are text there")
def test_a_path_may_be_bytes_of_a_path_like_object(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(CONTENT)

    class AsBytes:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "a.png")

    assert np.array_equal(load_image(AsBytes()), RGB)  # type: ignore[arg-type]


def test_no_source_ends_predict_each(tmp_path: Path) -> None:
    recognizer = Recognizer(modelzoo.write_tiny_model(tmp_path / "tiny.onnx"), detector="none")
    closed = Image.fromarray(RGB)
    closed.close()
    sources: list[Any] = [
        closed,
        0,
        None,
        io.BytesIO(CONTENT),
        f"data:image/png;base64,{TEXT}",
        AsyncReader(),
    ]
    results = list(recognizer.predict_each(sources))
    assert [isinstance(result, Photo) for result in results] == [False, False, False, True, True, False]
    assert {result.source for result in results} == {None}
