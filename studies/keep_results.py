"""Copies what results/ keeps of a model: its recipe, history, curves, report, and one confusion matrix.

    python studies/keep_results.py --run runs/small --report report/ --out results/ferkit-small

The folder --report is written by `ferkit evaluate --out`. Its report.json is stored without line breaks and
without reliability bins, the numbers of the history with six digits, pictures with 64 colours. A model then
takes about 120 KiB.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from ferkit.core import files

RUN_FILES = ("recipe.toml", "history.csv", "curves.png")
REPORT_FILES = ("report.txt", "report.json")
CONFUSION = "confusion-fer2013-none.png"
DROPPED = "reliability"
LONG_NUMBER = re.compile(r"\d+\.\d{6,}(?:e[+-]?\d+)?")


def without(value: Any, key: str) -> Any:
    """Return a copy of a JSON value from which ``key`` is removed at every depth."""
    if isinstance(value, dict):
        return {name: without(item, key) for name, item in value.items() if name != key}
    return [without(item, key) for item in value] if isinstance(value, list) else value


def reduced(source: Path) -> bytes:
    """Return the content of a file as results/ stores it; recipes and texts stay as they are."""
    if source.suffix == ".json":
        report = without(json.loads(source.read_text(encoding="utf-8")), DROPPED)
        return (json.dumps(report, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
    if source.suffix == ".png":
        buffer = io.BytesIO()
        with Image.open(source) as picture:
            small = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        small.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    if source.suffix == ".csv":
        return LONG_NUMBER.sub(lambda number: f"{float(number[0]):.6g}", source.read_text("utf-8")).encode()
    return source.read_bytes()


def keep(run: Path | None, report: Path, out: Path) -> None:
    """Write the kept files of a run and of its report into ``out``; an ensemble has no run.

    Raises:
        OSError: If one of the files is missing.
    """
    kept = {name: report / name for name in REPORT_FILES}
    if run is not None:
        kept |= {name: run / name for name in RUN_FILES}
    kept["confusion.png"] = report / CONFUSION
    contents = {name: reduced(source) for name, source in kept.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.write_bytes(out / name, content)


def main() -> None:
    """Read the command line and copy the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder of the model; an ensemble has none")
    parser.add_argument("--report", type=Path, required=True, help="folder of `ferkit evaluate --out`")
    parser.add_argument("--out", type=Path, required=True, help="folder below results/")
    arguments = parser.parse_args()
    keep(arguments.run, arguments.report, arguments.out)


if __name__ == "__main__":
    main()
