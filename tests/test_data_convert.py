"""Writing data sets: what is written is read back, and appears whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from facefiles import drawn_csv, pack, write_faces, zip_folder
from ferkit.core.errors import DataError, OutputError
from ferkit.core.taxonomy import Taxonomy
from ferkit.data import FaceDataset, load_data, make_dataset
from ferkit.data.convert import format_of, write_dataset


@pytest.fixture(scope="module")
def faces() -> FaceDataset:
    return load_data("cartoon:63:4", cache=False)


def without_votes(dataset: FaceDataset) -> FaceDataset:
    return make_dataset(dataset.images, dataset.labels, dataset.split, dataset.taxonomy, source="x")


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz"])
def test_a_csv_and_its_votes_read_back_the_same(faces: FaceDataset, tmp_path: Path, name: str) -> None:
    write_dataset(faces, tmp_path / name, votes=tmp_path / "votes.csv")
    again = load_data(tmp_path / name, votes=tmp_path / "votes.csv", cache=False)
    assert again.fingerprint == faces.fingerprint


def test_a_csv_has_the_layout_of_fer2013(faces: FaceDataset, tmp_path: Path) -> None:
    write_dataset(faces, tmp_path / "f.csv")
    assert (tmp_path / "f.csv").read_text() == drawn_like(faces)


def drawn_like(dataset: FaceDataset) -> str:
    """The csv as FER2013's authors would have written it."""
    names = ("Training", "PublicTest", "PrivateTest")
    rows = [
        f"{label},{' '.join(map(str, image.ravel().tolist()))},{names[split]}"
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split, strict=True)
    ]
    return "\n".join(["emotion,pixels,Usage", *rows]) + "\n"


def test_a_packed_csv_is_the_same_file_each_time(faces: FaceDataset, tmp_path: Path) -> None:
    write_dataset(faces, tmp_path / "a.csv.gz")
    write_dataset(faces, tmp_path / "b.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_an_npz_keeps_everything(faces: FaceDataset, tmp_path: Path) -> None:
    write_dataset(faces, tmp_path / "f.npz")
    again = load_data(tmp_path / "f.npz", cache=False)
    assert again.fingerprint == faces.fingerprint
    np.testing.assert_array_equal(again.votes, faces.votes)


@pytest.mark.parametrize("packed", [None, "d.zip", "d.tar.gz"])
def test_folders_keep_pixels_labels_and_splits(
    faces: FaceDataset, tmp_path: Path, packed: str | None
) -> None:
    write_dataset(faces, tmp_path / "d")
    source = tmp_path / "d" if packed is None else zip_folder(tmp_path / "d", tmp_path / packed)
    again = load_data(source, cache=False)
    assert again.taxonomy == faces.taxonomy
    assert contents(again) == contents(faces)


def contents(dataset: FaceDataset) -> set[tuple[bytes, int, int]]:
    """Images with label and split, in no order."""
    rows = zip(dataset.images, dataset.labels, dataset.split, strict=True)
    return {(image.tobytes(), int(label), int(split)) for image, label, split in rows}


def test_custom_labels_survive_folders_and_npz(tmp_path: Path) -> None:
    write_faces(tmp_path / "in", [f"{label}/{k}.png" for label in ("smile", "frown") for k in range(5)])
    first = load_data(tmp_path / "in", cache=False)
    for out in ("d", "f.npz"):
        write_dataset(first, tmp_path / out)
        again = load_data(tmp_path / out, cache=False)
        assert again.taxonomy == first.taxonomy
        assert contents(again) == contents(first)


def test_custom_labels_are_not_written_as_fer2013s_numbers(tmp_path: Path) -> None:
    own = make_dataset(
        np.zeros((2, 8, 8), np.uint8),
        np.array([0, 1]),
        np.zeros(2, np.uint8),
        Taxonomy("own", ("a", "b")),
        source="x",
    )
    with pytest.raises(DataError, match="holds FER2013 labels"):
        write_dataset(own, tmp_path / "f.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", "csv"), ("A.CSV.GZ", "csv"), ("a.npz", "npz"), ("faces", "folder"), ("a.b", "folder")],
)
def test_the_layout_follows_from_the_name(name: str, kind: str) -> None:
    assert format_of(Path(name)) == kind


@pytest.mark.parametrize("name", ["f.csv", "f.npz", "d"])
def test_what_is_there_is_not_written_over(faces: FaceDataset, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "d":
        path.mkdir()
        path = path / "kept.txt"
    path.write_text("kept")
    with pytest.raises(OutputError, match="exists"):
        write_dataset(faces, tmp_path / name)
    assert path.read_text() == "kept"


def test_a_file_is_replaced_on_request_and_a_folder_never(faces: FaceDataset, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("old")
    write_dataset(faces, tmp_path / "f.csv", overwrite=True)
    assert len(load_data(tmp_path / "f.csv", cache=False)) == 63
    (tmp_path / "f.npz").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        write_dataset(faces, tmp_path / "f.npz", overwrite=True)
    write_dataset(faces, tmp_path / "empty")
    with pytest.raises(OutputError, match="not empty"):
        write_dataset(faces, tmp_path / "empty", overwrite=True)


@pytest.mark.parametrize("name", ["file/f.csv", "file/f.npz", "file/d"])
def test_a_target_that_cannot_be_written_is_an_error_and_leaves_nothing(
    faces: FaceDataset, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot write"):
        write_dataset(faces, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_label_that_cannot_name_a_folder_is_refused(tmp_path: Path) -> None:
    odd = make_dataset(
        np.zeros((2, 8, 8), np.uint8),
        np.array([0, 1]),
        np.zeros(2, np.uint8),
        Taxonomy("own", ("a/b", "c")),
        source="x",
    )
    with pytest.raises(DataError, match="'a/b' cannot name a folder"):
        write_dataset(odd, tmp_path / "d")


def test_votes_that_are_not_there_cannot_be_written(faces: FaceDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no votes"):
        write_dataset(without_votes(faces), tmp_path / "f.csv", votes=tmp_path / "v.csv")
    assert list(tmp_path.iterdir()) == []


def spoiled_npz(path: Path, faces: FaceDataset, **changes: object) -> Path:
    """An .npz with some of its arrays replaced; None leaves one out."""
    arrays: dict[str, object] = {
        "images": faces.images,
        "labels": faces.labels,
        "split": faces.split,
        "taxonomy": np.array([faces.taxonomy.id, *faces.taxonomy.labels]),
    }
    arrays |= changes
    np.savez(path, allow_pickle=True, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "no array 'labels'"),
        ({"images": np.zeros((63, 8, 8))}, "images must be uint8. Received: float64"),
        ({"images": np.zeros((63, 8, 9), np.uint8)}, "images must be"),
        ({"labels": np.full(63, 7)}, "labels of fer2013 must be in 0..6"),
        ({"labels": np.zeros(5, np.int64)}, "63 images need 63 labels"),
        ({"split": np.full(63, 3, np.uint8)}, "split codes"),
        ({"taxonomy": np.array(["own", "one"])}, "at least two labels"),
        ({"taxonomy": np.array([])}, "a taxonomy's id"),
        ({"labels": np.array([{}], object)}, "allow_pickle"),
        ({"split_named": np.array(1.0)}, "split_named must be bool. Received: float64"),
    ],
)
def test_an_npz_with_wrong_arrays_is_refused(
    faces: FaceDataset, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_data(spoiled_npz(tmp_path / "f.npz", faces, **changes), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("named", [True, False])
def test_an_npz_keeps_whether_the_splits_were_named(tmp_path: Path, named: bool) -> None:
    names = [f"{'val/' if named and k > 7 else 'train/'}{label}/{k}.png" for label in "ab" for k in range(9)]
    first = load_data(write_faces(tmp_path / "in", names), cache=False)
    write_dataset(first, tmp_path / "f.npz")
    for _ in range(2):  # read, then from the cache
        again = load_data(tmp_path / "f.npz", cache=tmp_path / "cache")
        assert again.split_named is first.split_named is named
        assert contents(again) == contents(first)


def test_the_splits_of_an_npz_without_that_record_count_as_named(faces: FaceDataset, tmp_path: Path) -> None:
    assert load_data(spoiled_npz(tmp_path / "f.npz", faces), cache=False).split_named


@pytest.mark.parametrize(
    "header", ["{'descr': (", "{'descr': '|O', 'fortran_order': False, 'shape': (7,)}", "\x00"]
)
def test_an_npz_with_a_damaged_header_of_an_array_is_refused(
    faces: FaceDataset, tmp_path: Path, header: str
) -> None:
    """Found by the fuzzer: NumPy's TokenError left ferkit."""
    write_dataset(faces, tmp_path / "f.npz")
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["labels.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"f\.npz: "):
        load_data(tmp_path / "f.npz", cache=False)


def test_an_npz_that_is_cut_off_or_no_zip_is_refused(faces: FaceDataset, tmp_path: Path) -> None:
    write_dataset(faces, tmp_path / "f.npz")
    whole = (tmp_path / "f.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing"):
        (tmp_path / "f.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"f\.npz: .*damaged"):
            load_data(tmp_path / "f.npz", cache=False)


def test_an_npz_that_unpacks_beyond_the_limit_is_refused(
    faces: FaceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(faces, tmp_path / "f.npz")
    monkeypatch.setattr("ferkit.data.npz.MAX_TABLE_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load_data(tmp_path / "f.npz", cache=False)


def test_an_npz_holds_no_pickles(faces: FaceDataset, tmp_path: Path) -> None:
    write_dataset(faces, tmp_path / "f.npz")
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        assert sorted(archive.namelist()) == sorted(
            f"{name}.npy" for name in ("images", "labels", "split", "taxonomy", "split_named", "votes")
        )
    with np.load(tmp_path / "f.npz", allow_pickle=False) as stored:
        assert stored["taxonomy"].tolist()[0] == "fer2013"


def test_a_csv_converts_to_folders_and_back(tmp_path: Path) -> None:
    first = load_data(pack(drawn_csv().encode(), tmp_path / "a.csv"), cache=False)
    write_dataset(first, tmp_path / "d")
    folder = load_data(tmp_path / "d", cache=False, size=first.size)
    write_dataset(folder, tmp_path / "b.csv")
    assert contents(load_data(tmp_path / "b.csv", cache=False)) == contents(first)
