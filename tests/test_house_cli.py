"""The command line as a whole: command table, exit statuses, errors, standard streams."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ferkit
from ferkit import cli
from ferkit.cli import COMMANDS, common, run
from ferkit.cli.streams import make_console
from ferkit.core.errors import DataError, FerkitError
from ferkit.core.images import write_image
from ferkit.weights import PURPOSES, embedded_models, zoo_models
from samples import sample


def install_command_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Add a command `probe` with the one line ``body``, in a module on the import path."""
    (tmp_path / "probe_command.py").write_text(
        "__name__ = 'ferkit.cli.probe_command'\n"  # as in the tracebacks of commands
        "from ferkit.cli.common import new_app\n"
        "from ferkit.core.errors import DataError\n"
        "app = new_app()\n"
        "@app.command()\n"
        "def probe(count: int = 1) -> None:\n"
        '    "Run the line of the test."\n'
        f"    {body}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "probe_command", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_command", "Run the line of the test."))


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command_with_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([option]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.summary.split()] for line in out.splitlines()), name
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_that_of_the_package(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([option]) == 0
    assert capsys.readouterr().out == f"ferkit {ferkit.__version__}\n"


def test_python_dash_m_ferkit_is_the_same_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ferkit", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"ferkit {ferkit.__version__}\n")


def test_no_command_shows_the_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


def assert_one_error(err: str, *facts: str) -> None:
    """Check that ``err`` is one line, `error: ...`, that names every fact."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for fact in facts:
        assert fact in err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("predct", "'predict'"),
        ("evalute", "'evaluate'"),
        ("zzz", "ferkit --help"),
        ("--wrong", "ferkit --help"),
    ],
)
def test_an_unknown_word_is_one_line_with_a_hint(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([word]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_error(captured.err, f"'{word}'", hint)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_of_the_table_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    captured = capsys.readouterr()
    assert f"ferkit {name}" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_wrong_option_of_a_command_is_a_usage_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no such option: --no-such-option")
    assert captured.err.endswith(f"; see 'ferkit {name} --help'\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["compare", "a.onnx"], "'B'"),
        (["evaluate", "--min-face", "tall"], "'--min-face'"),
        (
            ["evaluate", "--data", "cartoon", "--tta", "twelve"],
            "--tta: 'twelve' is none of none, flip, ten-crop",
        ),
        (["data", "shw"], "shw"),
        (["completion", "csh"], "'csh'"),
    ],
)
def test_an_error_in_an_option_is_one_line_that_names_the_help(
    arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith(f"see 'ferkit {arguments[0]} --help'\n")
    assert fact in captured.err
    assert captured.err.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "convert" in captured.err


def test_models_have_their_whole_names_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: names were cut off, such as ferkit-dist…"""
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line.strip()]
    names = [*embedded_models(), *zoo_models()]
    # A recipe may have a model's name; recipes come last.
    assert list(dict.fromkeys(name for name in first if name in names)) == names
    assert max(map(len, lines)) <= 80


def test_models_say_when_to_choose_each_and_what_it_reaches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["models", "standard"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert PURPOSES["standard"] in row
    assert row.split()[-6:] == ["1.37", "M", "99.6", "2.7", "71.8", "yes"]
    assert run(["models", "standard", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["embedded"]
    assert listed["name"] == "standard"
    assert listed["accuracy"] == pytest.approx(0.7183, abs=1e-4)


@pytest.mark.parametrize(
    ("pattern", "near"), [("ferkit-smal", "'ferkit-small'"), ("nope", "lists all names")]
)
def test_models_of_an_unknown_name_are_an_error_with_similar_names(
    pattern: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", pattern]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{pattern!r}" in captured.err
    assert near in captured.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_a_completion_script_is_printed_for_each_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    assert f"complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ferkit ev", ["evaluate"]),
        ("ferkit evaluate --dr", ["--drop-leaks", "--drop-flat"]),
        ("ferkit data c", ["convert"]),
        ("ferkit predict --format js", ["json", "jsonl"]),
        ("ferkit nonsense --x", []),
    ],
)
def test_commands_options_and_values_are_completed(
    line: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FERKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert run([]) == 0
    assert capsys.readouterr().out.split() == completed


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_completes_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "ferkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ferkit "$@"\n')
    program.chmod(0o755)
    script = (
        f'PATH="{tmp_path}:$PATH"; eval "$(ferkit completion bash)"; COMP_WORDS=(ferkit compa)\n'
        "COMP_CWORD=1; _ferkit_completion ferkit; printf '%s|' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("compare|", "")


def test_a_ferkit_error_is_one_line_on_stderr_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command_app(monkeypatch, tmp_path, r"raise DataError('row 3:\n  value 256')")
    assert run(["probe"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_error(captured.err, "row 3:", "value 256")
    assert issubclass(DataError, FerkitError)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command_app(monkeypatch, tmp_path, "import keras")
    monkeypatch.setitem(sys.modules, "keras", None)  # what makes `import keras` fail
    assert run(["probe"]) == 1
    assert_one_error(capsys.readouterr().err, "'keras'", "pip install 'ferkit[train]'")


def test_a_missing_module_of_no_extra_is_a_defect_and_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_command_app(monkeypatch, tmp_path, "import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError):
        run(["probe"])


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_command_app(monkeypatch, tmp_path, "raise KeyboardInterrupt")
    assert run(["probe"]) == 130


def test_a_value_of_the_wrong_type_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command_app(monkeypatch, tmp_path, "print(count)")
    assert run(["probe", "--count", "3"]) == 0
    assert run(["probe", "--count", "three"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "3\n"
    assert "--count" in captured.err


def test_a_closed_pipe_behind_stdout_prints_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ferkit", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("command", "status"), [("models", 0), ("predict PHOTO", 0), ("predict absent.jpg", 1)]
)
def test_commands_work_with_closed_standard_streams(
    tmp_path: Path, command: str, status: int, closed: str
) -> None:
    """A known fault: tracebacks, as for services and programs without a terminal."""
    (tmp_path / "PHOTO").write_bytes(sample("astronaut.jpg").read_bytes())
    done = run_in_shell(f"{command} {closed}", tmp_path)
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    if closed == "2>&-" and status == 0:
        assert done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_run_trains_with_closed_standard_streams(tmp_path: Path) -> None:
    """A known fault: training did not start. Neither may a file of the run take the number of a stream."""
    line = "train --data cartoon:70 --epochs 1 --recipe seed --out run <&- >&- 2>&-"
    done = run_in_shell(line, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run" / "weights.npz").stat().st_size > 1000
    assert json.loads((tmp_path / "run" / "run.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_behind_the_standard_error_does_not_stop_a_command(tmp_path: Path) -> None:
    done = run_in_shell("predict absent.jpg 2>/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


def run_in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of ferkit, with redirections, in a folder."""
    return subprocess.run(
        f'"{sys.executable}" -m ferkit {line}',
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


STREAMS = """
import sys
from ferkit import cli
sys.path.insert(0, sys.argv[1])
cli.COMMANDS["probe"] = cli.Command("probe_command", "Run the line of the test.")
sys.exit(cli.run(["probe"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize(
    "body",
    [
        "print(1)",  # fails in the last flush
        "print('x' * 100_000)",
        "from ferkit.cli.common import console; console().print('x')",
        "import csv, sys; csv.writer(sys.stdout).writerows([['x' * 100]] * 1000)",
        "print(1); raise DataError('cannot write the standard output: No space left on device')",
    ],
)
def test_a_full_disk_behind_stdout_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str
) -> None:
    install_command_app(monkeypatch, tmp_path, body)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", STREAMS, str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert_one_error(done.stderr, "No space left on device")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", '"caf\\udce9", "größe", "лицо", "😀"'),
        ("cp1252", '"caf\\udce9", "größe", "\\u043b\\u0438\\u0446\\u043e", "\\ud83d\\ude00"'),
        (
            "ascii",
            '"caf\\udce9", "gr\\u00f6\\u00dfe", "\\u043b\\u0438\\u0446\\u043e", "\\ud83d\\ude00"',
        ),
    ],
)
def test_characters_that_stdout_cannot_encode_are_printed_as_escapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, printed: str
) -> None:
    content = ["caf\udce9", "größe", "лицо", "😀"]
    install_command_app(
        monkeypatch,
        tmp_path,
        f"from ferkit.cli.common import print_json; print_json({content!a})",
    )
    done = subprocess.run(
        [sys.executable, "-c", STREAMS, str(tmp_path)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert " ".join(done.stdout.decode(encoding).split()) == f"[ {printed} ]"
    assert json.loads(done.stdout.decode(encoding)) == content


HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b1m\u202egpj\x7f"


@pytest.mark.parametrize(
    "body",
    [
        "print(NAME)",
        "import sys; print(NAME, file=sys.stderr)",
        "raise DataError(NAME)",
        "from ferkit.cli.common import remark; remark(NAME)",
        "from ferkit.cli.common import print_json; print_json({NAME: NAME})",
        "from ferkit.cli.common import console; console().print(NAME)",
        "from ferkit.cli.common import console; console(stderr=True).print(NAME)",
        "from rich.table import Table; from ferkit.cli.common import console; t = Table('a'); "
        "t.add_row(NAME); console().print(t)",
        "import logging; logging.getLogger('ferkit').warning(NAME)",
        "import csv, sys; csv.writer(sys.stdout).writerow([NAME])",
    ],
)
def test_control_codes_never_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str
) -> None:
    install_command_app(monkeypatch, tmp_path, body.replace("NAME", ascii(HOSTILE)))
    code = [sys.executable, "-c", STREAMS, str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True, check=False, encoding="utf-8")
    shown = done.stdout + done.stderr
    assert "[31m" in shown
    assert not set(shown) & set(HOSTILE) - set(map(chr, range(32, 127)))


def test_json_with_control_codes_stays_the_same_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command_app(
        monkeypatch, tmp_path, f"from ferkit.cli.common import print_json; print_json([{HOSTILE!a}])"
    )
    assert run(["probe"]) == 0
    assert json.loads(capsys.readouterr().out) == [HOSTILE]


def test_the_colours_of_a_console_on_a_terminal_are_kept() -> None:
    screen = make_console(TerminalText(), 80)
    screen.print("\x1b[2Jname", style="bold red")
    assert screen.file.getvalue() == "\x1b[1;31m\\u001b[2Jname\x1b[0m\n"


class TerminalText(io.StringIO):
    """A text in memory that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", [["predict"], ["evaluate", "--photos"], ["evaluate", "--data"]])
def test_control_codes_of_a_file_name_and_a_label_are_escaped(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("happy", "sad\x1b[31m"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for k in range(8):
            write_image(tmp_path / "in" / label / f"\x1b[31m{k}.png", np.full((48, 48, 3), 10 * k, np.uint8))
    run([*command, str(tmp_path / "in")])
    captured = capsys.readouterr()
    assert "[31m" in captured.out + captured.err
    assert "\x1b" not in captured.out + captured.err


def test_a_console_without_a_terminal_is_wide_and_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = common.console()
    console.print("[bold]x[/bold] " * 3)
    assert console.width == common.WIDE
    assert capsys.readouterr().out.split() == ["[bold]x[/bold]"] * 3


def test_messages_go_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    common.remark("message")
    common.print_json({"größe": [1, 2.5]})
    captured = capsys.readouterr()
    assert captured.err == "message\n"
    assert captured.out == '{\n  "größe": [\n    1,\n    2.5\n  ]\n}\n'


def test_the_time_left_cannot_be_misread() -> None:
    from rich.progress import Progress

    bar = Progress(
        common.time_left(), console=make_console(TerminalText(), 80), get_time=iter(range(100)).__next__
    )
    task = bar.add_task("", total=20)
    for _ in range(10):
        bar.advance(task)
    (column,) = bar.columns
    assert re.fullmatch(r"\d+ s left", column.render(bar.tasks[0]).plain)


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        common.print_json(float("nan"))
