"""Parquet files, as Hugging Face datasets and pandas export them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facefiles import SIDE
from ferkit.core.errors import DataError, MissingDependencyError
from ferkit.core.images import encode_image
from ferkit.core.taxonomy import FER2013
from ferkit.data import SPLITS, FaceDataset, load_data
from ferkit.data.cartoon import draw_faces

pa = pytest.importorskip("pyarrow")
FACES = draw_faces(42, 0, SIDE)
PNGS = [encode_image(image) for image in FACES.images]
# Hugging Face's imagefolder sorts the names of classes, so that the numbers are not FER2013's.
CLASSES = sorted(FER2013.labels)
NUMBERS = [CLASSES.index(FER2013.labels[label]) for label in FACES.labels]


def write(path: Path, columns: dict[str, list[Any]], classes: list[str] | None = None) -> Path:
    """A Parquet file, with the metadata of Hugging Face if there are classes."""
    import pyarrow.parquet

    table = pa.table(columns)
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    return path


def structs(rows: range) -> list[dict[str, Any]]:
    return [{"bytes": PNGS[k], "path": f"{k}.png"} for k in rows]


def text_of(image: np.ndarray) -> str:
    return " ".join(map(str, image.ravel().tolist()))


def is_same(dataset: FaceDataset) -> bool:
    return np.array_equal(dataset.images, FACES.images) and np.array_equal(dataset.labels, FACES.labels)


@pytest.mark.parametrize("kind", ["struct", "bytes", "text", "list", "names"])
def test_faces_and_labels_are_read_from_every_kind_of_column(tmp_path: Path, kind: str) -> None:
    usage = [SPLITS[k] for k in FACES.split]
    columns: dict[str, list[Any]] = {
        "struct": {"image": structs(range(42)), "label": NUMBERS},
        "bytes": {"img_bytes": PNGS, "labels": FACES.labels.tolist()},
        "text": {"emotion": FACES.labels.tolist(), "pixels": [text_of(i) for i in FACES.images]},
        "list": {"emotion": FACES.labels.tolist(), "pixels": [i.ravel().tolist() for i in FACES.images]},
        "names": {"image": PNGS, "label": [FER2013.labels[k].title() for k in FACES.labels]},
    }[kind]
    path = write(tmp_path / "f.parquet", {**columns, "Usage": usage}, CLASSES if kind == "struct" else None)
    for _ in range(2):  # decoded, then from the cache
        dataset = load_data(path, size=SIDE, cache=tmp_path / "cache")
        assert is_same(dataset)
        assert dataset.taxonomy == FER2013
        assert dataset.split.tolist() == FACES.split.tolist()


def test_a_folder_of_parquet_files_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    for name, rows in (
        ("train-00000-of-00001", range(28)),
        ("validation-0", range(28, 35)),
        ("test", range(35, 42)),
    ):
        columns = {"image": structs(rows), "label": [NUMBERS[k] for k in rows]}
        write(tmp_path / "d" / "data" / f"{name}.parquet", columns, CLASSES)
    dataset = load_data(tmp_path / "d", size=SIDE, cache=False)
    assert np.bincount(dataset.split).tolist() == [28, 7, 7]
    train = dataset.of_split("Training")
    np.testing.assert_array_equal(train.images, FACES.images[:28])
    np.testing.assert_array_equal(train.labels, FACES.labels[:28])


def test_a_training_file_alone_gets_a_hold_out(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", {"image": PNGS, "emotion": FACES.labels.tolist()})
    dataset = load_data(path, size=SIDE, cache=False)
    assert dataset.split_named is False
    assert np.bincount(dataset.split).tolist() == [35, 7]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"picture": PNGS, "label": NUMBERS}, "no column image or pixels. Received: picture, label"),
        ({"image": PNGS, "mood": NUMBERS}, "no column label or emotion. Received: image, mood"),
        ({"image": PNGS, "label": [0] * 41 + [7]}, "row 42: unknown label '7'"),
        ({"pixels": ["7 7"] * 2, "label": [0, 1]}, "row 1: 2 pixels; a square face"),
        (
            {"pixels": [text_of(FACES.images[0]), "7 x" + " 7" * 254], "label": [0, 1]},
            "row 2: pixel 2 is 'x'",
        ),
        ({"pixels": [text_of(FACES.images[0]), "7 " * 256 + "x"], "label": [0, 1]}, "row 2: 257 pixels"),
        ({"image": [3, 4], "label": [0, 1]}, "row 1: no picture"),
        ({"image": PNGS[:2], "label": [0, 1], "Usage": ["Training", "Dev"]}, "row 2: unknown Usage 'Dev'"),
    ],
)
def test_invalid_columns_and_values_are_named(
    tmp_path: Path, columns: dict[str, list[Any]], words: str
) -> None:
    path = write(tmp_path / "f.parquet", columns)
    with pytest.raises(DataError) as caught:
        load_data(path, cache=False)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_without_a_class_is_refused(tmp_path: Path, label: int) -> None:
    """Hugging Face marks unlabelled rows with -1, which would be the last class of a list."""
    path = write(tmp_path / "test.parquet", {"image": PNGS[:2], "label": [0, label]}, CLASSES)
    with pytest.raises(DataError, match=f"row 2: unknown label {label}"):
        load_data(path, cache=False)


def test_corrupt_pictures_are_named_together_or_skipped(tmp_path: Path) -> None:
    pngs = [png[:30] if k in (3, 17) else png for k, png in enumerate(PNGS)]
    path = write(tmp_path / "f.parquet", {"image": pngs, "label": FACES.labels.tolist()})
    with pytest.raises(DataError, match=r"2 of 42 pictures cannot be read.* row 4, .* row 18 "):
        load_data(path, cache=False)
    dataset = load_data(path, cache=False, skip_unreadable=True)
    assert len(dataset) == 40
    assert len(dataset.unreadable) == 2


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", {"image": PNGS, "label": NUMBERS})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"f\.parquet: the file is damaged"):
        load_data(path, cache=False)


def test_without_pyarrow_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "f.parquet", {"image": PNGS, "label": NUMBERS})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ferkit\[batch\]'"):
        load_data(path, cache=False)
