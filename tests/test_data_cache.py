"""The cache: fast, keyed by content, never half written, never in the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facefiles import drawn_csv, drawn_images, pack, write_faces
from ferkit.core.errors import DataError
from ferkit.data import FaceDataset, load_dataset
from ferkit.data.cache import DatasetCache, Entry


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return pack(drawn_csv().encode(), tmp_path / "fer2013.csv.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The cache's folder."""
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    """The decoded data sets in a cache."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "index")


def is_mapped(dataset: FaceDataset) -> bool:
    """Whether the images lie in a file rather than in memory."""
    base = dataset.images
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    return base is not None


def test_the_second_load_is_mapped_and_equal(table: Path, folder: Path) -> None:
    one, two = load_dataset(table, cache=folder), load_dataset(table, cache=folder)
    assert is_mapped(two)
    assert not two.images.flags.writeable
    assert len(entries(folder)) == 1
    np.testing.assert_array_equal(two.images, drawn_images())
    assert one.fingerprint == two.fingerprint == load_dataset(table, cache=False).fingerprint


def test_what_readers_made_before_they_knew_jfif_and_twelve_bits_is_not_taken_for_what_they_make_now(
    table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("ferkit.data.load.LAYOUT", 2)
        load_dataset(table, cache=folder)
    load_dataset(table, cache=folder)
    assert len(entries(folder)) == 2


def test_the_environment_names_the_cache_folder(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "elsewhere"))
    load_dataset(table)
    assert len(entries(tmp_path / "elsewhere" / "data")) == 1


def test_without_a_cache_nothing_is_written(table: Path, tmp_path: Path) -> None:
    dataset = load_dataset(table, cache=False)
    assert not is_mapped(dataset)
    assert list(tmp_path.iterdir()) == [table]


def test_the_same_content_under_another_name_is_not_decoded_again(table: Path, folder: Path) -> None:
    load_dataset(table, cache=folder)
    shutil.copy(table, table.with_name("copy.csv.gz"))
    load_dataset(table.with_name("copy.csv.gz"), cache=folder)
    assert len(entries(folder)) == 1


def test_changed_content_of_the_same_size_is_noticed(tmp_path: Path, folder: Path) -> None:
    path = pack(drawn_csv().encode(), tmp_path / "f.csv")
    before = load_dataset(path, cache=folder)
    os.utime(path, ns=(1, 1))
    text = path.read_text()
    path.write_text(text.replace("Training", "training"))  # same size, same meaning, other bytes
    assert load_dataset(path, cache=folder).fingerprint == before.fingerprint
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("known", [False, True], ids=["decoded", "known by a copy"])
def test_a_file_that_changes_while_it_is_loaded_leaves_nothing_wrong_behind(
    tmp_path: Path, folder: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = drawn_csv()
    header, first, rest = old.split("\n", 2)
    new = "\n".join([header, ("1" if first[0] == "0" else "0") + first[1:], rest])
    copy, path = (pack(old.encode(), tmp_path / name) for name in ("copy.csv", "f.csv"))
    expected = [
        load_dataset(pack(text.encode(), tmp_path / "g.csv"), cache=False).fingerprint for text in (old, new)
    ]
    if known:
        load_dataset(copy, cache=folder)
    read = DatasetCache.read

    def replaced_meanwhile(store: DatasetCache, key: str) -> Entry | None:
        path.write_text(new)
        os.utime(path, ns=(5, 5))
        return read(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetCache, "read", replaced_meanwhile)
        load_dataset(path, cache=folder)
    assert [load_dataset(source, cache=folder).fingerprint for source in (copy, path)] == expected


@pytest.mark.parametrize("change", ["content", "name", "new file", "removed file"])
def test_a_folder_is_read_anew_when_anything_in_it_changes(tmp_path: Path, folder: Path, change: str) -> None:
    root = write_faces(tmp_path / "d", [f"{label}/{k}.png" for label in "ab" for k in range(3)])
    before = load_dataset(root, cache=folder)
    if change == "content":
        write_faces(root, ["a/1.png"], seed=9)
    elif change == "name":
        (root / "a" / "1.png").rename(root / "b" / "9.png")
    elif change == "new file":
        write_faces(root, ["b/7.png"], seed=9)
    else:
        (root / "a" / "1.png").unlink()
    assert load_dataset(root, cache=folder).fingerprint != before.fingerprint


def test_size_is_part_of_the_key(tmp_path: Path, folder: Path) -> None:
    root = write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    assert [load_dataset(root, cache=folder, size=s).size for s in (48, 32, 48)] == [48, 32, 48]


def spoil(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change the bytes of a file."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed pixel": lambda e: spoil(e / "images.npy", lambda c: c.__setitem__(-1, c[-1] ^ 1)),
    "images cut off": lambda e: spoil(e / "images.npy", lambda c: c.__delitem__(slice(-100, None))),
    "images empty": lambda e: (e / "images.npy").write_bytes(b""),
    "a broken header": lambda e: spoil(e / "images.npy", lambda c: c.__setitem__(slice(20, 30), b"?" * 10)),
    "labels missing": lambda e: (e / "labels.npy").unlink(),
    "labels of another data set": lambda e: np.save(e / "labels.npy", np.zeros(42, np.int64)),
    "a pickle": lambda e: np.save(e / "labels.npy", np.array([{}], object), allow_pickle=True),
    "no record": lambda e: (e / "record.json").unlink(),
    "a record that is no JSON": lambda e: (e / "record.json").write_text("{"),
    "a record of something else": lambda e: (e / "record.json").write_text("[]"),
    "a record with another taxonomy": lambda e: (e / "record.json").write_text(
        (e / "record.json").read_text().replace("angry", "bored")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_said_and_built_anew(
    table: Path, folder: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    good = load_dataset(table, cache=folder)
    fingerprint = good.fingerprint
    del good
    damage(entries(folder)[0])
    again = load_dataset(table, cache=folder)
    assert again.fingerprint == fingerprint
    np.testing.assert_array_equal(again.images, drawn_images())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "damaged" in caplog.text
    caplog.clear()
    load_dataset(table, cache=folder)
    assert caplog.records == [], "it was repaired"


def test_a_damaged_index_is_passed_over(table: Path, folder: Path) -> None:
    load_dataset(table, cache=folder)
    for note in (folder / "index").iterdir():
        note.write_text(json.dumps({"not": "a digest"}))
    assert len(load_dataset(table, cache=folder)) == 42


def test_a_cache_that_cannot_be_written_is_one_warning_and_no_error(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a file stands where the folder should be; that stops root as well
    (tmp_path / "cache").write_text("in the way")
    dataset = load_dataset(table, cache=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.images, drawn_images())
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "decoded data are not kept" in caplog.text


def test_what_a_killed_process_left_half_built_is_not_used_and_swept_away_later(
    table: Path, folder: Path
) -> None:
    old, new = folder / ".building-old", folder / ".building-new"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    load_dataset(table, cache=folder)
    assert not old.exists()
    assert new.exists(), "that one may still be at work"


def test_an_entry_that_another_process_wrote_first_stays(folder: Path) -> None:
    store = DatasetCache(folder)
    store.write("v1-x", {"images": np.zeros(3, np.uint8)}, {"by": "first"})
    store.write("v1-x", {"images": np.zeros(3, np.uint8)}, {"by": "second"})
    entry = store.read("v1-x")
    assert entry is not None
    assert entry.meta == {"by": "first"}
    assert [p.name for p in folder.iterdir()] == ["v1-x"], "nothing half built is left"


def test_votes_and_drops_do_not_need_entries_of_their_own(folder: Path) -> None:
    load_dataset("cartoon:70:1", cache=folder)
    load_dataset("cartoon:70:1", cache=folder, drop_flat=True, drop_leaks=True, labels="ferplus-argmax")
    assert len(entries(folder)) == 1


def test_an_unreadable_source_is_an_error_of_its_own(tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"loop\.csv"):
        load_dataset(loop, cache=tmp_path / "cache")


@pytest.mark.realdata
def test_the_second_load_of_the_real_set_is_mapped_from_the_cache(
    fer2013: FaceDataset, shared_dir: Path
) -> None:
    data = shared_dir / "data"
    dataset = load_dataset(data / "fer2013.csv.gz", votes=data / "fer2013new.csv")
    assert is_mapped(dataset)
    assert dataset.fingerprint == fer2013.fingerprint
