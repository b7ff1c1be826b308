"""The command line: a table of commands, each imported when it is called."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ferkit import __version__
from ferkit.cli.streams import guarded_streams
from ferkit.core.errors import FerkitError, OutputError, near_matches

if TYPE_CHECKING:
    import typer


class Command(NamedTuple):
    """One line of the command table."""

    module: str
    """Module that holds the command's ``app``, a ``typer.Typer``."""
    summary: str
    """What the command does, in one line of ``ferkit --help``."""


COMMANDS = {
    "predict": Command("ferkit.cli.predict_command", "Find faces in photos and classify their expressions."),
    "video": Command("ferkit.cli.video_command", "Track faces in a clip and classify their expressions."),
    "serve": Command("ferkit.cli.serve_command", "Serve photos, clips and webcam over HTTP, with a page."),
    "live": Command("ferkit.cli.live_command", "Open the page at the webcam."),
    "data": Command("ferkit.cli.data_command", "Inspect, audit, show and convert labelled faces."),
    "train": Command("ferkit.cli.train_command", "Train a network by a recipe."),
    "distil": Command("ferkit.cli.distil_command", "Train a student on labels and teachers' predictions."),
    "recipes": Command("ferkit.cli.recipes_command", "List recipes, or every key of one with its meaning."),
    "search": Command("ferkit.cli.search_command", "Search hyperparameters."),
    "evaluate": Command("ferkit.cli.evaluate_command", "Measure a model on labelled faces or photos."),
    "compare": Command("ferkit.cli.compare_command", "Test whether two models differ significantly."),
    "export": Command("ferkit.cli.export_command", "Turn a training run into one model file."),
    "ensemble": Command("ferkit.cli.ensemble_command", "Join models into one ensemble file."),
    "models": Command("ferkit.cli.models_command", "List the models, architectures and recipes."),
    "completion": Command("ferkit.cli.completion_command", "Print a script for completion in a shell."),
    "doctor": Command("ferkit.cli.doctor_command", "Show what is installed, what works and what is missing."),
}
"""Every command by name, in the order in which the help lists them."""

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

WIDTH = 100
"""Columns of help, where the terminal has them."""

COMPLETE_VARIABLE = "_FERKIT_COMPLETE"
"""The environment variable by which a shell requests a completion."""


def main() -> None:
    """Run the command line of this process and exit."""
    if sys.argv[1:2] == ["predict"]:
        # A tenth of the time of one photo would go into searching new modules for garbage. `predict` enables
        # it again when its networks are open.
        gc.disable()
    status = run(sys.argv[1:])
    gc.disable()  # the memory is freed anyway
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    0: success. 1: a :class:`~ferkit.core.errors.FerkitError`. 2: a wrong command line. Both are printed as
    one line on stderr, ``error: ...``. 130: interrupted.
    """
    with guarded_streams():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        status = _dispatch(list(arguments))
        sys.stdout.flush()
    except FerkitError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # The reader has ended, as in `ferkit ... | head`.
    except Exception as error:
        from ferkit.core.extras import explain_import_error

        explained = explain_import_error(error)
        if explained is None:
            raise
        return _fail(str(explained))
    return status


def help_text() -> str:
    """Return the text of ``ferkit --help``."""
    width = max(len(name) for name in COMMANDS)
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "Usage: ferkit COMMAND [OPTIONS] ...\n\n"
        "Facial expression recognition: train, measure and ship small networks on\n"
        "FER2013, and recognize expressions in photos and video.\n\n"
        f"Commands:\n{commands}\n\n"
        "Options:\n"
        "  -V, --version  Show the version and exit.\n"
        "  -h, --help     Show this message, or a command's help, and exit.\n"
    )


def _dispatch(arguments: list[str]) -> int:
    if COMPLETE_VARIABLE in os.environ:
        from ferkit.cli.completion_command import complete

        return _exit_status(complete)
    if not arguments:
        print(help_text(), end="", file=sys.stderr)
        return USAGE
    first, *rest = arguments
    if first in ("-h", "--help"):
        print(help_text(), end="")
        return OK
    if first in ("-V", "--version"):
        print(f"ferkit {__version__}")
        return OK
    if first not in COMMANDS:
        what = "option" if first.startswith("-") else "command"
        hint = near_matches(first, COMMANDS) or "'ferkit --help' lists the commands"
        return _fail(f"unknown {what} {first!r}; {hint}", USAGE)
    return _call(first, rest)


def load_app(name: str) -> typer.Typer:
    """Import a command and return its Typer application."""
    app: typer.Typer = importlib.import_module(COMMANDS[name].module).app
    return app


def _call(name: str, arguments: list[str]) -> int:
    import typer
    from typer.main import get_command

    # TensorFlow writes about its kernels to stderr; only its errors are of interest there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command = get_command(load_app(name))
    command.context_settings.update(help_option_names=["-h", "--help"], max_content_width=WIDTH)
    # The base of all usage errors; it is Click's own, or that of the Click inside Typer.
    usage_error: Any = typer.BadParameter.__base__
    try:
        return _exit_status(
            lambda: command.main(args=arguments, prog_name=f"ferkit {name}", standalone_mode=False)
        )
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return USAGE
        message = error.format_message().rstrip(".")
        path = error.ctx.command_path if error.ctx else f"ferkit {name}"
        return _fail(f"{message[:1].lower()}{message[1:]}; see '{path} --help'", USAGE)
    except typer.Abort:
        return INTERRUPTED


def _exit_status(function: Callable[[], object]) -> int:
    """Call a function and return the exit status that it returns or exits with."""
    try:
        status = function()
    except SystemExit as end:
        status = end.code
    if isinstance(status, str):
        return _fail(status)
    return status if isinstance(status, int) else OK


def _fail(message: str, status: int = FAILED) -> int:
    with contextlib.suppress(OutputError, BrokenPipeError):  # The first error is the one to report.
        sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
