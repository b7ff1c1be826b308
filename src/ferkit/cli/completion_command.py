"""``ferkit completion``: the script that makes a shell complete commands and options."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ferkit.cli import COMMANDS, COMPLETE_VARIABLE, load_app
from ferkit.cli.common import new_app

app = new_app()


class Shell(StrEnum):
    """The shells that Typer has scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)]) -> None:
    """Print a script that completes ferkit's commands and options with the Tab key.

    bash: `ferkit completion bash >> ~/.bashrc`. zsh: the same with zsh and ~/.zshrc, below `compinit`.
    fish: `ferkit completion fish > ~/.config/fish/completions/ferkit.fish`.
    """
    script = import_module("typer.completion").get_completion_script
    print(script(prog_name="ferkit", complete_var=COMPLETE_VARIABLE, shell=shell.value))


class AllCommands(TyperGroup):
    """All commands as one group; each is imported when it is needed."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None if there is none of that name."""
        return get_command(load_app(cmd_name)) if cmd_name in COMMANDS else None


def complete() -> None:
    """Print what completes the command line in the shell's variables, and exit."""
    import_module("typer.completion").completion_init()
    AllCommands(name="ferkit").main(args=[], prog_name="ferkit", complete_var=COMPLETE_VARIABLE)
