"""Decoding: every format gives the right RGB pixels, or an error that says why."""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from ferkit.core.errors import ImageError, OutputError
from ferkit.core.images import encode_image, load_image, load_reduced, read_bytes, to_gray, write_image

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
# Smooth, so that lossy formats stay close.
ACROSS, DOWN = np.meshgrid(np.linspace(0, 255, 44), np.linspace(0, 255, 30))
SMOOTH = np.stack([ACROSS, DOWN, np.full_like(ACROSS, 90)], axis=2).astype(np.uint8)


def encoded(picture: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# The first box of a picture of an iPhone.
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises many pixels: a decompression bomb."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(load_image(encoded(PIXELS, kind, **options)), PIXELS)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("AVIF", {"quality": 95})],
)
def test_lossy_formats_come_back_closely_and_in_rgb(kind: str, options: dict[str, Any]) -> None:
    """A known fault: BGR handed to a network of RGB. Red and blue differ widely in this picture."""
    loaded = load_image(encoded(SMOOTH, kind, **options)).astype(int)
    assert np.abs(loaded - SMOOTH).mean() < 6
    assert np.abs(loaded[:, :, ::-1] - SMOOTH).mean() > 40


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """Pillow's own transposition is the reference; 0 and 9 are no orientations."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PIXELS, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(load_image(content), np.asarray(upright))


def test_a_photo_with_unreadable_exif_is_not_rotated() -> None:
    # With a resolution in its JFIF header Pillow reads the EXIF not on opening, but when it is asked for it.
    content = encoded(SMOOTH, "JPEG", quality=95, dpi=(72, 72), exif=b"Exif\0\0" + bytes(20))
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(content)).getexif()
    assert np.abs(load_image(content).astype(int) - SMOOTH).mean() < 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n       4\nzz\n")
    assert np.array_equal(load_image(encoded(PIXELS, "PNG", pnginfo=text)), PIXELS)


def test_transparent_parts_are_laid_on_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = (200, 100, 0, 255)
    rgba[1] = (0, 0, 0, 0)
    rgba[1, 2] = (0, 0, 0, 128)
    loaded = load_image(encoded(rgba, "PNG"))
    assert loaded[0].tolist() == [[200, 100, 0]] * 3
    assert loaded[1, 0].tolist() == [255, 255, 255]
    assert loaded[1, 2].tolist() == [127, 127, 127]
    assert np.array_equal(load_image(rgba), loaded)


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    loaded = load_image(encoded(image, "PNG", transparency=1))
    assert loaded[0, 0].tolist() == [255, 0, 0]
    assert loaded[1, 1].tolist() == [255, 255, 255]


def test_gray_becomes_three_equal_channels() -> None:
    gray = PIXELS[:, :, 0]
    assert np.array_equal(load_image(encoded(gray, "PNG")), np.repeat(gray[:, :, None], 3, axis=2))
    alpha = Image.fromarray(gray).convert("LA")
    assert np.array_equal(load_image(encoded(alpha, "PNG"))[:, :, 1], gray)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (20, 30), dtype=np.uint16)
    loaded = load_image(encoded(wide, kind))
    assert np.array_equal(loaded[:, :, 0], wide >> 8)
    assert np.array_equal(load_image(wide), loaded)


def gray_tiff(wide: NDArray[np.uint16], *, bits: int = 16, white_is_zero: bool = False) -> bytes:
    """A plain TIFF as scanners and cameras of science write it; Pillow writes neither kind."""
    height, width = wide.shape
    if bits == 12:  # packed, of a row of an even number of pixels
        first, second = wide[:, 0::2], wide[:, 1::2]
        parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
        data = np.stack(parts, axis=2).astype(np.uint8).tobytes()
    else:
        data = wide.astype("<u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9) + entries + bytes(4)


def test_twelve_bits_are_scaled_to_eight() -> None:
    """A known fault: pure white came out as 15."""
    wide = np.array([[0, 4095], [2048, 1234]], np.uint16)
    loaded = load_image(gray_tiff(wide, bits=12))
    assert loaded[:, :, 0].tolist() == [[0, 255], [128, 1234 >> 4]]


def test_sixteen_bits_whose_zero_is_white_are_no_negative() -> None:
    """8-bit TIFFs of the kind Pillow turns by itself."""
    wide = np.array([[0, 65535, 0x4000]], np.uint16)
    assert load_image(gray_tiff(wide, white_is_zero=True))[0, :, 1].tolist() == [255, 0, 255 - 0x40]
    assert load_image(gray_tiff(wide))[0, :, 1].tolist() == [0, 255, 0x40]


def test_a_transparent_gray_of_sixteen_bits_is_laid_on_white() -> None:
    wide = np.array([[1000, 1001]], np.uint16)  # the same of 8 bits
    assert load_image(encoded(wide, "PNG", transparency=1000))[0].tolist() == [[255] * 3, [3] * 3]


def test_cmyk_becomes_rgb() -> None:
    loaded = load_image(encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(loaded - SMOOTH).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_comes_the_first(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    content = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(load_image(content)[0, 0].astype(int) - (255, 0, 0)).max() < 4


def test_large_pictures_come_whole() -> None:
    """Pictures are converted in strips of about four million pixels; this one takes two."""
    tall = np.random.default_rng(2).integers(0, 256, (2100, 2100), dtype=np.uint8)
    assert np.array_equal(load_image(encoded(tall, "BMP"))[:, :, 0], tall)


def test_paths_bytes_arrays_and_pillow_images_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(PIXELS, "PNG"))
    for source in (path, str(path), path.read_bytes(), PIXELS, Image.fromarray(PIXELS), Image.open(path)):
        assert np.array_equal(load_image(source), PIXELS)


def test_a_gray_array_is_accepted_in_two_or_three_dimensions() -> None:
    gray = PIXELS[:, :, 0]
    assert np.array_equal(load_image(gray), load_image(gray[:, :, None]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"uint8 .* or uint16 .*float32 \[4, 4, 3\]"),
        (np.zeros((4, 4, 3), bool), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\[H, W, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(4, np.uint8), r"\[H, W\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(array)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], {"a": 1}])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(ImageError, match=r"a NumPy array or a Pillow image\. Received: "):
        load_image(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_refused_not_half_read(kind: str, part: float) -> None:
    content = encoded(PIXELS, kind)
    with pytest.raises(ImageError, match="damaged, truncated"):
        load_image(content[: int(len(content) * part)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "unknown format; readable are JPEG"),
        (b"%PDF-1.7 ...", "is of type PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown format"),
        (b"\xff\xd8\xff", "damaged, truncated"),
        (HEIC, "is of type HEIC; readable are JPEG, .*: convert it"),
        (b"\0\0\0\x1cftypisom\0\0\2\0isomiso2mp41" + bytes(99), "is a clip; clips are for `ferkit video`"),
        (b"\xff\x0a" + bytes(99), "is of type JPEG XL"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(content)


def test_huge_pictures_are_refused_by_their_header_before_they_are_decoded() -> None:
    with pytest.raises(ImageError, match=r"100000 x 100000 pixels, more than the limit of 89 million"):
        load_image(png_claiming(100_000, 100_000))
    with pytest.raises(ImageError, match="more than the limit"):
        load_image(PIXELS, max_pixels=100)
    with pytest.raises(ImageError, match="more than the limit"):
        load_image(encoded(PIXELS, "JPEG"), max_pixels=44 * 30 - 1)
    assert load_image(encoded(PIXELS, "PNG"), max_pixels=44 * 30).shape == (30, 44, 3)


def tiff_claiming(side: int) -> bytes:
    """A small TIFF whose header promises ``side`` x ``side`` pixels in a single strip."""
    content = bytearray(encoded(Image.fromarray(PIXELS).convert("1"), "TIFF", compression="group4"))
    (start,) = struct.unpack("<I", content[4:8])
    (entries,) = struct.unpack("<H", content[start : start + 2])
    for k in range(entries):
        at = start + 2 + 12 * k
        if struct.unpack("<H", content[at : at + 2])[0] in (256, 257, 278):  # width, height, rows per strip
            content[at + 2 : at + 12] = struct.pack("<HIHH", 3, 1, side, 0)
    return bytes(content)


def test_a_header_that_promises_more_than_the_file_can_hold_is_refused_at_once() -> None:
    """A damaged TIFF of 520 bytes once took 1.2 seconds and 430 MiB, and came out as 85 million pixels."""
    begin = time.process_time()
    with pytest.raises(ImageError, match=r"9200 x 9200 pixels in 5.. bytes"):
        load_image(tiff_claiming(9200))
    assert time.process_time() - begin < 0.2
    flat = Image.new("L", (3000, 2000), 90)  # a legitimate picture of one gray is read
    assert load_image(encoded(flat, "PNG")).shape == (2000, 3000, 3)


@pytest.mark.parametrize("compression", ["group3", "group4", "packbits"])
def test_a_blank_page_of_a_fax_is_no_bomb(compression: str) -> None:
    """A known fault: a white A4 page at 600 dpi takes 3 KB, 11,600 pixels a byte, and was refused."""
    page = Image.new("1", (4962, 7020), 1)
    page.putpixel((4000, 7000), 0)
    loaded = load_image(encoded(page, "TIFF", compression=compression))
    assert loaded.shape == (7020, 4962, 3)
    assert loaded[7000, 4000].tolist() == [0, 0, 0]
    assert int(loaded.min(axis=2).sum() // 255) == 4962 * 7020 - 1


def test_avif_and_heic_named_jpg_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(SMOOTH, "AVIF", quality=95))
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - SMOOTH).mean() < 6
    (tmp_path / "b.jpg").write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"b\.jpg is of type HEIC; .* convert it"):
        load_image(tmp_path / "b.jpg")


def test_the_limit_of_pillow_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(encoded(PIXELS, "PNG")).shape == (30, 44, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_32_bit_values_are_refused_since_their_range_is_unknown() -> None:
    with pytest.raises(ImageError, match="32-bit"):
        load_image(encoded(np.ones((4, 4), np.float32), "TIFF"))


def test_files_that_are_no_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="null"):
        load_image("a\0b.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    "url", ["http://example.org/a.jpg", "https://example.org/a.jpg", "ftp://x/y", "s3://b/k"]
)
def test_urls_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match="nothing is fetched"):
        load_image(url)


def test_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(3 << 30)  # sparse: it takes no room
    with pytest.raises(ImageError, match="larger than 512 MiB"):
        read_bytes(tmp_path / "large.jpg")


SEEDS = [encoded(SMOOTH, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")]
SEEDS.append(encoded(SMOOTH, "JPEG", progressive=True))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_picture_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        loaded = load_image(bytes(content), max_pixels=1_000_000)
    except ImageError:
        return
    assert loaded.dtype == np.uint8
    assert loaded.shape[2] == 3


def test_gray_weighs_red_green_and_blue_by_the_standard() -> None:
    """ITU-R BT.601; with red and blue exchanged these would be 29 and 76."""
    colours = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]], np.uint8)
    assert to_gray(colours).tolist() == [[76, 150, 29, 255]]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tiff", ".jpg", ".jpeg", ".webp"])
def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_image(path, SMOOTH)
    assert np.abs(load_image(path).astype(int) - SMOOTH).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_gray_pictures_are_written_too(tmp_path: Path) -> None:
    write_image(tmp_path / "gray.png", SMOOTH[:, :, 0])
    assert np.array_equal(load_image(tmp_path / "gray.png")[:, :, 2], SMOOTH[:, :, 0])


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_picture_too_long_for_its_format_is_refused_with_what_to_do(
    suffix: str, longest: int, capfd: pytest.CaptureFixture[str]
) -> None:
    message = rf"{longest + 1} x 1 pixels cannot be written as .*{longest:,} pixels; use \.png"
    with pytest.raises(ImageError, match=message):
        encode_image(np.zeros((1, longest + 1), np.uint8), suffix)
    assert capfd.readouterr().err == ""  # libjpeg would print a line
    for shape in ((1, longest), (longest, 1)):
        assert load_image(encode_image(np.zeros(shape, np.uint8), suffix)).shape == (*shape, 3)


def test_a_picture_that_pillow_cannot_write_is_refused_with_a_remedy() -> None:
    with pytest.raises(ImageError, match=r"0 x 4 pixels cannot be written as PNG \(.*\); use"):
        encode_image(np.zeros((4, 0), np.uint8))


def test_an_unknown_suffix_and_an_unwritable_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"\.xyz"):
        write_image(tmp_path / "out.xyz", SMOOTH)
    with pytest.raises(ImageError, match="suffix: none"):
        encode_image(SMOOTH, "")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_image(tmp_path / "file" / "out.png", SMOOTH)


@pytest.mark.parametrize(("longest", "width"), [(400, 400), (200, 200), (101, 200), (100, 100), (30, 50)])
def test_a_large_jpeg_is_reduced_to_no_less_than_the_longest_side(longest: int, width: int) -> None:
    content = encoded(np.asarray(Image.fromarray(SMOOTH).resize((400, 301))), "JPEG", quality=95)
    rgb, size = load_reduced(content, longest)
    assert size == (400, 301)
    assert rgb.shape == (math.ceil(301 * width / 400), width, 3)
    whole = Image.fromarray(load_image(content)).resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.BOX)
    assert np.abs(rgb.astype(int) - np.asarray(whole)).max() <= 8


def test_a_reduced_picture_is_upright_with_the_size_of_the_upright_original() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(np.asarray(Image.fromarray(SMOOTH).resize((440, 300))), "JPEG", exif=exif)
    rgb, size = load_reduced(content, 100)
    assert size == (300, 440)
    assert rgb.shape == (110, 75, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_arrays_and_streams_are_not_reduced(kind: str) -> None:
    content = encoded(SMOOTH, kind)
    for source in (content, io.BytesIO(content), load_image(content), Image.open(io.BytesIO(content))):
        rgb, size = load_reduced(source, 8)
        assert size == (44, 30)
        assert np.array_equal(rgb, load_image(content))


@pytest.mark.parametrize("size", [(4000, 2), (1, 4000)])
def test_a_jpeg_of_a_few_rows_or_columns_is_read(size: tuple[int, int]) -> None:
    """A known fault: the shorter side became 0, and Pillow divided by it."""
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "JPEG")
    rgb, whole = load_reduced(content.getvalue(), 1000)
    assert whole == size
    assert 1000 <= max(rgb.shape) <= 4000  # Pillow reduces both sides by one factor, and neither to 0


def test_a_truncated_or_too_large_jpeg_is_not_reduced_but_refused() -> None:
    content = encoded(np.asarray(Image.fromarray(SMOOTH).resize((440, 300))), "JPEG", quality=95)
    with pytest.raises(ImageError, match="damaged, truncated"):
        load_reduced(content[: len(content) // 2], 100)
    with pytest.raises(ImageError, match="440 x 300"):
        load_reduced(content, 100, max_pixels=1000)
