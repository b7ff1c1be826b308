"""Pictures from files, bytes and arrays to RGB arrays, and back to files."""

from __future__ import annotations

import base64
import importlib
import inspect
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.errors import ImageError
from ferkit.core.filetypes import HEAD_BYTES, file_type

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


_T = TypeVar("_T")


class BinaryStream(Protocol):
    """An open binary file, ``io.BytesIO``, or the upload object of a web framework."""

    def read(self, size: int = ..., /) -> bytes:
        """Return up to ``size`` bytes."""
        ...


ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | PillowImage | BinaryStream"
"""What a picture can be given as; a text is a path or a data URI."""

DEFAULT_MAX_PIXELS = 85 * 1024 * 1024
"""Default limit of pixels per picture; just below Pillow's own limit."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
"""Suffixes of the files that count as pictures in folders and archives."""

WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffixes that can be written, and Pillow's name of the format."""

# Pillow's reader of each format. Image.open would try all formats, and apply a limit of the whole process.
_READERS = {
    "JPEG": ("JpegImagePlugin", "jpeg_factory"),
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
}

READABLE = tuple(_READERS)
"""Formats that can be read; of several frames or pages, the first."""

_MAX_FILE_BYTES = 1 << 29
_LONGEST_NAME = 300  # characters of a path in messages
_STRIP_PIXELS = 1 << 18  # fits the cache; larger strips took twice to three times as long
_SMALL_PIXELS = 1 << 22  # decoded whatever the size of the file
_DENSEST = 2000  # pixels per byte: JPEG reaches 170, a GIF or PNG of one single gray 1,300
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF and a value of the second
_WHITE = 255
_LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}  # pixels; limits of the WebP format and of libjpeg

# Exceptions of Pillow's decoders for damaged files; found by mutating files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    UserWarning,
    struct.error,
    zlib.error,
)


def load_image(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a picture to RGB.

    The EXIF orientation is applied, transparent parts become white, 16-bit values are scaled to 8 bits, and
    gray, palette and CMYK are converted. Of several frames or pages the first is read. The format is
    recognised by the content, not by the suffix. URLs are not fetched.

    Args:
        source: A file, its bytes, a data URI (base64), a binary stream (read from its position), a Pillow
            image, or an array: uint8 or uint16 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]``, in
            the order R, G, B, alpha.
        max_pixels: Largest number of pixels; checked before decoding.

    Returns:
        uint8 ``[H, W, 3]``, RGB, 0..255.

    Raises:
        ImageError: If the file does not exist, is not a readable picture, damaged, truncated or too large.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if (found := _content_of(source)) is not None:
        return _decode(*found, max_pixels)
    if type(source).__module__.partition(".")[0] == "PIL" or hasattr(source, "getexif"):
        return _explain_errors(lambda: _from_pillow(source, "the picture", max_pixels), "the Pillow image")
    if hasattr(source, "read"):
        return _decode(_stream_bytes(source), "the stream", max_pixels)
    hint = ". Pass the frames of a camera as RGB arrays" if isinstance(source, (int, np.integer)) else ""
    raise ImageError(
        "a picture must be a path, bytes, a data URI, a binary stream, a NumPy array or a Pillow image. "
        f"Received: {type(source).__name__}{hint}"
    )


def load_reduced(
    source: ImageSource, longest: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode a picture as :func:`load_image`, a large JPEG at a half, a quarter or an eighth of its size.

    A half takes a third of the time and a quarter of the memory.

    Args:
        source: As in :func:`load_image`; open streams, arrays and Pillow images are not reduced.
        longest: Least number of pixels of the longer side of a reduced picture.
        max_pixels: As in :func:`load_image`; of the picture before it is reduced.

    Returns:
        uint8 ``[h, w, 3]``, RGB, and the width and height of the upright picture before it is reduced.

    Raises:
        ImageError: As :func:`load_image`.
    """
    found = _content_of(source)
    if found is None:
        rgb = load_image(source, max_pixels=max_pixels)
        return rgb, (rgb.shape[1], rgb.shape[0])
    content, name = found

    def decode() -> tuple[NDArray[np.uint8], tuple[int, int]]:
        image = _open(content, name, max_pixels)
        width, height = image.size
        share = longest / max(width, height)
        wanted = max(1, int(width * share)), max(1, int(height * share))
        reduced = share <= 1 / 2 and image.draft(image.mode, wanted)
        rgb = _from_pillow(image, name, max_pixels)
        if not reduced:
            return rgb, (rgb.shape[1], rgb.shape[0])
        return rgb, (height, width) if _orientation(image) in _TURNED else (width, height)

    return _explain_errors(decode, name)


def load_frames(
    path: str, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Decode every frame of a picture as :func:`load_image`; yield each with its duration in milliseconds.

    Raises:
        ImageError: As :func:`load_image`.
    """
    from PIL import ImageSequence

    content = read_bytes(path)
    image = _explain_errors(lambda: _open(content, path, max_pixels), path)
    frames = iter(ImageSequence.Iterator(image))

    def decode_next() -> tuple[NDArray[np.uint8], int] | None:
        frame = next(frames, None)
        if frame is None:
            return None
        return _from_pillow(frame, path, max_pixels), round(frame.info.get("duration", 0))

    while (found := _explain_errors(decode_next, path)) is not None:
        yield found


def _content_of(source: ImageSource) -> tuple[bytes, str] | None:
    """Return the bytes of a file, of a data URI or as given, and their name in messages; None for others."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "the picture"
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if is_data_uri(name):
            return _data_uri_bytes(name), "the data URI"
        return read_bytes(name), name
    return None


def is_data_uri(name: str) -> bool:
    """Return whether a text is a data URI, such as ``data:image/png;base64,...``."""
    return name[:5].lower() == "data:" and "," in name


def _data_uri_bytes(uri: str) -> bytes:
    header, _, data = uri.partition(",")
    if not header.lower().endswith(";base64"):
        raise ImageError(f"a data URI of a picture must be base64. Received: {header[:60]},")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:
        raise ImageError(f"the data URI is not valid base64 ({error}); is it complete?") from error


def _stream_bytes(stream: Any) -> bytes:
    """Return the content of an open binary file or an upload."""
    if inspect.iscoroutinefunction(stream.read):
        if not hasattr(stream, "file"):
            raise ImageError("the stream is read asynchronously; pass its bytes: await stream.read()")
        stream = stream.file  # of Starlette and FastAPI
    return read_stream(stream, "the stream")


def is_url(name: str) -> bool:
    """Return whether a name is a URL, also after ``Path`` removed one of its two slashes.

    Example:
        >>> is_url("https://example.org/a.jpg"), is_url("https:/example.org/a.jpg"), is_url("C:/a.jpg")
        (True, True, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", name) is not None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a picture file.

    Raises:
        ImageError: If it is a URL, a folder, no regular file, empty, larger than 512 MiB, or unreadable.
    """
    name = os.fspath(path)
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:40]}... ({len(name):,} characters)"
    if is_url(name):
        raise ImageError(f"{shown} is a URL, and nothing is fetched from the network; download it first")
    try:
        state = Path(name).stat()
        if stat.S_ISDIR(state.st_mode):
            raise ImageError(f"{shown} is a folder, not a picture")
        if not stat.S_ISREG(state.st_mode):
            raise ImageError(
                f"{shown} is not a regular file; pass its bytes, or pipe it into `ferkit predict -`"
            )
        if state.st_size > _MAX_FILE_BYTES:
            raise ImageError(
                f"{shown} is larger than {_MAX_FILE_BYTES >> 20} MiB, the limit of a picture file"
            )
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def read_stream(stream: BinaryStream, name: str) -> bytes:
    """Return the content of a stream, such as standard input.

    Raises:
        ImageError: If the stream is empty, longer than 512 MiB, or cannot be read.
    """
    try:
        content = stream.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(content, str):
        raise ImageError(f"{name} has text in place of bytes; open it in the mode 'rb'")
    if not content:
        raise ImageError(f"{name} is empty or at its end; a picture was expected")
    if len(content) > _MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {_MAX_FILE_BYTES >> 20} MiB, the limit of a picture file")
    return content


def to_gray(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 ``[H, W]`` of uint8 ``[H, W, 3]`` RGB: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    import cv2

    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def write_image(path: str | os.PathLike[str], picture: NDArray[np.uint8]) -> None:
    """Write uint8 ``[H, W, 3]`` RGB or ``[H, W]`` gray atomically, in the format of the suffix.

    Raises:
        ImageError: As :func:`encode_image`.
        OutputError: If the file cannot be written.
    """
    files.write_bytes(path, encode_image(picture, Path(path).suffix))


def encode_image(picture: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Return uint8 ``[H, W, 3]`` RGB or ``[H, W]`` gray as a file's bytes, in the format of the suffix.

    Raises:
        ImageError: If the suffix is none of :data:`WRITABLE`, or a side is longer than the format allows:
            16,383 pixels for WebP, 65,500 for JPEG.
    """
    from PIL import Image

    kind = WRITABLE.get(suffix.lower())
    if kind is None:
        raise ImageError(
            f"pictures can be written as {', '.join(WRITABLE)}. Received the suffix: {suffix or 'none'}"
        )
    height, width = picture.shape[:2]
    refused = f"a picture of {width} x {height} pixels cannot be written as {kind}"
    other = "use .png or .tiff, or shrink it"
    # libjpeg would print a line of its own.
    if max(height, width) > _LONGEST_SIDE.get(kind, max(height, width)):
        raise ImageError(f"{refused}, whose sides have at most {_LONGEST_SIDE[kind]:,} pixels; {other}")
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if kind in ("JPEG", "WEBP") else {}
    try:
        Image.fromarray(picture).save(buffer, kind, **options)
    except (ValueError, OSError) as error:
        raise ImageError(f"{refused} ({error}); {other}") from error
    return buffer.getvalue()


def _explain_errors(decode: Callable[[], _T], name: str) -> _T:
    """Run a decoder and turn its exceptions into :class:`ImageError`."""
    from PIL.Image import DecompressionBombError

    try:
        return decode()
    except (*_DECODER_ERRORS, DecompressionBombError) as error:
        what = str(error).strip() or type(error).__name__
        if "closed" in what:  # a Pillow image, or its file
            raise ImageError(f"{name} is closed; pass it while it is open, or pass image.copy()") from error
        raise ImageError(f"{name} is damaged, truncated or of an unusual kind: {what}") from error


def _decode(content: bytes, name: str, max_pixels: int) -> NDArray[np.uint8]:
    return _explain_errors(lambda: _from_pillow(_open(content, name, max_pixels), name, max_pixels), name)


def _open(content: bytes, name: str, max_pixels: int) -> PillowImage:
    """Open a picture of a readable format whose size is within the limits."""
    if not content:
        raise ImageError(f"{name} is empty")
    kind = file_type(content[:HEAD_BYTES])
    if kind not in _READERS:
        if kind == "video":
            raise ImageError(f"{name} is a clip; clips are for `ferkit video`, of a server for /v1/videos")
        what = f"is of type {kind}" if kind else "has an unknown format"
        raise ImageError(f"{name} {what}; readable are {', '.join(READABLE)}: convert it to one of them")
    module, opener = _READERS[kind]
    image: PillowImage = getattr(importlib.import_module(f"PIL.{module}"), opener)(io.BytesIO(content))
    _check_size(*image.size, name, max_pixels)
    _check_density(image, len(content), name)
    return image


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:.0f} million; "
            "shrink it, or raise the limit (max_pixels, --max-pixels; of a server --pixels)"
        )


def _check_density(image: PillowImage, size: int, name: str) -> None:
    """Refuse a header that promises more pixels than the file can hold.

    Decoders allocate and fill the promised size before they notice that the data is missing.
    """
    width, height = image.size
    # Fax codes of 1-bit pages take at least one bit per row, however wide it is.
    holds = height <= 8 * size if image.mode == "1" else width * height <= size * _DENSEST
    if width * height > _SMALL_PIXELS and not holds:
        raise ImageError(
            f"{name} promises {width} x {height} pixels in {size} bytes, which cannot hold them: it is "
            "damaged or a decompression bomb"
        )


def _from_pillow(image: Any, name: str, max_pixels: int) -> NDArray[np.uint8]:
    width, height = image.size
    _check_size(width, height, name, max_pixels)
    image.load()
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    # In strips, since a second full copy with Pillow's four bytes per pixel would double the memory.
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if strip.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
            rgb[top : top + rows] = _wide_to_gray(strip, getattr(image, "tag_v2", {}))[:, :, None]
        else:
            rgb[top : top + rows] = _strip_to_rgb(strip, name)
    # Read after loading: Pillow rotates a TIFF itself and then removes the tag.
    return _apply_orientation(rgb, _orientation(image))


def _orientation(image: Any) -> Any:
    """Return the EXIF orientation; 1 (upright) if there is none or the EXIF is unreadable."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1


def _wide_to_gray(strip: PillowImage, tags: Mapping[int, Any]) -> NDArray[np.uint8]:
    """Scale a gray strip of 12 or 16 bits to uint8 ``[H, W]``; the transparent value becomes white.

    Args:
        strip: Gray with 16 bits per pixel in memory.
        tags: The tags of a TIFF; Pillow ignores the number of bits and "0 is white" in this mode. Empty for
            other formats.
    """
    wide = np.asarray(strip)
    (bits, *_) = tags.get(_BITS_PER_SAMPLE, (16,))
    gray: NDArray[np.uint8] = (wide >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = _WHITE - gray
    if (transparent := strip.info.get("transparency")) is not None:
        gray[wide == transparent] = _WHITE
    return gray


def _strip_to_rgb(strip: PillowImage, name: str) -> NDArray[np.uint8]:
    if strip.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit values of unknown range; convert it to 8 or 16 bits")
    if strip.has_transparency_data:
        return _on_white(np.asarray(strip.convert("RGBA")))
    return np.asarray(strip.convert("RGB"))


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend uint8 RGBA ``[H, W, 4]`` with white to RGB ``[H, W, 3]``, rounded to nearest."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    mixed = rgba[:, :, :3] * alpha + _WHITE * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _apply_orientation(rgb: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    """Rotate and mirror by an EXIF orientation, 1..8; other values change nothing."""
    if orientation in (2, 4, 5, 7):
        rgb = rgb[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(rgb, quarters))


def _from_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    received = f"{array.dtype} {list(array.shape)}"
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            "an array of pixels must be uint8 (0..255) or uint16 (0..65535), since the range of others is "
            f"unknown. Received: {received}"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"a picture must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Received: {received}")
    _check_size(array.shape[1], array.shape[0], "the array", max_pixels)
    pixels = array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        return _on_white(pixels)
    return np.ascontiguousarray(pixels)
