"""Archives: the table in them, and those that are cut off, damaged, ambiguous or hostile."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from facefiles import drawn_csv, pack, write_faces, zip_folder
from ferkit.core.errors import DataError
from ferkit.data import load_data
from ferkit.data.archives import list_members

PACKED = ["f.csv.gz", "f.csv.xz", "f.zip", "f.tar.gz", "f.tar.xz", "f.tar"]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_truncated_archive_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    path = pack(drawn_csv(140).encode(), tmp_path / name)
    whole = path.read_bytes()
    # a tar ends in zeros that nobody misses; its last face is what is cut off here
    path.write_bytes(whole[: int(len(whole.rstrip(b"\0")) * share)])
    with pytest.raises(DataError) as caught:
        load_data(path, cache=tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_is_no_archive_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no archive\n" * 40)
    with pytest.raises(DataError, match="line 1: no column 'emotion'") as caught:
        load_data(path, cache=False)
    assert str(path) in str(caught.value)
    assert "this is no archive" in str(caught.value), "what it holds is shown"


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = pack(drawn_csv(140).encode(), tmp_path / "f.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"f\.zip"):
        load_data(path, cache=False)


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


TABLE = drawn_csv().encode()


@pytest.mark.parametrize(
    ("members", "faces"),
    [
        ({"fer2013.csv": TABLE, "fer2013new.csv": b"x", "README": b"y"}, 42),
        ({"icml_face_data.csv": TABLE, "train.csv": b"x", "test.csv": b"z"}, 42),
        ({"__MACOSX/._data.csv": b"x", "data.csv": TABLE}, 42),
        ({"fer2013/fer2013.csv": TABLE, "fer2013/example.png": b"x"}, 42),
    ],
)
def test_the_table_is_found_beside_other_files(tmp_path: Path, members: dict[str, bytes], faces: int) -> None:
    assert len(load_data(zip_of(tmp_path / "f.zip", members), cache=False)) == faces


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            {"train.csv": TABLE, "test.csv": TABLE},
            r"holds 2 \.csv files \(train\.csv, test\.csv\); unpack it",
        ),
        ({"a/fer2013.csv": TABLE, "b/fer2013.csv": TABLE}, r"holds 2 \.csv files"),
        ({"README": b"nothing"}, r"holds no \.csv file; it holds README"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_with_several_tables_or_none_is_refused(
    tmp_path: Path, members: dict[str, bytes], words: str, kind: str
) -> None:
    path = tmp_path / f"f.{kind}"
    if kind == "zip":
        zip_of(path, members)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=words):
        load_data(path, cache=False)


def test_a_zip_whose_table_says_that_it_is_huge_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(b"emotion,pixels,Usage\n", tmp_path / "bomb.zip")
    content = bytearray(path.read_bytes())
    # the unpacked size stands 24 bytes into the entry of the central directory: four bytes, just under 4 GiB
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr("ferkit.data.archives.MAX_TABLE_BYTES", 1 << 30)
    with pytest.raises(DataError, match="unpacks to more than"):
        load_data(path, cache=False)


def test_a_picture_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    # 65 MiB of zeros take 65 KB in the zip
    path = zip_of(tmp_path / "bomb.zip", {"happy/1.png": b"\0" * (65 << 20), "sad/1.png": b"\0"})
    with pytest.raises(DataError, match=r"'happy/1\.png' is larger than 64 MiB"):
        load_data(path, cache=False)


@pytest.mark.parametrize("name", ["f.zip", "f.tar.gz"])
@pytest.mark.parametrize("limit", ["MAX_TOTAL_BYTES", "MAX_MEMBERS"])
def test_an_archive_of_too_many_files_or_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: str
) -> None:
    path = zip_folder(
        write_faces(tmp_path / "d", [f"{c}/{k}.png" for c in "ab" for k in (1, 2)]), tmp_path / name
    )
    monkeypatch.setattr(f"ferkit.data.archives.{limit}", 3)
    with pytest.raises(DataError, match="more than"):
        list_members(path)


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.csv file; it holds nothing"):
        load_data(zip_of(tmp_path / "f.zip", {}), cache=False)


def test_an_encrypted_zip_is_refused_with_advice(tmp_path: Path) -> None:
    path = pack(drawn_csv().encode(), tmp_path / "f.zip")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the file's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the central directory
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"encrypted.*unpack it first"):
        load_data(path, cache=False)


def test_links_that_go_in_circles_do_not_hang_the_listing(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["happy/1.png", "sad/1.png"])
    (tmp_path / "d" / "happy" / "again").symlink_to(tmp_path / "d")
    with pytest.raises(DataError, match="its label is unknown"):
        load_data(tmp_path / "d", cache=False)
