"""The cache: keyed by path and state of the files, never half written, never an obstacle."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facefiles import drawn_csv, drawn_images, pack, write_faces
from ferkit.core.errors import DataError
from ferkit.data import FaceDataset, load_data
from ferkit.data.cache import DatasetCache
from ferkit.data.cartoon import draw_faces


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return pack(drawn_csv().encode(), tmp_path / "fer2013.csv.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The cache's folder."""
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    """The decoded data sets in a cache."""
    return sorted(p for p in folder.iterdir())


def is_mapped(dataset: FaceDataset) -> bool:
    """Whether the images lie in a file rather than in memory."""
    base = dataset.images
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    return base is not None


def test_the_second_load_is_mapped_and_equal(table: Path, folder: Path) -> None:
    one, two = load_data(table, cache=folder), load_data(table, cache=folder)
    assert is_mapped(two)
    assert not two.images.flags.writeable
    assert len(entries(folder)) == 1
    np.testing.assert_array_equal(two.images, drawn_images())
    assert one.fingerprint == two.fingerprint == load_data(table, cache=False).fingerprint


def test_entries_of_an_older_layout_are_not_used(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("ferkit.data.cache.LAYOUT", 0)
        load_data(table, cache=folder)
    load_data(table, cache=folder)
    assert len(entries(folder)) == 2


def test_the_environment_names_the_cache_folder(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "elsewhere"))
    load_data(table)
    assert len(entries(tmp_path / "elsewhere" / "data")) == 1


def test_without_a_cache_nothing_is_written(table: Path, tmp_path: Path) -> None:
    dataset = load_data(table, cache=False)
    assert not is_mapped(dataset)
    assert list(tmp_path.iterdir()) == [table]


def test_changed_content_of_the_same_size_is_noticed(tmp_path: Path, folder: Path) -> None:
    path = pack(drawn_csv().encode(), tmp_path / "f.csv")
    before = load_data(path, cache=folder)
    os.utime(path, ns=(1, 1))
    text = path.read_text()
    path.write_text(text.replace("Training", "training"))  # same size, same meaning, other bytes
    entry = entries(folder)
    assert load_data(path, cache=folder).fingerprint == before.fingerprint
    assert len(entries(folder)) == 1, "the entry of the old content is removed"
    assert entries(folder) != entry


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack(drawn_csv().encode(), tmp_path / "f.csv")
    other = drawn_csv(seed=1)
    expected = load_data(pack(other.encode(), tmp_path / "g.csv"), cache=False).fingerprint
    read = DatasetCache.read

    def replaced_meanwhile(store: DatasetCache, key: str) -> tuple[FaceDataset, str] | None:
        path.write_text(other)
        os.utime(path, ns=(5, 5))
        return read(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetCache, "read", replaced_meanwhile)
        load_data(path, cache=folder)
    assert "changed while it was read" in caplog.text
    assert not folder.exists()
    assert load_data(path, cache=folder).fingerprint == expected


@pytest.mark.parametrize("change", ["content", "name", "new file", "removed file"])
def test_a_folder_is_read_again_when_anything_in_it_changes(
    tmp_path: Path, folder: Path, change: str
) -> None:
    root = write_faces(tmp_path / "d", [f"{label}/{k}.png" for label in "ab" for k in range(3)])
    before = load_data(root, cache=folder)
    if change == "content":
        write_faces(root, ["a/1.png"], seed=9)
    elif change == "name":
        (root / "a" / "1.png").rename(root / "b" / "9.png")
    elif change == "new file":
        write_faces(root, ["b/7.png"], seed=9)
    else:
        (root / "a" / "1.png").unlink()
    assert load_data(root, cache=folder).fingerprint != before.fingerprint


def test_size_is_part_of_the_key(tmp_path: Path, folder: Path) -> None:
    root = write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    assert [load_data(root, cache=folder, size=s).size for s in (48, 32, 48)] == [48, 32, 48]


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a file."""
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "images truncated": lambda e: rewrite(e / "images.npy", lambda c: c[:-100]),
    "images empty": lambda e: rewrite(e / "images.npy", lambda c: b""),
    "a broken header": lambda e: rewrite(e / "images.npy", lambda c: c[:20] + b"?" * 10 + c[30:]),
    "labels missing": lambda e: (e / "labels.npy").unlink(),
    "labels of fewer images": lambda e: np.save(e / "labels.npy", np.zeros(41, np.int64)),
    "labels out of range": lambda e: np.save(e / "labels.npy", np.full(42, 7)),
    "a pickle": lambda e: np.save(e / "labels.npy", np.array([{}], object), allow_pickle=True),
    "no record": lambda e: (e / "record.json").unlink(),
    "a record that is no JSON": lambda e: (e / "record.json").write_text("{"),
    "a record of something else": lambda e: (e / "record.json").write_text("[]"),
    "an invalid taxonomy": lambda e: rewrite(e / "record.json", lambda c: c.replace(b"angry", b"fear")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_built_again_with_a_warning(
    table: Path, folder: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    good = load_data(table, cache=folder)
    fingerprint = good.fingerprint
    del good
    damage(entries(folder)[0])
    again = load_data(table, cache=folder)
    assert again.fingerprint == fingerprint
    np.testing.assert_array_equal(again.images, drawn_images())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "damaged" in caplog.text
    caplog.clear()
    load_data(table, cache=folder)
    assert caplog.records == [], "it was repaired"


def test_a_cache_that_cannot_be_written_is_one_warning_and_no_error(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a file stands where the folder should be; that stops root as well
    (tmp_path / "cache").write_text("in the way")
    dataset = load_data(table, cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.images, drawn_images())
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "cannot be cached" in caplog.text


def test_what_a_killed_process_left_is_not_used_and_removed_after_a_day(table: Path, folder: Path) -> None:
    old, new = folder / ".building-old", folder / ".building-new"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    load_data(table, cache=folder)
    assert not old.exists()
    assert new.exists(), "its process may still be running"


def test_an_entry_that_another_process_wrote_first_stays(folder: Path) -> None:
    store, key = DatasetCache(folder), "path-state"
    for seed in (1, 2):
        store.write(key, draw_faces(7, seed, 16))
    entry = store.read(key)
    assert entry is not None
    np.testing.assert_array_equal(entry[0].images, draw_faces(7, 1, 16).images)
    assert [p.name for p in folder.iterdir()] == [key], "no temporary folder is left"


def test_votes_and_drops_do_not_need_entries_of_their_own(folder: Path) -> None:
    load_data("cartoon:70:1", cache=folder)
    load_data("cartoon:70:1", cache=folder, drop_flat=True, drop_leaks=True, labels="ferplus-argmax")
    assert len(entries(folder)) == 1


def test_an_unreadable_source_is_an_error_of_its_own(tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"loop\.csv"):
        load_data(loop, cache=tmp_path / "cache")


@pytest.mark.realdata
def test_the_second_load_of_the_real_set_comes_from_the_cache(
    fer2013: FaceDataset, shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> FaceDataset:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr("ferkit.data.load.read_face_table", refuse)
    data = shared_dir / "data"
    dataset = load_data(data / "fer2013.csv.gz", votes=data / "fer2013new.csv")
    assert is_mapped(dataset)
    assert dataset.fingerprint == fer2013.fingerprint
