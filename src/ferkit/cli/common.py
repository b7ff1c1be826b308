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

WIDE = 120
"""Columns of a table that goes into a file or a pipe, where nobody's window sets them."""

_DATA = typer.Option(
    "--data",
    help="Labelled faces: a csv (.gz, .xz, .zip, .tar.gz), a folder, a zip of a folder, or "
    "cartoon[:N[:SEED]].",
    show_default=False,
)
DataOption = Annotated[str, _DATA]
DataChoice = Annotated[str | None, _DATA]
VotesOption = Annotated[
    Path | None,
    typer.Option("--votes", help="FER+ votes (fer2013new.csv), joined by row.", show_default=False),
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
    bool, typer.Option("--drop-leaks", help="Leave out Training images that also stand in another split.")
]
DropFlatOption = Annotated[bool, typer.Option("--drop-flat", help="Leave out images of one single colour.")]


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
    """Load labelled faces, and say so where they have a size of their own and another was asked for."""
    from ferkit.data import load_dataset
    from ferkit.data.load import DEFAULT_SIZE

    dataset = load_dataset(source, size=DEFAULT_SIZE if size is None else size, **options)
    if size is not None and dataset.size != size:
        remark(
            f"--size {size} is for faces that are drawn or come from pictures; those of {source} stay at "
            f"{dataset.size} pixels"
        )
    return dataset


def print_json(content: Any) -> None:
    """Print ``content`` as indented JSON on stdout; numbers that are not finite are refused."""
    print(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False))


def load_keras() -> None:
    """Import Keras with ferkit's settings, and hide what TensorFlow prints on stderr while it starts.

    ``TF_CPP_MIN_LOG_LEVEL`` does not affect lines that are written before TensorFlow's log is set up. If the
    import fails, they are printed after all.

    Raises:
        MissingDependencyError: If the extra ``train``, or the chosen backend, is not installed.
        TrainingError: If ferkit does not train on the chosen backend.
    """
    import importlib
    import tempfile

    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        started = False
        try:
            importlib.import_module("ferkit.training.backend")
            started = True
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not started:
                held.seek(0)
                os.write(2, held.read())


def as_tta_mode(name: str) -> TtaMode:
    """Return the test-time augmentation of that name.

    Raises:
        typer.BadParameter: If there is none.
    """
    from ferkit.core.crops import TTA_MODES

    if name not in TTA_MODES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(TTA_MODES)}", param_hint="--tta")
    return name
