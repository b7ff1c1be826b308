"""Batches: their inputs, the two tables, resuming, and the same rows whatever the settings."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import modelzoo
from ferkit import Recognizer
from ferkit.cli import run
from samples import sample

pytest.importorskip("pyarrow", reason="tables of many photos need ferkit[batch]")
pytest.importorskip("fsspec", reason="tables of many photos need ferkit[batch]")

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem

from ferkit.batch.engine import Engine
from ferkit.batch.inputs import Inputs, _samples
from ferkit.batch.output import Done, Output
from ferkit.batch.run import Counts, describe, write_batch
from ferkit.batch.tables import METADATA, Tables
from ferkit.core.errors import ImageError, OutputError
from ferkit.core.locks import LOCK, folder_lock
from ferkit.detect import Detection

ASTRONAUT, CAMERAMAN, CAT = (sample(n) for n in ("astronaut.jpg", "camera.png", "chelsea.png"))
STATUSES = ["ok", "no face", "ok", "unreadable", "ok"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    """Five small photos as files: two persons three times, no face, and a damaged one."""
    contents = []
    for path, side in ((ASTRONAUT, 256), (CAT, 200), (CAMERAMAN, 256), (ASTRONAUT, 0), (ASTRONAUT, 300)):
        buffer = io.BytesIO()
        with Image.open(path) as photo:
            photo.convert("RGB").resize((side or 64, side or 64)).save(buffer, "PNG")
        contents.append(buffer.getvalue() if side else buffer.getvalue()[:900])
    return contents


@pytest.fixture
def folder(tmp_path: Path, encoded: list[bytes]) -> Path:
    for number, content in enumerate(encoded):
        path = tmp_path / "photos" / ("a" if number < 3 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "photos"


def predict(*arguments: object, model: Path) -> int:
    return run(["predict", *map(str, arguments), "--model", str(model)])


def rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a table, without the time."""
    table = pq.read_table(path)
    return table.drop_columns([n for n in ("milliseconds",) if n in table.column_names]).to_pylist()


def columns(path: Path | str, *names: str) -> list[Any]:
    return [row[names[0]] if len(names) == 1 else tuple(row[n] for n in names) for row in rows(path)]


def test_a_folder_becomes_a_table_of_faces_and_one_of_photos(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, "-o", tmp_path / "r.parquet", model=model) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("5 photos: 3 ok, 1 no face, 1 unreadable; 3 faces; ")
    names = [str(folder / part) for part in ("a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png")]
    seen = rows(tmp_path / "r-photos.parquet")
    assert [row["source"] for row in seen] == names
    assert [row["status"] for row in seen] == STATUSES
    assert [row["faces"] for row in seen] == [1, 0, 1, None, 1]
    assert (seen[0]["width"], seen[0]["height"]) == (256, 256)
    assert "damaged" in seen[3]["error"]
    assert [row["error"] for row in seen[:3]] == [None] * 3
    spent = pq.read_table(tmp_path / "r-photos.parquet")["milliseconds"].to_pylist()
    assert all(value > 0 for value in spent)
    faces = rows(tmp_path / "r.parquet")
    expected = [Recognizer(model).predict(names[0])[0], Recognizer(model).predict(names[2])[0]]
    for row, face in zip(faces, expected, strict=False):
        assert tuple(row["box"].values()) == face.box
        assert row["probabilities"] == dict(face.probabilities)
        assert tuple(row["landmarks"]["nose"].values()) == face.landmarks[2]
        assert row["quality"] == face.quality.to_dict()
        assert (row["label"], row["score"], row["face"]) == (face.label, face.score, 0)


def test_the_schema_says_units_versions_and_settings(folder: Path, model: Path, tmp_path: Path) -> None:
    predict(folder / "a", "-o", tmp_path / "r.parquet", "--flat", "--min-confidence", "0.4", model=model)
    schema = pq.read_schema(tmp_path / "r.parquet")
    facts = json.loads(schema.metadata[METADATA])
    info = Recognizer(model).info
    assert facts["labels"] == list(Recognizer(model).taxonomy.labels)
    assert (facts["model"], facts["model_version"], facts["min_confidence"]) == (info.name, info.version, 0.4)
    assert [name for name in schema.names if name.startswith("p_")] == [f"p_{n}" for n in facts["labels"]]
    units = {f.name: f.metadata[b"unit"].decode() for f in schema if f.metadata}
    assert (units["left"], units["nose_x"], units["yaw"]) == ("px", "px", "degrees")
    assert units[f"p_{facts['labels'][0]}"] == "probability, 0..1"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_csv_and_json_lines_hold_the_same_as_parquet(
    folder: Path, model: Path, tmp_path: Path, suffix: str
) -> None:
    flat = ["--flat"] if suffix == ".csv" else []
    predict(folder, "-o", tmp_path / "r.parquet", *flat, model=model)
    predict(folder, "-o", tmp_path / f"r{suffix}", model=model)
    for name in ("r", "r-photos"):
        text = (tmp_path / f"{name}{suffix}").read_text()
        expected = rows(tmp_path / f"{name}.parquet")
        if suffix == ".jsonl":
            found = [json.loads(line) for line in text.splitlines()]
            assert [{k: v for k, v in row.items() if k != "milliseconds"} for row in found] == expected
        else:
            found = list(csv.DictReader(io.StringIO(text)))
            for row, wanted in zip(found, expected, strict=True):
                for key, value in wanted.items():
                    if isinstance(value, (int, float)):
                        assert float(row[key]) == pytest.approx(value)
                    else:
                        assert row[key] == (value or "")


def write_inputs(kind: str, root: Path, encoded: list[bytes]) -> tuple[list[str], list[str]]:
    """Write the photos as an input of some kind; return arguments and the sources of the rows."""
    named = [f"{'ab'[n // 3]}/{n}.png" for n in range(len(encoded))]
    keep = ["--keep", "id,split"]
    if kind == "tar":
        with tarfile.open(root / "s.tar", "w") as tar:
            for number, (name, content) in enumerate(zip(named, encoded, strict=True)):
                fields = json.dumps({"id": number, "split": "ab"[number // 3]}).encode()
                for member, data in ((name, content), (name.replace(".png", ".json"), fields)):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return [str(root / "s.tar"), *keep], [f"{root}/s.tar/{name}" for name in named]
    ids = {"id": list(range(len(encoded))), "split": list("aaabb")}
    if kind in ("bytes", "hugging face"):
        cells = encoded if kind == "bytes" else [{"bytes": one, "path": "x.png"} for one in encoded]
        for part, some in enumerate((slice(0, 3), slice(3, 5))):
            table = pa.table({**{k: v[some] for k, v in ids.items()}, "image": cells[some]})
            pq.write_table(table, root / f"t-{part}.parquet", row_group_size=2)
        sources = [f"{root}/t-0.parquet#{n}" for n in range(3)] + [
            f"{root}/t-1.parquet#{n}" for n in range(2)
        ]
        return [str(root / "t-*.parquet"), *keep], sources
    paths = [str(root / name) for name in named]
    for path, content in zip(paths, encoded, strict=True):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content)
    if kind == "csv":
        lines = [f"{path},{n},{'ab'[n // 3]}" for n, path in enumerate(paths)]
        (root / "list.csv").write_text("\n".join(["path,id,split", *lines]))
        return [str(root / "list.csv"), *keep], paths
    pq.write_table(pa.table({**ids, "where": paths}), root / "list.parquet")
    return [str(root / "list.parquet"), "--column", "where", *keep], paths


@pytest.mark.parametrize("kind", ["tar", "bytes", "hugging face", "csv", "paths"])
def test_shards_and_tables_are_inputs_and_carry_columns(
    kind: str, model: Path, tmp_path: Path, encoded: list[bytes]
) -> None:
    arguments, sources = write_inputs(kind, tmp_path, encoded)
    assert predict(*arguments, "-o", tmp_path / "r.parquet", model=model) == 1
    photos = tmp_path / "r-photos.parquet"
    assert columns(photos, "source", "status") == list(zip(sources, STATUSES, strict=True))
    ids = [str(n) if kind == "tar" else n for n in range(5)]  # values of tar files are text
    assert columns(photos, "id", "split") == list(zip(ids, "aaabb", strict=True))
    assert columns(tmp_path / "r.parquet", "id") == [ids[0], ids[2], ids[4]]


@pytest.mark.parametrize("name", ["memory://bucket/photos", "memory://bucket/photos/*/*.png"])
def test_uris_are_inputs_and_outputs(name: str, model: Path, encoded: list[bytes]) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for number, content in enumerate(encoded):
            memory.pipe_file(f"/bucket/photos/{'ab'[number // 3]}/{number}.png", content)
        assert predict(name, "-o", "memory://bucket/out", model=model) == 1
        (part,) = memory.glob("/bucket/out/photos/*")
        table = pq.read_table(io.BytesIO(memory.cat_file(part)))
        assert table["status"].to_pylist() == STATUSES
        assert table["source"][0].as_py() == "memory://bucket/photos/a/0.png"
    finally:
        memory.rm("/bucket", recursive=True)


class RefusesOneFolder(MemoryFileSystem):
    """Storage in which the keys do not allow to list one folder."""

    protocol = "refusing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("refusing://", "memory://"))

    def ls(self, path: str, detail: bool = True, **settings: Any) -> Any:
        if path.rstrip("/").endswith("/a"):
            raise PermissionError(f"Access denied: {path}")
        return super().ls(path, detail=detail, **settings)


def test_a_folder_of_a_uri_that_cannot_be_listed_is_an_error_and_the_others_are_read(
    model: Path, tmp_path: Path, encoded: list[bytes]
) -> None:
    """A known fault: the photos in it were missing without a message."""
    fsspec.register_implementation("refusing", RefusesOneFolder, clobber=True)
    system = fsspec.filesystem("refusing")
    for name in ("a/0.png", "b/1.png"):
        system.pipe_file(f"/photos/{name}", encoded[1])
    assert predict("refusing://photos", "-o", tmp_path / "r.parquet", model=model) == 1
    photo, error = rows(tmp_path / "r-photos.parquet")
    assert (photo["source"], photo["status"]) == ("refusing://photos/b/1.png", "no face")
    assert "cannot read all of refusing://photos: Access denied" in error["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{root}/list.parquet", "--column", "where", "--keep", "age"],
            "no input has a column 'age' to keep; it comes from a table ",
        ),
        (
            ["{root}/list.parquet", "--column", "id"],
            "needs a column with photos or their paths; name it with --",
        ),
        (["{root}/absent.parquet"], "cannot read the table"),
        (["{root}/list.parquet", "{root}/absent.tar", "--clips"], "not from tar files"),
        (["{root}", "--keep", "id"], "no input has a column 'id' to keep"),
        (["nosuch://bucket/a.jpg"], "cannot open nosuch://bucket/a.jpg"),
    ],
)
def test_inputs_that_cannot_be_used_are_errors_of_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    encoded: list[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_inputs("paths", tmp_path, encoded)
    given = [one.format(root=tmp_path) for one in arguments]
    assert predict(*given, "-o", tmp_path / "out", model=model) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_damaged_shards_cost_their_own_row(model: Path, tmp_path: Path, encoded: list[bytes]) -> None:
    write_inputs("tar", tmp_path, encoded)
    content = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(content[: len(content) // 2 + 200])
    inputs = [tmp_path / "s.tar", tmp_path / "absent.tar", tmp_path / "absent.png", ASTRONAUT]
    assert predict(*inputs, "-o", tmp_path / "r.parquet", model=model) == 1
    seen = columns(tmp_path / "r-photos.parquet", "source", "status")
    assert predict(*inputs, "-o", tmp_path / "r.parquet", "--resume", model=model) == 0
    assert columns(tmp_path / "r-photos.parquet", "source", "status") == seen
    assert (tmp_path / "r.parquet.parts").is_dir()  # for --retry-failed
    assert seen[0] == (f"{tmp_path}/s.tar/a/0.png", "ok")
    assert seen[-4][1] == "unreadable"
    assert seen[-4][0] == f"{tmp_path}/s.tar"
    assert seen[-3:] == [
        *((str(tmp_path / f"absent.{suffix}"), "unreadable") for suffix in ("tar", "png")),
        (str(ASTRONAUT), "ok"),
    ]


def test_a_pattern_of_tar_files_that_matches_none_is_an_error(model: Path, tmp_path: Path) -> None:
    """A known fault: it was a batch of no photos, with exit status 0."""
    assert predict(tmp_path / "*.tar", "-o", tmp_path / "r.parquet", model=model) == 1
    assert "no tar file matches" in columns(tmp_path / "r-photos.parquet", "error")[0]


@pytest.mark.parametrize(("whole", "files"), [(False, 1), (True, 4)])
def test_a_tar_whose_names_contain_dots_is_not_read_into_memory_at_once(
    tmp_path: Path, whole: bool, files: int
) -> None:
    """A known fault: IMG.2024.0001.jpg and so on were one sample."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(8):
            info = tarfile.TarInfo(f"IMG.2024.{number}.jpg")
            info.size = 16 << 20
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(tmp_path / "s.tar", "r|*") as tar:
        samples = [[name for name, _ in sample] for sample in _samples(tar, whole=whole)]
    names = [f"IMG.2024.{number}.jpg" for number in range(8)]
    assert samples == [names[k : k + files] for k in range(0, 8, files)]


@pytest.mark.parametrize("row", [150, 150_000])
def test_rows_of_a_csv_with_too_many_columns_are_an_error_and_the_others_are_read(
    tmp_path: Path, row: int
) -> None:
    """A known fault: an error of PyArrow, where the table had more than a megabyte."""
    lines = [f"photos/{number}.jpg,{number}" for number in range(200_000)]
    lines[row] = "photos/no,name.jpg,1"
    (tmp_path / "t.csv").write_text("\n".join(["path,id", *lines]))
    tasks = Inputs([str(tmp_path / "t.csv")], keep=["id"]).tasks(Done())
    *items, error = (item for task in tasks for item in task.read(Done()))
    assert [item.kept[0] for item in items] == [number for number in range(200_000) if number != row]
    assert isinstance(error.photo, ImageError)
    assert "too few or too many columns: photos/no,name.jpg,1" in str(error.photo)


def test_a_damaged_row_of_a_table_is_an_error(tmp_path: Path) -> None:
    lines = [json.dumps({"path": f"photos/{number}.jpg"}) for number in range(100_000)]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, "{", *lines]))
    tasks = Inputs([str(tmp_path / "t.jsonl")]).tasks(Done())
    *items, error = (item for task in tasks for item in task.read(Done()))
    assert len(items) <= 100_000
    assert "cannot read all of" in str(error.photo)


def test_tables_of_a_pattern_without_the_column_or_damaged_cost_their_own_row(
    model: Path, tmp_path: Path, encoded: list[bytes]
) -> None:
    """A known fault: a KeyError, and no row of the others."""
    for number, column in enumerate(("image", "picture", "image", "image")):
        pq.write_table(pa.table({column: encoded[1:2]}), tmp_path / f"t-{number}.parquet")
    (tmp_path / "t-2.parquet").write_bytes(b"PAR1")
    assert predict(tmp_path / "t-*.parquet", "-o", tmp_path / "r.parquet", model=model) == 1
    seen = rows(tmp_path / "r-photos.parquet")
    names = ["t-0.parquet#0", "t-1.parquet#0", "t-2.parquet", "t-3.parquet#0"]
    assert [Path(row["source"]).name for row in seen] == names
    assert [row["status"] for row in seen] == ["no face", "unreadable", "unreadable", "no face"]
    assert "it has no column 'image'" in seen[1]["error"]


def test_a_nested_column_for_a_csv_is_refused_before_the_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: an error of PyArrow after the last photo."""
    pq.write_table(pa.table({"path": [str(CAT)], "tags": [["cat"]]}), tmp_path / "t.parquet")
    assert predict(tmp_path / "t.parquet", "--keep", "tags", "-o", tmp_path / "r.csv", model=model) == 1
    assert "a CSV file cannot hold the column tags (list<" in capsys.readouterr().err
    assert not (tmp_path / "r.csv.parts").exists()


def test_a_kept_column_does_not_replace_one_of_the_output(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [str(ASTRONAUT)], "label": ["astronaut"]}), tmp_path / "t.parquet")
    assert predict(tmp_path / "t.parquet", "--keep", "label", "-o", tmp_path / "r.parquet", model=model) == 0
    assert columns(tmp_path / "r.parquet", "input_label") == ["astronaut"]
    assert columns(tmp_path / "r.parquet", "label") != ["astronaut"]


def recognize(
    model: Path, target: Path, *names: object, workers: int = 1, part_photos: int = 1024, **settings: Any
) -> Counts:
    """A batch with parts of another size, which the command line does not offer."""
    own = {"resume": settings.pop("resume", False), "retry_failed": settings.pop("retry_failed", False)}
    stop = settings.pop("stop", None) or threading.Event()
    given = {"model": model, "min_face": None, "min_confidence": 0.0, "tta": "none", "max_pixels": 10**8}
    clips = settings.pop("clips", False)
    recognizer = Recognizer(**given, **settings)
    inputs = Inputs(map(str, names), clips=clips)
    tables = Tables(recognizer.taxonomy.labels, describe(recognizer, given, fps=None), clips=clips)
    output = Output(str(target), tables, **own, part_photos=part_photos)
    counts = Counts(before=len(output.done))
    engine = Engine(recognizer, tables, output.done, workers, chunk=min(32, part_photos))
    chunks = engine.run(inputs.tasks(output.done, stop), stop)
    write_batch(chunks, output, counts, stop=stop)
    return counts


def hold(folder: Path, ready: Any) -> None:
    """Write an output, as another process."""
    with folder_lock(folder, OutputError("busy")):
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("target", ["out", "r.parquet"])
def test_two_runs_do_not_write_one_output_and_a_killed_one_leaves_no_lock(
    folder: Path, model: Path, tmp_path: Path, target: str
) -> None:
    parts = tmp_path / (target if target == "out" else f"{target}.parts")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(parts, ready))
    process.start()
    assert ready.wait(120)
    with pytest.raises(OutputError, match=rf"another run writes .*{target}"):
        recognize(model, tmp_path / target, folder)
    assert [path.name for path in parts.iterdir()] == [LOCK]
    process.kill()
    process.join()
    assert recognize(model, tmp_path / target, folder).photos == 5
    assert (tmp_path / target).exists()


def test_the_tables_depend_neither_on_workers_nor_batches_nor_parts(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    names = (folder, ASTRONAUT, CAT, tmp_path / "absent.png")
    recognize(model, tmp_path / "one.parquet", *names)
    for number, settings in enumerate(
        ({"workers": 3}, {"batch_size": 1}, {"workers": 2, "part_photos": 2, "threads": 1})
    ):
        recognize(model, tmp_path / f"{number}.parquet", *names, **settings)
        for table in ("", "-photos"):
            assert rows(tmp_path / f"{number}{table}.parquet") == rows(tmp_path / f"one{table}.parquet")
    recognize(model, tmp_path / "turned.parquet", *reversed(names))
    for table in ("", "-photos"):
        one, turned = (sorted(map(repr, rows(tmp_path / f"{n}{table}.parquet"))) for n in ("one", "turned"))
        assert turned == one


def test_resume_does_what_is_missing_and_nothing_twice(folder: Path, model: Path, tmp_path: Path) -> None:
    recognize(model, tmp_path / "whole", folder)
    recognize(model, tmp_path / "out", folder / "a", part_photos=2)
    counts = recognize(model, tmp_path / "out", folder, resume=True)
    assert (counts.before, counts.photos) == (3, 2)
    for table in ("faces", "photos"):
        assert rows(tmp_path / "out" / table) == rows(tmp_path / "whole" / table)
    assert recognize(model, tmp_path / "out", folder, resume=True).photos == 0


def test_retry_failed_reads_again_what_failed(
    folder: Path, model: Path, tmp_path: Path, encoded: list[bytes]
) -> None:
    recognize(model, tmp_path / "r.parquet", folder, tmp_path / "later")
    (folder / "b" / "3.png").write_bytes(encoded[0])
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "5.png").write_bytes(encoded[1])
    counts = recognize(
        model, tmp_path / "r.parquet", folder, tmp_path / "later", resume=True, retry_failed=True
    )
    assert (counts.before, counts.photos, counts.failed) == (4, 2, 0)
    photos = dict(columns(tmp_path / "r-photos.parquet", "source", "status"))
    assert photos == {
        **{str(folder / f"{'ab'[n // 3]}/{n}.png"): s for n, s in enumerate(STATUSES)},
        **{str(folder / "b/3.png"): "ok", str(tmp_path / "later/5.png"): "no face"},
    }
    assert len(rows(tmp_path / "r-photos.parquet")) == 6
    assert not (tmp_path / "r.parquet.parts").exists()  # nothing is left to be done
    with pytest.raises(OutputError, match="exists already"):
        recognize(model, tmp_path / "r.parquet", folder, resume=True)


@pytest.mark.parametrize("name", ["-", "r.json", "r.csv.gz", "r.xlsx"])
def test_what_looks_like_another_file_is_no_folder(
    model: Path, tmp_path: Path, name: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"is no table that can be written; name a file with \.parquet"):
        recognize(model, name, tmp_path)
    assert not list(tmp_path.iterdir())
    recognize(model, "r.json/", tmp_path)
    assert (tmp_path / "r.json" / "photos").is_dir()


def test_a_photo_named_twice_has_two_rows_also_after_an_interruption(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [str(CAT), str(ASTRONAUT), str(CAT)]}), tmp_path / "t.parquet")
    recognize(model, tmp_path / "out", CAT)
    assert recognize(model, tmp_path / "out", tmp_path / "t.parquet", resume=True).photos == 2
    assert sorted(columns(tmp_path / "out/photos", "source")) == sorted(map(str, (CAT, ASTRONAUT, CAT)))


def test_an_output_is_not_overwritten_and_not_continued_with_other_settings(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    recognize(model, tmp_path / "out", folder)
    with pytest.raises(OutputError, match="begun before; --resume continues it"):
        recognize(model, tmp_path / "out", folder)
    with pytest.raises(OutputError, match=r"taxonomy 'fer2013' in place of 'ferplus'"):
        recognize(model, tmp_path / "out", folder, resume=True, taxonomy="ferplus")


@pytest.mark.parametrize("name", ["run [1]", "run *", "r[a-b].parquet"])
def test_the_name_of_an_output_may_contain_wildcards(
    folder: Path, model: Path, tmp_path: Path, name: str
) -> None:
    """A known fault: its parts were not found, so they were overwritten and never joined."""
    recognize(model, tmp_path / name, folder)
    table = tmp_path / (name if not name.endswith(".parquet") else "r[a-b]-photos.parquet")
    assert len(rows(table / "photos" if table.is_dir() else table)) == 5
    with pytest.raises(OutputError, match="--resume continues it"):
        recognize(model, tmp_path / name, folder)
    assert recognize(model, tmp_path / name, folder, resume=True).photos == 0


@pytest.mark.parametrize("name", ["r.csv", "r-photos.csv"])
def test_neither_file_of_an_output_is_overwritten(
    folder: Path, model: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name} exists"):
        recognize(model, tmp_path / "r.csv", folder)
    assert [(path.name, path.read_text()) for path in tmp_path.glob("r*")] == [(name, "mine")]


def test_a_part_of_faces_whose_photos_were_not_written_is_replaced(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    """The process was killed between the two writes of a part."""
    recognize(model, tmp_path / "whole", folder)
    recognize(model, tmp_path / "out", folder, part_photos=3)
    (tmp_path / "out/photos/part-00001.parquet").unlink()
    recognize(model, tmp_path / "out", folder, resume=True)
    for table in ("faces", "photos"):
        assert rows(tmp_path / "out" / table) == rows(tmp_path / "whole" / table)


def test_an_error_in_the_middle_leaves_what_is_done_readable(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    class FailsLate:
        name = "fails late"

        def detect(self, image: np.ndarray) -> tuple[()]:
            if image.shape[0] == 300:  # the last photo
                raise ZeroDivisionError("in the detector")
            return ()

    with pytest.raises(ZeroDivisionError):
        recognize(model, tmp_path / "r.parquet", folder, detector=FailsLate())
    assert len(rows(tmp_path / "r-photos.parquet")) == 4
    assert (tmp_path / "r.parquet.parts").is_dir()


def test_many_sources_are_remembered_in_eight_bytes_each() -> None:
    done = Done(iter(["a.jpg", "b.jpg", "b.jpg", "caf\\udce9.jpg"]))
    assert [done(n) for n in ("a.jpg", "a.jpg", "b.jpg", "b.jpg", "b.jpg", "caf\udce9.jpg", "x")] == [
        *(True, False, True, True, False, True, False)
    ]


def test_options_of_tables_need_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "a.jpg", "--resume"]) == 2
    assert "only with --output" in capsys.readouterr().err
    assert run(["predict", "a.jpg", "-o", "out", "--json"]) == 2
    assert "--output writes tables in place of printing" in capsys.readouterr().err
    assert run(["predict", "a.jpg", "-o", "out", "--workers", "4:2"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out", "--address", "auto"], "--address: it is for Ray"),
        (["-o", "out", "--worker-cores", "1"], "--worker-cores: it is for Ray"),
        (["-o", "out", "--worker-gpus", "0"], "--worker-gpus: it is for Ray"),
        (["-o", "out", "--workers", "2:16"], "--workers 2:16: it is for Ray"),
        (["-o", "out", "--fps", "5"], "--fps: it is for clips"),
        (["--engine", "ray", "--worker-gpus", "0"], "only with --output"),
        (["--json", "--all"], "--all: it is for tables"),
        (["--no-landmarks"], "--no-landmarks: it is for the annotated copies"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: they were ignored."""
    assert run(["predict", "a.jpg", *arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error


def test_metrics_are_in_the_text_format_of_prometheus(folder: Path, model: Path, tmp_path: Path) -> None:
    predict(folder, "-o", tmp_path / "out", "--metrics", tmp_path / "m.prom", model=model)
    parser = pytest.importorskip("prometheus_client.parser")
    families = {f.name: f for f in parser.text_string_to_metric_families((tmp_path / "m.prom").read_text())}
    photos = {s.labels["status"]: s.value for s in families["ferkit_batch_photos"].samples}
    assert photos == {"ok": 3, "no face": 1, "unreadable": 1}
    assert families["ferkit_batch_faces"].samples[0].value == 3
    assert families["ferkit_batch_complete"].samples[0].value == 1


def write_crops(folder: Path, number: int) -> Path:
    folder.mkdir()
    for k in range(number):
        Image.fromarray(np.full((16, 16), k, np.uint8)).save(folder / f"{k:03d}.png")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_readable_tables_and_resume_completes_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = write_crops(tmp_path / "crops", 200)
    write = Output.write

    def write_and_interrupt(output: Output, chunk: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(Output, "write", write)
        output.write(chunk)

    arguments = [crops, "--detector", "none", "--workers", "2", "-o"]
    assert predict(*arguments, tmp_path / "whole.parquet", model=model) == 0
    monkeypatch.setattr(Output, "write", write_and_interrupt)
    assert predict(*arguments, tmp_path / "r.parquet", model=model) == 128 + signal.SIGINT
    assert "the tables hold what is done, and --resume continues" in capsys.readouterr().err
    done = len(rows(tmp_path / "r-photos.parquet"))
    assert 32 <= done < 200
    assert len(rows(tmp_path / "r.parquet")) == done
    assert predict(*arguments, tmp_path / "r.parquet", "--resume", model=model) == 0
    assert f"({done} were done before)" in capsys.readouterr().err
    for table in ("", "-photos"):
        assert rows(tmp_path / f"r{table}.parquet") == rows(tmp_path / f"whole{table}.parquet")


class Waits:
    """Finds one face in each photo, but for the one that it waits in."""

    name = "waits"

    def __init__(self, at: int) -> None:
        self.at = at

    def detect(self, image: np.ndarray) -> tuple[Detection, ...]:
        if image[0, 0, 0] == self.at:
            print("waiting", flush=True)
            time.sleep(600)
        return (Detection((0.0, 0.0, 16.0, 16.0), 0.5),)


KILLED = """
import sys
from test_batch import Waits, recognize
model, target, crops = sys.argv[1:]
recognize(model, target, crops, detector=Waits(30), part_photos=4, batch_size=4, workers=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_process_loses_nothing_and_repeats_nothing(model: Path, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", 40)
    recognize(model, tmp_path / "whole", crops, detector=Waits(-1))
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "out"), str(crops)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.kill()
    done = columns(tmp_path / "out/photos", "source")
    assert 0 < len(done) < 31
    assert recognize(model, tmp_path / "out", crops, detector=Waits(-1), resume=True).photos == 40 - len(done)
    for table in ("faces", "photos"):
        assert rows(tmp_path / "out" / table) == rows(tmp_path / "whole" / table)


def test_clips_become_one_table_with_tracks_and_times(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="clips in tables need ferkit[video]")
    from clips import write_clip

    with Image.open(ASTRONAUT) as photo:
        face = np.asarray(photo.convert("RGB").resize((256, 256)))
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", [face] * 6)
    write_clip(tmp_path / "clips" / "b.mp4", [np.zeros_like(face)] * 4)
    (tmp_path / "clips" / "c.mp4").write_bytes(b"no clip")
    (tmp_path / "clips" / "d.jpg").write_bytes(b"a photo, which is passed over")
    out = tmp_path / "r.parquet"
    assert predict(tmp_path / "clips", "--clips", "-o", out, "--workers", "2", model=model) == 1
    seen = rows(tmp_path / "r-clips.parquet")
    names = [str(tmp_path / "clips" / f"{name}.mp4") for name in "abc"]
    assert [(row["source"], row["status"], row["frames"]) for row in seen] == [
        *((names[0], "ok", 6), (names[1], "no face", 4), (names[2], "unreadable", None))
    ]
    assert seen[0]["seconds"] == pytest.approx(6 / 30)
    assert [len(task.items) for task in Inputs(names, clips=True).tasks(Done())] == [1, 1, 1]
    expected = list(Recognizer(model).video(names[0]))
    found = rows(out)
    assert [(r["frame"], r["time"], r["track"]) for r in found] == [
        (f.index, f.time, f.faces[0].track) for f in expected
    ]
    assert [r["probabilities"] for r in found] == [dict(f.faces[0].face.probabilities) for f in expected]


def test_ctrl_c_leaves_out_the_clip_that_is_read_and_keeps_those_before(model: Path, tmp_path: Path) -> None:
    """A known fault: up to 1,023 finished clips were in memory only, and the last were read to the end."""
    pytest.importorskip("av", reason="clips in tables need ferkit[video]")
    from clips import write_clip

    stop = threading.Event()

    class Stops(Waits):
        def detect(self, image: np.ndarray) -> tuple[Detection, ...]:
            if image[0, 0, 0] > 200 and not stop.is_set():
                for _ in range(1000):  # writing it takes a moment
                    if part.exists():
                        break
                    time.sleep(0.01)
                stop.set()
            return super().detect(image)

    part = tmp_path / "out/photos/part-00000.parquet"
    names = [tmp_path / f"{name}.mp4" for name in "abc"]
    for name, value in zip(names, (100, 250, 100), strict=True):
        write_clip(name, [np.full((64, 64, 3), value, np.uint8)] * 20)
    counts = recognize(model, tmp_path / "out", *names, detector=Stops(-1), stop=stop, clips=True)
    assert columns(part, "source") == [str(names[0])]
    assert columns(tmp_path / "out/photos", "source") == [str(names[0])]
    assert (counts.photos, counts.failed) == (1, 0)


@pytest.mark.parametrize(
    ("library", "read", "as_dict"),
    [
        ("pandas", 'pandas.read_parquet("results/faces").groupby("label").confidence.mean()', "{}.to_dict()"),
        (
            "duckdb",
            "duckdb.sql(\"SELECT label, avg(confidence) FROM 'results/faces/*.parquet' GROUP BY label\")",
            "dict({}.fetchall())",
        ),
        (
            "polars",
            'polars.scan_parquet("results/faces/*.parquet").group_by("label")'
            '.agg(polars.col("confidence").mean()).collect()',
            "dict({}.iter_rows())",
        ),
    ],
)
def test_the_tables_are_read_as_the_page_shows(
    library: str,
    read: str,
    as_dict: str,
    folder: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pytest.importorskip(library)
    shown = (Path(__file__).parents[1] / "docs" / "batch.md").read_text()
    assert "".join(read.split()) in "".join(shown.split())
    monkeypatch.chdir(tmp_path)
    predict(folder, "-o", "results", model=model)
    found = eval(as_dict.format(read), {library: module})
    faces = rows("results/faces")
    for label in {row["label"] for row in faces}:
        mean = np.mean([row["confidence"] for row in faces if row["label"] == label])
        assert found[label] == pytest.approx(mean)
    nested = pq.read_table("results/faces")["probabilities"].combine_chunks().flatten()
    assert len(nested) == len(Recognizer(model).taxonomy.labels)
