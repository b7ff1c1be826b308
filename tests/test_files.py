"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ferkit.core.errors import OutputError
from ferkit.core.files import replacing, write_bytes, write_json, write_text


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
def test_after_an_error_the_old_file_is_kept_and_no_temporary_file(
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


def refuse(path: Path, error: OSError) -> None:
    with replacing(path) as temporary:
        temporary.write_text("new")
        raise error


def test_a_broken_pipe_is_never_that_of_a_file(tmp_path: Path) -> None:
    """A known fault: `--csv a.csv --jsonl - | head` was reported as an error of a.csv."""
    with pytest.raises(BrokenPipeError):
        refuse(tmp_path / "a.csv", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_keeps_the_file_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(OutputError, match=r"cannot write .*a\.csv: No space left on device$"):
        refuse(path, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OutputError, match=r"cannot write .*a\.csv: other\.csv: No such file$"):
        refuse(path, FileNotFoundError(errno.ENOENT, "No such file", "other.csv"))
    with pytest.raises(OutputError, match=r"cannot write .*a\.csv: Is a directory$"):
        refuse(path, IsADirectoryError(errno.EISDIR, "Is a directory", str(path)))


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows tests it by itself: it refuses what this looks for"
)
def test_what_is_brought_to_disk_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    modes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL)))
    write_text(tmp_path / "a", "x")
    assert [mode & os.O_ACCMODE for mode in modes] == [os.O_RDWR]
    assert (tmp_path / "a").read_text() == "x"


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


@pytest.mark.skipif(sys.platform == "win32", reason="rights are those of Unix")
def test_the_mode_of_new_files_is_found_without_changing_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: for a moment the umask was 0, and what another thread made then was writable by all."""
    masks: list[int] = []
    change = os.umask

    def umask(mask: int) -> int:
        masks.append(mask)
        return change(mask)

    monkeypatch.setattr(os, "umask", umask)
    write_text(tmp_path / "a", "x")
    assert masks == []


@pytest.mark.skipif(sys.platform == "win32", reason="rights are those of Unix")
@pytest.mark.parametrize("rights", [0o600, 0o664, 0o400, 0o755])
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path, rights: int) -> None:
    """A known fault: a file that only its owner could read was open to all after the next run."""
    path, link = tmp_path / "a.csv", tmp_path / "link.csv"
    path.write_text("old")
    path.chmod(rights)
    link.symlink_to(path)
    for name in (path, link):
        with replacing(name) as temporary:
            assert temporary.stat().st_mode & 0o077 == 0  # nor is it open to others meanwhile
            temporary.write_text(str(name))
        assert path.read_text() == str(name)
        assert path.stat().st_mode & 0o777 == rights


@pytest.mark.skipif(sys.platform == "win32", reason="rights are those of Unix")
@pytest.mark.parametrize("refused", [[], ["owner"], ["owner", "group"]])
def test_a_file_that_is_replaced_keeps_its_owner_and_group_as_far_as_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]
) -> None:
    """A known fault: a file for one group, written anew by the administrator, was closed to that group."""
    path = tmp_path / "a.csv"
    path.write_text("old")
    path.chmod(0o640)
    owner, group = path.stat().st_uid, path.stat().st_gid
    calls: list[tuple[int, int, int]] = []

    def chown(given: Path, uid: int, gid: int) -> None:
        calls.append((uid, gid, Path(given).stat().st_mode & 0o777))
        if len(calls) <= len(refused):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    write_text(path, "new")
    closed = 0o600  # until it has its group: the rights are not those of another's
    assert calls == [(owner, group, closed), (-1, group, closed)][: len(refused) + 1]
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="other limits of a name's length")
@pytest.mark.parametrize("stem", ["x" * 251, "ä" * 125 + "x", "x"])
def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path, stem: str) -> None:
    """A known fault: the temporary name was longer than the one that was asked for."""
    path = tmp_path / f"{stem}.csv"
    write_text(path, "content")
    assert path.read_text() == "content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="other limits of a name's length")
def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path: Path) -> None:
    begun = False
    with pytest.raises(OutputError, match="too long"), replacing(tmp_path / f"{'x' * 252}.csv"):
        begun = True
    assert not begun


def test_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    """A known fault: the work was done, and could not be written."""
    begun = False
    with pytest.raises(OutputError, match=r"cannot write .*: Is a directory"), replacing(tmp_path):
        begun = True
    assert not begun


@pytest.mark.skipif(sys.platform == "win32", reason="rights are those of Unix")
def test_content_for_a_pipe_is_private() -> None:
    with replacing(os.devnull) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600


needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are those of Unix")


@needs_links
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    real, link, dangling = tmp_path / "data" / "real.json", tmp_path / "link.json", tmp_path / "new.json"
    write_text(real, "old")
    link.symlink_to(Path("data") / "real.json")
    dangling.symlink_to(tmp_path / "data" / "late.json")
    write_text(link, "new")
    write_text(dangling, "late")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert real.read_text() == "new"
    assert sorted(path.name for path in real.parent.iterdir()) == ["late.json", "real.json"]


@needs_links
def test_a_pipe_stays_and_gets_the_content(tmp_path: Path) -> None:
    """A known fault: the pipe was replaced by a file, and its reader waited for ever."""
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_bytes(pipe, b"x" * 200_000)
    reader.join(10)
    assert got == [b"x" * 200_000]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@needs_links
def test_a_device_stays_and_gets_the_content(tmp_path: Path) -> None:
    # Through a link: where the test fails, and runs as root, the link is lost and not the device.
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_text(link, "x")
    assert link.is_char_device()
    assert list(tmp_path.iterdir()) == [link]


@needs_links
def test_the_standard_output_by_its_name_gets_the_content() -> None:
    code = "from ferkit.core.files import write_text; write_text('/dev/stdout', 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "x"


@needs_links
def test_nothing_goes_into_a_device_after_an_error() -> None:
    code = "from ferkit.core.files import write_json; write_json('/dev/stdout', [1, float('nan')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert "ValueError" in done.stderr


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*x\.json: "):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_file_name_that_is_no_text_is_written_as_an_escape(tmp_path: Path) -> None:
    """A known fault: a photo of such a name ended `evaluate --photos` in a traceback, after all the work."""
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "a.json", {"source": name, "größe": 1})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"source": name, "größe": 1}
    write_text(tmp_path / "a.csv", f"{name},größe\n")
    assert (tmp_path / "a.csv").read_text("utf-8") == "caf\\udce9.png,größe\n"


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
