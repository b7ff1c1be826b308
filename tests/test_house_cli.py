"""The command line as a whole: command table, exit statuses, errors, standard streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ferkit
from ferkit import cli
from ferkit.cli import COMMANDS, common, run
from ferkit.core.errors import DataError, FerkitError


def install_command_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Add a command `probe` with the one line ``body``, in a module on the import path."""
    (tmp_path / "probe_command.py").write_text(
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


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
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
    assert "--no-such-option" in captured.err


def test_a_ferkit_error_is_one_line_on_stderr_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command_app(monkeypatch, tmp_path, r"raise DataError('row 3:\n  value 256')")
    assert run(["probe"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_error(captured.err, "row 3: value 256")
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


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        common.print_json(float("nan"))
