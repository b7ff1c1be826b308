"""Fuzzing of the files that commands read besides pictures and clips: labelled faces, model files, recipes.

    python fuzz/sources.py --cases 5000

Mutated tables, archives, .npz and Parquet files of faces, FER+ votes, model files, recipes and search spaces
are read or refused. Any exception except a FerkitError is a finding. Findings and `--json` are as in
``photos.py``.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from photos import Results, add_limits, run_cases
from PIL import Image

from ferkit.core.errors import FerkitError, ImageError
from ferkit.core.modelfile import read_model, resolve_model
from ferkit.data import load_data
from ferkit.data.convert import write_dataset
from ferkit.data.ferplus import read_votes
from ferkit.search.space import load_space, shipped_spaces
from ferkit.training.recipe import dump_recipe, load_recipe, shipped_recipes


def face_files(folder: Path) -> list[bytes]:
    """Return 21 drawn faces in each layout that is read."""
    faces = load_data("cartoon:21", cache=False, size=16)
    found = []
    for name in ("faces.csv", "faces.csv.gz", "faces.npz"):
        write_dataset(faces, folder / name)
        found.append((folder / name).read_bytes())
    pictures = {}
    for row in range(len(faces)):
        content = io.BytesIO()
        Image.fromarray(np.asarray(faces.images[row])).save(content, "PNG")
        pictures[f"train/{faces.taxonomy.labels[faces.labels[row]]}/{row}.png"] = content.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, picture in pictures.items():
            archive.writestr(name, picture)
    found.append(packed.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, picture in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    found.append(packed.getvalue())
    return [*found, *_parquet(list(pictures.values()))]


def _parquet(pictures: list[bytes]) -> list[bytes]:
    """Return pictures and labels as a Parquet file, where PyArrow is installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        return []
    rows = {"image": [{"bytes": picture, "path": None} for picture in pictures]}
    content = io.BytesIO()
    parquet.write_table(pa.table({**rows, "label": [k % 7 for k in range(len(pictures))]}), content)
    return [content.getvalue()]


def vote_file(folder: Path) -> bytes:
    """Return FER+ votes of 21 faces."""
    write_dataset(load_data("cartoon:21", cache=False), folder / "f.csv", votes=folder / "votes.csv")
    return (folder / "votes.csv").read_bytes()


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=5000, help="mutated files of each kind")
    add_limits(parser, seconds=10.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.getLogger("ferkit.data").addHandler(logging.NullHandler())
    rng = random.Random(arguments.seed)
    with Results(arguments) as results, tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def read_with(read: Callable[[Path], object], suffix: str = "") -> Callable[[bytes], object]:
            def case(content: bytes) -> None:
                path = folder / f"case{suffix}"
                path.write_bytes(content)
                try:
                    read(path)
                except FerkitError as error:
                    raise ImageError(str(error)) from error  # counted as refused by `run_cases`

            return case

        kinds: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
            "faces": (face_files(folder), read_with(lambda path: load_data(path, cache=False))),
            "votes": ([vote_file(folder)], read_with(read_votes, ".csv")),
            "models": ([resolve_model(None).read_bytes()], read_with(read_model, ".onnx")),
            "recipes": (
                [dump_recipe(load_recipe(name)).encode() for name in shipped_recipes()],
                read_with(load_recipe, ".toml"),
            ),
            "spaces": (
                [load_space(name).text.encode() for name in shipped_spaces()],
                read_with(load_space, ".toml"),
            ),
        }
        for kind, (seeds, case) in kinds.items():
            run_cases(kind, arguments.cases, seeds, case, rng, arguments, results)
    sys.exit(1 if results.findings else 0)


if __name__ == "__main__":
    main()
