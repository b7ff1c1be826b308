"""The type of a file by its first bytes, whatever its name says."""

from __future__ import annotations

import re

HEAD_BYTES = 512
"""Bytes from the start of a file that :func:`file_type` needs."""

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WebP"),
    *((0, mark, "TIFF") for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    *((0, mark, "JPEG XL") for mark in (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (8, b"AVI ", "video"),
    (0, b"\x1aE\xdf\xa3", "video"),
    *((0, mark, "zip") for mark in (b"PK\x03\x04", b"PK\x05\x06")),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"BZh", "bzip2"),
    (257, b"ustar", "tar"),
    (0, b"Rar!", "RAR"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard"),
    (0, b"PAR1", "Parquet"),
    *((0, mark, "Arrow") for mark in (b"ARROW1", b"FEA1")),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"\x89HDF\r\n", "HDF5"),
    (0, b"SQLite format 3", "SQLite"),
    (0, b"\xd0\xcf\x11\xe0", "Microsoft Office"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
)
_PICTURE_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}


def file_type(head: bytes) -> str:
    r"""Return the type of a file, such as ``JPEG``, ``zip`` or ``pickle``; ``""`` for text and unknown types.

    Args:
        head: The first :data:`HEAD_BYTES` bytes of the file, or all of them.

    Example:
        >>> file_type(b"\x89PNG\r\n\x1a\n"), file_type(b"emotion,pixels")
        ('PNG', '')
    """
    for offset, mark, name in _SIGNATURES:
        if head.startswith(mark, offset):
            return name
    if head[4:8] == b"ftyp":
        # The main brand, then those that the file is compatible with.
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[k : k + 4] for k in range(16, end, 4))}
        return next((name for name, known in _PICTURE_BRANDS.items() if brands & known), "video")
    if re.match(rb"\x80[\x02-\x05]", head):
        return "pickle"
    return "web page" if re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE) else ""
