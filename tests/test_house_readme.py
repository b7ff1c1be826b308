"""The README: every command, option and target that it shows exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import ferkit
from ferkit.cli import COMMANDS, run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT): page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}


def shown_commands() -> list[str]:
    """The lines of the README's code blocks that call ferkit, without their remarks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("ferkit ")]


@pytest.mark.parametrize("line", shown_commands())
def test_a_shown_command_exists_with_the_options_it_is_shown_with(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, command, *rest = shlex.split(line)
    called = [command, rest[0]] if command == "data" else [command]
    assert run([*called, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    assert {word for word in rest if re.match(r"--?[a-z]", word)} <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_shown(command: str) -> None:
    assert any(line.split()[1] == command for line in shown_commands())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", PAGES[page], re.M)) <= targets


@pytest.mark.parametrize("command", ["make demo", "make test", "make bench", "make lint"])
def test_the_readme_names_the_target(command: str) -> None:
    assert command in README


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page])
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize("name", re.findall(r"\bferkit\.([A-Za-z_]+)\b", README))
def test_every_public_name_that_is_shown_exists(name: str) -> None:
    assert hasattr(ferkit, name)
