"""The rules of the house: style, types, layers, and what may stand in the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20

REGISTRIES = re.compile(
    r"index[-_]url|registry[\" ]*[=:] *\"http|https?://[^ \"]*/simple|/(wor|roo)[kt]/"
    r"|pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|npmjs[.]org"
)
# The brackets keep this file from holding what it looks for.
UNFINISHED = re.compile(r"raise NotImplementedErro[r]|TOD[O]|FIXM[E]|XX[X]|pragma: no cove[r]")
BROAD = re.compile(r"except( Exception| BaseException)?:")
PICKLES = re.compile(r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib)\b|layers\.Lambda\b", re.M)


def tracked() -> list[Path]:
    """Files under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("NO REPOSITORY: what is under version control can only be told in a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in os.fsdecode(listed).split("\0") if name]
    return [file for file in files if file.is_file()]


def text_of(file: Path) -> str:
    """The text of a file; nothing of one that is no text."""
    content = file.read_bytes()
    return "" if b"\0" in content else content.decode(errors="replace")


@pytest.mark.parametrize(
    "arguments",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["style", "format", "types"],
)
def test_a_tool_finds_nothing(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_layers_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = {
        str(file.relative_to(ROOT)): match[0]
        for file in tracked()
        if (match := REGISTRIES.search(text_of(file)))
    }
    assert found == {}


def test_only_weights_are_larger_than_a_mebibyte_and_they_stay_below_24() -> None:
    sizes = {file.relative_to(ROOT): file.stat().st_size for file in tracked()}
    assert [str(file) for file, size in sizes.items() if size > MIB and "weights" not in file.parts] == []
    assert sum(size for file, size in sizes.items() if file.suffix in (".onnx", ".npz")) <= 24 * MIB


@pytest.mark.parametrize("pattern", [UNFINISHED, BROAD, PICKLES], ids=["unfinished", "broad", "pickles"])
def test_the_source_holds_nothing_of_that_kind(pattern: re.Pattern[str]) -> None:
    found = {
        str(file.relative_to(ROOT)): match[0]
        for file in tracked()
        if file.suffix == ".py" and "src" in file.parts and (match := pattern.search(text_of(file)))
    }
    assert found == {}


def test_every_module_opens_with_one_sentence() -> None:
    for file in (ROOT / "src").rglob("*.py"):
        first = text_of(file).split("\n", 1)[0]
        assert re.fullmatch(r'r?""".+[.](""")?', first), f"{file.relative_to(ROOT)}: {first}"


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
