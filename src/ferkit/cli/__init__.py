"""The command line: a table of commands, each imported only when it is asked for."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO, cast

from ferkit import __version__
from ferkit.core.errors import FerkitError, OutputError


class Command(NamedTuple):
    """One line of the command table."""

    module: str
    """Module that holds the command's ``app``, a ``typer.Typer``."""
    summary: str
    """What the command does, in one line of ``ferkit --help``."""


COMMANDS = {
    "predict": Command("ferkit.cli.predict_command", "Read the expressions of the faces in photos."),
    "video": Command("ferkit.cli.video_command", "Follow the people in a clip and read their expressions."),
    "data": Command("ferkit.cli.data_command", "Look at, audit and convert labelled faces."),
    "train": Command("ferkit.cli.train_command", "Train a network by a recipe."),
    "distil": Command("ferkit.cli.distil_command", "Train a student on a teacher's answers and the labels."),
    "recipes": Command("ferkit.cli.recipes_command", "List recipes, or every key of one with its meaning."),
    "search": Command("ferkit.cli.search_command", "Search networks and recipes at random or guided."),
    "evaluate": Command("ferkit.cli.evaluate_command", "Measure a model on a split."),
    "compare": Command("ferkit.cli.compare_command", "Say whether labelled faces tell two models apart."),
    "export": Command("ferkit.cli.export_command", "Turn a training run into one model file."),
    "ensemble": Command("ferkit.cli.ensemble_command", "Join models into one that votes."),
    "models": Command("ferkit.cli.models_command", "List networks, recipes and embedded models."),
    "doctor": Command("ferkit.cli.doctor_command", "Say what is installed, what works and what is missing."),
}
"""Every command by name, in the order in which the help lists them."""

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

WIDTH = 100
"""Columns of help, where the terminal has them."""


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    0: done. 1: a :class:`~ferkit.core.errors.FerkitError`, printed as one line on stderr. 2: a command line
    that cannot be understood. 130: interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold what no encoding has, and a result what that of a redirected stdout has not.
        codecs.register_error("ferkit.escape", _escape)
        sys.stdout.reconfigure(errors="ferkit.escape")
    with contextlib.redirect_stdout(cast(TextIO, _StandardOutput(sys.stdout))):
        return _run(arguments)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return the escapes of JSON for letters that an encoding does not have: JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _run(arguments: Sequence[str]) -> int:
    try:
        status = _dispatch(list(arguments))
        sys.stdout.flush()
    except FerkitError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        from ferkit.core.extras import explain_missing

        missing = explain_missing(error)
        if missing is None:
            raise
        return _fail(str(missing))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # The reader went away (`ferkit ... | head`), which needs no word.
    return status


class _StandardOutput:
    """The standard output, whose refusal of what is written is an error for people, told once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write."""
        with self._explained():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush."""
        with self._explained():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer goes nowhere, quietly: Python would try it again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            why = error.strerror or error
            raise OutputError(f"cannot write the standard output: {why}") from error


def help_text() -> str:
    """Return the text of ``ferkit --help``."""
    width = max(len(name) for name in COMMANDS)
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "Usage: ferkit COMMAND [OPTIONS] ...\n\n"
        "Facial expression recognition: train, measure and ship small networks on FER2013,\n"
        "and read expressions from photos and video.\n\n"
        f"Commands:\n{commands}\n\n"
        "Options:\n"
        "  --version   Show the version and exit.\n"
        "  -h, --help  Show this message and exit; after a command, show that command's help.\n"
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(help_text(), end="", file=sys.stderr)
        return USAGE
    first, *rest = arguments
    if first in ("-h", "--help"):
        print(help_text(), end="")
        return OK
    if first == "--version":
        print(f"ferkit {__version__}")
        return OK
    if first not in COMMANDS:
        return _unknown(first)
    return _call(first, rest)


def _call(name: str, arguments: list[str]) -> int:
    import importlib

    from typer.main import get_command

    # TensorFlow tells about its kernels on stderr, where our own lines go; only its errors are wanted there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app = importlib.import_module(COMMANDS[name].module).app
    command = get_command(app)
    command.context_settings.update(help_option_names=["-h", "--help"], max_content_width=WIDTH)
    try:
        command.main(args=arguments, prog_name=f"ferkit {name}")
    except SystemExit as end:
        if end.code is None:
            return OK
        return end.code if isinstance(end.code, int) else _fail(str(end.code))
    return OK


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    what = "option" if name.startswith("-") else "command"
    hint = f"did you mean '{near[0]}'?" if near else "'ferkit --help' lists the commands."
    print(f"error: unknown {what} {name!r}; {hint}", file=sys.stderr)
    return USAGE


def _fail(message: str) -> int:
    with contextlib.suppress(OutputError, BrokenPipeError):  # The first error is the one to tell.
        sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return FAILED
