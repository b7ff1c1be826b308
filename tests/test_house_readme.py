"""README and pages: commands, options, targets, names, links and sizes are right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import ferkit
from ferkit.cli import COMMANDS, run

ROOT = Path(__file__).resolve().parents[1]
KIB = 1 << 10
FOLDERS = ("docs", "studies", "benchmarks", "fuzz", "results", "src/ferkit/weights", "zoo")
PAGES = {
    page.relative_to(ROOT): page.read_text()
    for page in (*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/**/*.md")))
}
README = PAGES[Path("README.md")]
GUIDES = {page: text for page, text in PAGES.items() if page.name == "README.md" or page.parts[0] == "docs"}


def code_blocks(text: str, language: str = r"\w*") -> list[str]:
    """The fenced code blocks of a page in a language, a regular expression."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands_of(text: str) -> list[str]:
    """The ferkit commands in a page's code blocks, without prompts, comments and line continuations."""
    lines = [line for block in code_blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    lines = [line.split("  #")[0].removeprefix("$ ").strip() for line in lines]
    return [line for line in lines if line.startswith("ferkit ")]


SHOWN = list(dict.fromkeys(line for text in GUIDES.values() for line in commands_of(text)))


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_and_its_options_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *rest = shlex.split(line)
    if command.startswith("-"):
        assert run([command]) == 0
        return
    called = [command, rest[0]] if command == "data" else [command]
    assert run([*called, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert options <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_shown(command: str) -> None:
    assert any(line.split()[1] == command for line in SHOWN)


@pytest.mark.parametrize("page", GUIDES, ids=str)
def test_every_shown_make_target_and_script_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", GUIDES[page], re.M)) <= targets
    scripts = set(re.findall(r"\b(?:studies|benchmarks|fuzz)/\w+\.py\b", GUIDES[page]))
    assert {script for script in scripts if not (ROOT / script).is_file()} == set()


@pytest.mark.parametrize("command", ["make demo", "make test", "make bench", "make lint"])
def test_the_readme_names_the_target(command: str) -> None:
    assert command in README


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Git hosts build them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_to_a_file_resolves(page: Path) -> None:
    text = PAGES[page]
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page.parent / path).resolve() if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", GUIDES, ids=str)
def test_the_python_code_of_a_page_compiles(page: Path) -> None:
    for block in code_blocks(GUIDES[page], "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bferkit\.([A-Za-z_]+)\b", README))))
def test_every_public_name_in_the_readme_exists(name: str) -> None:
    assert hasattr(ferkit, name)


def test_the_readme_has_at_most_7_kb_and_its_picture_at_most_120() -> None:
    assert len(README.encode()) <= 7 * KIB
    assert (ROOT / "docs" / "demo.jpg").stat().st_size <= 120 * KIB
