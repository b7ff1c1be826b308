"""What the commands share: their Typer application, consoles, and the options that several of them take."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.weights import DEFAULT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from ferkit.core.crops import TtaMode
    from ferkit.data import FaceDataset

WIDE = 120
"""Columns of a table that goes into a file or a pipe, where nobody's window sets them."""

MODEL_HELP = "A model file, a run's folder, or a name of `ferkit models`."
TTA_HELP = "Test-time augmentation: none, flip (the mean with the mirror image) or ten-crop (ten crops)"


def option(names: str, text: str, default: str | bool = False, **more: Any) -> Any:
    """Return a Typer option.

    ``names`` are separated by blanks: ``--out -o``. ``default`` is what the help shows as its default; True:
    the default itself, False: nothing.
    """
    return typer.Option(*names.split(), help=text, show_default=default, **more)


def _check_source(source: Any) -> Any:
    """Raise the error of a source that does not exist before a command imports its libraries."""
    from ferkit.data import check_source

    if source is not None:
        check_source(source)
    return source


_DATA = option(
    "--data",
    "Labelled faces: a csv (.gz, .xz, .zip, .tar.gz), a Parquet file, a folder, a zip of a folder, or "
    "cartoon[:N[:SEED]].",
    callback=_check_source,
)
DataOption = Annotated[str, _DATA]
DataChoice = Annotated[str | None, _DATA]
VotesOption = Annotated[
    Path | None, option("--votes", "FER+ votes (fer2013new.csv), joined by row.", callback=_check_source)
]
ModelOption = Annotated[
    str | None, option("--model -m", "A model file, or a name of `ferkit models`.", DEFAULT)
]
ModelOrRun = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=DEFAULT)]
ProviderOption = Annotated[
    list[str] | None,
    option(
        "--provider",
        "ONNX Runtime execution provider, such as CUDAExecutionProvider; may be repeated, in order "
        "of preference. A missing one is an error.",
        "the CPU",
        metavar="NAME",
    ),
]
DETECTOR_HELP = "yunet, yunet:FILE, centerface, or none (each picture is a face crop already)"
DetectorOption = Annotated[str, option("--detector", f"{DETECTOR_HELP}.", default=True)]
MinFaceOption = Annotated[
    float | None,
    option(
        "--min-face",
        "Height in pixels of the smallest face to search for; smaller values take longer.",
        "48; smaller ones that are found are kept",
        min=5,
    ),
]
MinConfidenceOption = Annotated[
    float,
    option("--min-confidence", "Label faces uncertain below this probability.", default=True, min=0, max=1),
]
LabelSetOption = Annotated[str | None, option("--taxonomy", "Label set, one of the model's.", "its default")]
MaxErrorOption = Annotated[
    float | None,
    option(
        "--max-error",
        "Label faces uncertain below the confidence that leaves this share of the others wrong, by the "
        "coverage curve in the model file.",
        min=0.001,
        max=0.999,
    ),
]
PRIOR_HELP = "How frequent the labels are: training, uniform, or a TOML file of LABEL = FREQUENCY"
PriorOption = Annotated[str | None, option("--prior", f"{PRIOR_HELP}.", "its own")]
TtaOption = Annotated[str, option("--tta", f"{TTA_HELP}.", default=True)]
NetworkThreadsOption = Annotated[
    int | None, option("--threads", "Threads of the networks.", "all cores", min=1)
]
RuntimeThreadsOption = Annotated[
    int | None, option("--threads", "Threads of ONNX Runtime; not for a run.", "all cores", min=1)
]
SizeOption = Annotated[
    int | None,
    option(
        "--size",
        "Side of faces that are drawn or come from pictures; others keep theirs.",
        "48",
        min=16,
        max=512,
    ),
]
JsonOption = Annotated[bool, option("--json", "Print JSON instead of text.", default=True)]
JsonFileOption = Annotated[Path | None, option("--json", "Write all figures to this file as well.")]
DropLeaksOption = Annotated[
    bool, option("--drop-leaks", "Leave out Training images with a duplicate in another split.", default=True)
]
DropFlatOption = Annotated[
    bool, option("--drop-flat", "Leave out images of one constant colour.", default=True)
]


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
    from ferkit.cli.streams import make_console

    stream = sys.stderr if stderr else sys.stdout
    return make_console(stream, None if stream.isatty() or "COLUMNS" in os.environ else WIDE)


def remark(text: str) -> None:
    """Print one line on stderr, where it does not disturb what stdout carries."""
    print(text, file=sys.stderr, flush=True)


def passed_over_remark(passed_over: Mapping[str, int]) -> str:
    """Return the line about photos of unsupported formats, given their number by suffix."""
    kinds = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    return (
        "photos of formats that ferkit does not read were passed over: "
        f"{', '.join(f'{number} {suffix}' for suffix, number in kinds)}; convert them to JPEG or PNG"
    )


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
            # The check is part of the import; a process that has imported it before checks again.
            importlib.import_module("ferkit.training.backend").check_backend()
            started = True
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not started:
                held.seek(0)
                os.write(2, held.read())


def as_tta_mode(name: str, *also: str) -> TtaMode:
    """Return the test-time augmentation of that name; the message also names the values in ``also``.

    Raises:
        typer.BadParameter: If there is none.
    """
    from ferkit.core.crops import TTA_MODES

    if name not in TTA_MODES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join((*TTA_MODES, *also))}", param_hint="--tta")
    return name


def refuse_options(given: Mapping[str, object], why: str) -> None:
    """Refuse options that do not go with the others.

    ``given`` are values by option; None, False and empty lists are options that were not given.

    Raises:
        typer.BadParameter: If one of them was given.
    """
    foreign = [name for name, value in given.items() if not (value is None or value is False or value == [])]
    if foreign:  # 0.0 equals False, and was given
        raise typer.BadParameter(why, param_hint=", ".join(foreign))


@contextlib.contextmanager
def progress(
    unit: str, total: Callable[[], int | None] = lambda: None, *, hidden: bool = False
) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a progress bar on stderr by one; without a terminal there is no bar.

    ``unit`` is what is counted, such as ``photos``; ``total`` returns None while it is unknown. A single step
    shows no bar.
    """
    screen = console(stderr=True)
    if hidden or not screen.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (MofNCompleteColumn(), TextColumn(unit), BarColumn(), time_left())
    bar = Progress(*columns, console=screen, transient=True, redirect_stdout=False)
    task = bar.add_task("", total=None)

    def advance() -> None:
        bar.update(task, advance=1, total=total())
        if bar.tasks[0].completed > 1:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def time_left() -> ProgressColumn:
    """Return a column of a Rich progress bar with the estimated time: ``12 s left``."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            return Text("" if task.time_remaining is None else f"{in_words(task.time_remaining)} left")

    return TimeLeft()


def in_words(seconds: float) -> str:
    """Return a duration with its largest two units.

    Example:
        >>> in_words(12.3), in_words(200), in_words(7500)
        ('12 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
