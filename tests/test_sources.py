"""Which photos files, folders, patterns and lists stand for."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ferkit.batch.copies import CopyNames, sign, signature
from ferkit.batch.sources import Lookup, find_photos, is_photo, read_list
from ferkit.core.errors import ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.tif", ".git/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def found(folder: Path, *names: str, leave_out: Path | None = None) -> list[str]:
    """Paths relative to the folder; errors by their text."""
    given = [name if name in ("-",) or ":" in name else str(folder / name) for name in names]
    results = []
    for item in find_photos(given, leave_out=leave_out):
        text = str(item)
        results.append(text.replace(str(folder) + os.sep, "").replace(os.sep, "/"))
    return results


def test_a_folder_stands_for_all_photos_in_it_and_below(folder: Path) -> None:
    assert found(folder, ".") == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tif"]


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "__MACOSX"])
def test_folders_of_operating_systems_are_left_out(folder: Path, name: str) -> None:
    (folder / name / "b.jpg").mkdir(parents=True)  # a NAS keeps a folder of thumbnails per photo
    (folder / name / "b.jpg" / "thumbnail.jpg").write_bytes(b"x")
    assert found(folder, ".") == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tif"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["b.jpg"]),
        ("*", ["a.PNG", "b.jpg"]),
        ("**/*", ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tif"]),
        ("sub/?.webp", ["sub/c.webp"]),
        ("[ab].*", ["a.PNG", "b.jpg"]),
    ],
)
def test_a_pattern_stands_for_all_photos_that_match(folder: Path, pattern: str, names: list[str]) -> None:
    assert found(folder, pattern) == names


def test_a_named_file_may_have_any_suffix_and_need_not_exist(folder: Path) -> None:
    """A missing file is an error when it is read, like a damaged one."""
    assert found(folder, "notes.txt", "absent.jpg", "-") == ["notes.txt", "absent.jpg", "-"]


def test_an_existing_file_with_wildcards_in_its_name_is_itself(folder: Path) -> None:
    (folder / "face[1].jpg").write_bytes(b"x")
    (folder / "face1.jpg").write_bytes(b"x")
    assert found(folder, "face[1].jpg") == ["face[1].jpg"]


def test_photos_of_folders_and_patterns_come_once_and_files_as_often_as_they_are_named(folder: Path) -> None:
    assert found(folder, "b.jpg", "*.jpg", "sub", "sub/*") == ["b.jpg", "sub/c.webp", "sub/deep/d.tif"]
    assert found(folder, "b.jpg", "b.jpg") == ["b.jpg", "b.jpg"]


def test_a_folder_can_be_left_out(folder: Path) -> None:
    assert found(folder, ".", leave_out=folder / "sub") == ["a.PNG", "b.jpg"]
    assert found(folder, "**/*", leave_out=folder / "sub") == ["a.PNG", "b.jpg"]


def write_copy(path: Path, source: Path) -> None:
    path.write_bytes(sign(b"picture", signature(source)))


@pytest.mark.parametrize("name", [".", "*", "**/*"])
def test_copies_in_the_folder_that_is_searched_are_left_out(folder: Path, name: str) -> None:
    """A known fault: `predict . --annotate .` read nothing, and called the folder one without photos."""
    (folder / "team-faces.jpg").write_bytes(b"x")  # the user's
    before = found(folder, name, leave_out=folder)
    assert before == found(folder, name)
    names = CopyNames(folder)
    for photo in before:
        write_copy(names.choose(folder / photo), folder / photo)
    assert len(found(folder, name)) == 2 * len(before)
    assert found(folder, name, leave_out=folder) == before


def test_copies_of_photos_with_the_same_name_are_left_out(folder: Path) -> None:
    (folder / "sub" / "b.jpg").write_bytes(b"x")
    (folder / "x.gif").write_bytes(b"x")  # its copy is a PNG
    names = CopyNames(folder)
    copies = []
    for photo in (folder / "b.jpg", folder / "sub" / "b.jpg", folder / "x.gif"):
        copies.append(names.choose(photo))
        write_copy(copies[-1], photo)
    assert [copy.name for copy in copies] == ["b-faces.jpg", "b-faces-2.jpg", "x-faces.png"]
    assert found(folder, ".", leave_out=folder) == ["a.PNG", "b.jpg", "x.gif", *found(folder, "sub")]
    assert found(folder, "b-faces.jpg", leave_out=folder) == ["b-faces.jpg"]  # named itself


def test_a_copy_that_was_edited_is_a_photo(folder: Path) -> None:
    write_copy(folder / "b-faces.jpg", folder / "b.jpg")
    assert found(folder, "*.jpg", leave_out=folder) == ["b.jpg"]
    with (folder / "b-faces.jpg").open("ab") as copy:
        copy.write(b"edit")
    assert found(folder, "*.jpg", leave_out=folder) == ["b-faces.jpg", "b.jpg"]


def test_a_folder_inside_the_folder_of_copies_is_searched(folder: Path) -> None:
    assert found(folder, "sub", leave_out=folder) == ["sub/c.webp", "sub/deep/d.tif"]
    assert found(folder, "sub/*", leave_out=folder / "sub") == ["sub/c.webp"]
    (error,) = found(folder, "s*/*", leave_out=folder / "sub")
    assert error.startswith("no photo besides annotated copies matches")


def test_a_folder_of_annotated_copies_alone_is_an_error(folder: Path) -> None:
    (folder / "sub" / "c.webp").unlink()
    (error,) = found(folder, "sub", leave_out=folder / "sub" / "deep")
    assert "is a folder without photos besides annotated copies" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*.bmp", "no photo matches"),
        ("nowhere/*.jpg", "no photo matches"),
        ("empty", "is a folder without photos"),
        ("http://example.org/a.jpg", "nothing is fetched"),
        ("HTTPS://example.org/*.jpg", "nothing is fetched"),
    ],
)
def test_a_name_without_photos_is_an_error(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    given = name if "://" in name else str(folder / name)
    error, after = find_photos([given, str(folder / "b.jpg")])
    assert isinstance(error, ImageError)
    assert message in str(error)
    assert after == str(folder / "b.jpg")


@pytest.mark.parametrize(
    ("name", "before"), [(".", ["a.PNG", "b.jpg", "sub/c.webp"]), ("sub/deep", [])], ids=["below", "itself"]
)
def test_a_folder_that_cannot_be_read_is_an_error_and_the_others_are_searched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: list[str]
) -> None:
    """A known fault: it was skipped silently, or called a folder without photos."""
    scan = os.scandir

    # Permissions do not bind root, and tests may run as root.
    def refuse(path: str) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    *photos, error = find_photos([str(folder / name), str(folder / name)])
    assert [os.path.relpath(str(photo), folder).replace(os.sep, "/") for photo in photos] == before
    assert isinstance(error, ImageError)
    assert re.search(r"cannot read the folder .*deep: Permission denied$", str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_that_links_to_itself_is_searched_once(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder)
    assert found(folder, "sub") == ["sub/c.webp", "sub/deep/d.tif"]


def test_listed_files_are_themselves_and_come_last(folder: Path) -> None:
    listed = [str(folder / name) for name in ("*.jpg", "sub", "sub/c.webp")]
    photos = list(find_photos([str(folder / "sub")], listed=listed))
    assert photos == [str(folder / "sub" / "c.webp"), str(folder / "sub" / "deep" / "d.tif"), *listed]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", []),
        (b"\n\r\n", []),
        (b"a.jpg", ["a.jpg"]),
        (b"a 1.jpg\n[b]*.jpg\n", ["a 1.jpg", "[b]*.jpg"]),
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),  # as editors on Windows write it
        (b"a\nb.jpg\0 c.jpg \0", ["a\nb.jpg", " c.jpg "]),
        (b"-\n", ["./-"]),
        ("\ufeffä.jpg\r\nb.jpg\r\n".encode("utf-16-le"), ["ä.jpg", "b.jpg"]),  # as PowerShell writes it
        ("\ufeffä.jpg\n-\n".encode("utf-16-be"), ["ä.jpg", "./-"]),
    ],
)
def test_a_list_has_one_path_a_line_or_nul_bytes_between_paths(content: bytes, names: list[str]) -> None:
    assert read_list(content) == names


def test_the_first_photo_comes_before_all_folders_are_searched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: all folders were searched before the first photo was read."""
    scanned = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scan(path))
    photos = find_photos([str(folder), str(folder / "sub")])
    assert scanned == []
    assert next(photos) == str(folder / "a.PNG")
    assert scanned == [str(folder)]
    assert len(list(photos)) == 3
    assert len(scanned) == 5  # three folders, and two of them again


@pytest.mark.parametrize("pattern", ["", "**/*.jpg"])
def test_a_stop_ends_the_search_without_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """A known fault: Ctrl-C had no effect while folders without photos were searched."""
    for k in range(20):
        (tmp_path / f"{k}").mkdir()
        (tmp_path / f"{k}" / "a.jpg").write_bytes(b"x")
    stop = threading.Event()
    scanned = []
    scan = os.scandir

    def stop_and_scan(path: Any) -> Any:
        scanned.append(path)
        stop.set()
        return scan(path)

    monkeypatch.setattr(os, "scandir", stop_and_scan)
    assert list(find_photos([str(tmp_path / pattern), str(tmp_path)], stop=stop)) == []
    assert 1 <= len(scanned) <= 4  # of a pattern those up to its first match, of a folder itself


def test_the_folders_of_a_path_are_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known fault: each folder was resolved again for every photo in it."""
    for k in range(200):
        (tmp_path / f"{k}.jpg").write_bytes(b"x")
    asked = 0
    resolve = os.path.realpath

    def counted(path: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return resolve(path, **options)

    monkeypatch.setattr(os.path, "realpath", counted)
    assert len(list(find_photos([str(tmp_path), str(tmp_path / "*")]))) == 200
    assert asked <= (400 if sys.platform == "win32" else 4)


def test_photos_of_unsupported_formats_are_counted_once(folder: Path) -> None:
    """A known fault: a folder from a phone was read in part, without a message."""
    for name in ("1.heic", "sub/2.HEIC", "sub/3.CR2", ".4.heic"):
        (folder / name).write_bytes(b"x")
    passed_over: dict[str, int] = {}
    photos = list(find_photos([str(folder), str(folder / "*.heic")], passed_over=passed_over))
    assert [Path(str(photo)).name for photo in photos[:-1]] == ["a.PNG", "b.jpg", "c.webp", "d.tif"]
    assert "no photo matches" in str(photos[-1])
    assert passed_over == {".heic": 2, ".cr2": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_photo_and_links_to_it_come_once(folder: Path) -> None:
    (folder / "z.jpg").symlink_to(folder / "b.jpg")
    (folder / "linked").symlink_to(folder / "sub")
    assert found(folder, "b.jpg", "z*", "linked/../b.*", "sub/deep", "linked/deep/*") == [
        "b.jpg",
        "sub/deep/d.tif",
    ]


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000 + ".jpg", ""])
def test_unusual_names_are_passed_on(name: str) -> None:
    assert list(find_photos([name])) == [name]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.jpeg", True),
        ("a.jfif", True),
        ("a/b.TIFF", True),
        (".a.jpg", False),
        ("a.mp4", False),
        ("jpg", False),
    ],
)
def test_photos_are_recognized_by_their_suffix(name: str, counts: bool) -> None:
    assert is_photo(name) is counts


def test_a_lookup_counts_photos_ahead_of_their_use(folder: Path) -> None:
    lookup = Lookup(find_photos([str(folder)]), threading.Event())
    photos = iter(lookup)
    first = next(photos)
    for _ in range(1000):  # the thread needs a moment
        if lookup.complete:
            break
        time.sleep(0.01)
    assert (lookup.found, lookup.total) == (4, "4")
    assert [first, *photos] == list(find_photos([str(folder)]))


def test_a_lookup_that_was_stopped_is_not_complete(folder: Path) -> None:
    stop = threading.Event()
    lookup = Lookup(find_photos([str(folder)], stop=stop), stop)
    stop.set()
    assert list(lookup) == []
    assert lookup.total == "at least 0"


def test_an_error_of_the_search_is_raised_where_photos_are_taken(folder: Path) -> None:
    """A known fault: it ended the thread, and the photos after it were missing without a message."""

    def search() -> Any:
        yield str(folder / "b.jpg")
        raise ZeroDivisionError

    photos = iter(Lookup(search(), threading.Event()))
    assert next(photos) == str(folder / "b.jpg")
    with pytest.raises(ZeroDivisionError):
        next(photos)


@pytest.mark.parametrize("name", ["x" * 300 + "*.jpg", "x" * 5000 + "/*.jpg"])
def test_a_pattern_longer_than_a_name_may_be_is_an_error(folder: Path, name: str) -> None:
    """A known fault: it ended the search."""
    error, after = find_photos([str(folder / name), str(folder / "b.jpg")])
    assert isinstance(error, ImageError)
    assert "no photo matches" in str(error)
    assert after == str(folder / "b.jpg")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_that_cannot_be_searched_does_not_end_the_search(folder: Path) -> None:
    (folder / "sub").chmod(0)
    try:
        *_, last = find_photos([str(folder / "sub" / "deep" / "*.jpg"), str(folder / "b.jpg")])
    finally:
        (folder / "sub").chmod(0o700)
    assert last == str(folder / "b.jpg")
