"""What the commands share: their Typer application, consoles, and the options that several of them take."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ferkit.core.crops import TtaMode
    from ferkit.data import FaceDataset

BACKENDS = ("tensorflow", "jax")
"""What Keras may compute on; the first is its default."""

WIDE = 120
"""Columns of a table that goes into a file or a pipe, where nobody's window sets them."""


def _check_source(source: Any) -> Any:
    """Raise the error of a source that does not exist before a command imports its libraries."""
    from ferkit.data import check_source

    if source is not None:
        check_source(source)
    return source


_DATA = typer.Option(
    "--data",
    help="Labelled faces: a csv (.gz, .xz, .zip, .tar.gz), a Parquet file, a folder, a zip of a folder, or "
    "cartoon[:N[:SEED]].",
    show_default=False,
    callback=_check_source,
)
DataOption = Annotated[str, _DATA]
DataChoice = Annotated[str | None, _DATA]
VotesOption = Annotated[
    Path | None,
    typer.Option(
        "--votes",
        help="FER+ votes (fer2013new.csv), joined by row.",
        show_default=False,
        callback=_check_source,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A model file, or the name of an embedded model.", show_default="embedded"
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="ONNX Runtime execution provider, such as CUDAExecutionProvider; may be repeated, in order "
        "of preference. One that is not there is an error.",
        show_default="the CPU",
    ),
]
TtaOption = Annotated[
    str,
    typer.Option(
        "--tta",
        help="Test-time augmentation: none, flip (the mean with the mirror image) or ten-crop (ten crops).",
    ),
]
NetworkThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of the networks, but for yunet, which has OpenCV's.",
        show_default="as many as there are cores",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=16,
        max=512,
        help="Side of faces that are drawn or come from pictures; others keep theirs.",
        show_default="48",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
JsonFileOption = Annotated[
    Path | None, typer.Option("--json", help="Write all figures to this file as well.", show_default=False)
]
DropLeaksOption = Annotated[
    bool, typer.Option("--drop-leaks", help="Leave out Training images with a duplicate in another split.")
]
DropFlatOption = Annotated[bool, typer.Option("--drop-flat", help="Leave out images of one constant colour.")]


def new_app(summary: str | None = None) -> typer.Typer:
    """Return the Typer application of one command, or of a group of commands with ``summary`` as its help."""
    return typer.Typer(
        help=summary,
        add_completion=False,
        no_args_is_help=summary is not None,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def console(*, stderr: bool = False) -> Console:
    """Return a Rich console on stdout (results) or stderr (progress, remarks).

    Where that is no terminal, lines are :data:`WIDE` columns and nothing is coloured.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def remark(text: str) -> None:
    """Print one line on stderr, where it does not disturb what stdout carries."""
    print(text, file=sys.stderr, flush=True)


def command_line(words: Sequence[str]) -> str:
    """Return words as one line to paste into a shell of this system."""
    import shlex
    import subprocess

    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def data_options(data: str, votes: Path | None) -> list[str]:
    """Return the options that name the data, for commands to go on with."""
    return ["--data", data] if votes is None else ["--data", data, "--votes", str(votes)]


def load_faces(source: str, size: int | None, **options: Any) -> FaceDataset:
    """Load labelled faces, and print a remark where they have another size than ``size``."""
    from ferkit.data import load_data
    from ferkit.data.load import DEFAULT_SIZE

    dataset = load_data(source, size=DEFAULT_SIZE if size is None else size, **options)
    if size is not None and dataset.size != size:
        remark(
            f"--size {size} applies to faces that are drawn or come from pictures; those of {source} keep "
            f"their {dataset.size} pixels"
        )
    return dataset


def print_json(content: Any) -> None:
    """Print ``content`` as indented JSON on stdout; numbers that are not finite are refused."""
    print(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False))


def load_keras() -> None:
    """Import Keras with its backend, and keep what TensorFlow writes while it starts off stderr.

    TensorFlow's own switch for it does not reach lines that are written before its log is set up. If the
    import fails, they are printed after all.

    Raises:
        MissingDependencyError: If the extra ``train``, or the backend that was chosen, is not installed.
        TrainingError: If the backend that was chosen is none that ferkit trains and reads runs on.
    """
    import tempfile

    from ferkit.core.extras import require

    _check_backend()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        started = False
        try:
            require("keras", "train")
            started = True
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not started:
                held.seek(0)
                os.write(2, held.read())


def _check_backend() -> None:
    """Refuse a backend of Keras that ferkit does not compute on, before Keras is imported and fails at it."""
    from ferkit.core.errors import TrainingError

    told = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    chosen, where = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not chosen:
        where = str(told)
        try:
            chosen = json.loads(told.read_text("utf-8"))["backend"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # Keras takes its own default, TensorFlow.
    if chosen not in BACKENDS:
        raise TrainingError(
            f"ferkit trains, and reads runs, on Keras' backends {' and '.join(BACKENDS)}; set "
            f"KERAS_BACKEND to one of them. Received: {chosen!r} (from {where})"
        )


def as_tta_mode(name: str) -> TtaMode:
    """Return the test-time augmentation of that name.

    Raises:
        typer.BadParameter: If there is none.
    """
    from ferkit.core.crops import TTA_MODES

    if name not in TTA_MODES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(TTA_MODES)}", param_hint="--tta")
    return name
