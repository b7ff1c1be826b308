"""Files appear whole or not at all."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from ferkit.errors import OutputError
from ferkit.files import replacing, write_bytes, write_json, write_text


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    """A known fault of others: half of a file, taken for the whole by the next who looks."""
    path = tmp_path / "new" / "model.onnx"
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent  # renaming across file systems would copy
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stands_and_nothing_lies_about(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_meanwhile_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = {bytes([k]) * 200_000 for k in range(4)}
    write_bytes(path, next(iter(contents)))
    done = threading.Event()
    odd: list[int] = []

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            if content not in contents:
                odd.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            write_bytes(path, content)
    done.set()
    reader.join()
    assert odd == []


@pytest.mark.skipif(sys.platform == "win32", reason="rights are those of Unix")
def test_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*x\.json: "):
        write_json(tmp_path / "file" / "x.json", {})


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
