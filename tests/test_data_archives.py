"""Archives: the table in them, and those that are cut off, damaged, ambiguous or hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facefiles import drawn_csv, pack, write_faces, zip_folder
from ferkit.core.errors import DataError
from ferkit.core.images import encode_image
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


def test_a_name_in_a_zip_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Found by the fuzzer: the name is marked as UTF-8 and is none."""
    path = zip_of(tmp_path / "f.zip", {"train/é/1.png": b"", "train/b/2.png": b""})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xfa\xfa"))
    with pytest.raises(DataError, match=r"f\.zip: the file is damaged"):
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
            r"holds 2 \.csv files \(test\.csv, train\.csv\); unpack it",
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


def test_backslashes_in_the_names_of_a_zip_are_separators(tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "d", [f"{part}/{x}/1.png" for part in ("train", "val") for x in "ab"])
    members = {
        str(file.relative_to(folder)).replace("/", "\\"): file.read_bytes() for file in folder.rglob("*.png")
    }
    dataset = load_data(zip_of(tmp_path / "f.zip", {"train\\a\\": b"", **members}), cache=False)
    assert dataset.fingerprint == load_data(folder, cache=False).fingerprint
    assert len(load_data(zip_of(tmp_path / "t.zip", {"x\\fer2013.csv": TABLE}), cache=False)) == 42


SYSTEM = [
    *("@eaDir/a/1.png", "a/@eaDir/1.png", "$RECYCLE.BIN/1.png", "__MACOSX/a/._1.png", "a/#recycle/1.png"),
    *(".ipynb_checkpoints/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "System Volume Information/x.png"),
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_folders_of_operating_systems_and_programs_are_ignored(tmp_path: Path, kind: str) -> None:
    source = write_faces(tmp_path / "d", [f"{part}/{x}/1.png" for part in ("train", "val") for x in "ab"])
    expected = load_data(source, cache=False).fingerprint
    for name in SYSTEM:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"no picture")
    (source / "@eaDir" / "empty").mkdir()
    if kind != "folder":
        source = zip_folder(source, tmp_path / f"d.{kind}")
    assert load_data(source, cache=False).fingerprint == expected


def test_a_folder_with_the_characters_of_patterns_in_its_name_is_read(tmp_path: Path) -> None:
    source = write_faces(tmp_path / "[2020]*?", [f"val/{x}/[{k}].png" for x in "ab" for k in range(2)])
    for _ in range(2):
        assert len(load_data(source, cache=tmp_path / "[cache]")) == 4


def arrays(**stored: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **stored) if len(stored) > 1 else np.save(stream, stored["a"])
    return stream.getvalue()


PNG = encode_image(np.zeros((8, 8), np.uint8))
OTHER_TYPES = {
    "a pickle": (pickle.dumps([1]), "of type pickle", "run code"),
    "an array": (arrays(a=np.zeros(3)), "of type NumPy", "save it as .csv"),
    "a rar": (b"Rar!\x1a\x07\x01\x00" + bytes(99), "of type RAR", "unpack it"),
    "a 7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "of type 7z", "unpack it"),
    "a zstd": (b"\x28\xb5\x2f\xfd" + bytes(99), "of type Zstandard", "unpack it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "of type HDF5", "save it as .csv"),
    "a picture": (PNG, "of type PNG", "one folder of pictures per label"),
    "a web page": (b"\n<!DOCTYPE html><html>Please log in", "of type web page", "fetch the file again"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
    "UTF-16": (TABLE.decode().encode("utf-16"), "binary, of an unknown type", "UTF-8"),
    "a packed picture": (gzip.compress(PNG), "PNG, packed with gzip", "unpack it first"),
}


@pytest.mark.parametrize(("content", "what", "advice"), OTHER_TYPES.values(), ids=OTHER_TYPES.keys())
@pytest.mark.parametrize("name", ["fer2013.csv", "fer2013.csv.gz", "data"])
def test_files_of_other_types_are_named_with_what_to_do(
    tmp_path: Path, content: bytes, what: str, advice: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / name, cache=False)
    assert str(tmp_path / name) in str(caught.value)
    assert what in str(caught.value)
    assert advice in str(caught.value)


def test_a_source_is_read_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    packings = {
        "plain.csv.gz": TABLE,
        "packed.csv": gzip.compress(TABLE),
        "fer2013.csv.bz2": bz2.compress(TABLE),
        "download": pack(TABLE, tmp_path / "x.zip").read_bytes(),
        "download.csv": pack(TABLE, tmp_path / "x.tar.xz").read_bytes(),
        "bm.csv": b"BM,pixels,emotion\n" + b"".join(b"x," + b" ".join([b"7"] * 64) + b",3\n" for _ in "ab"),
    }
    for name, content in packings.items():
        (tmp_path / name).write_bytes(content)
        assert len(load_data(tmp_path / name, cache=False)) == (2 if name == "bm.csv" else 42), name
