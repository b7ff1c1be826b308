"""``ferkit serve`` and ``ferkit live`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ferkit.cli import run
from ferkit.service import server
from ferkit.service.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, str | None]]:
    """What a command would have served."""
    calls: list[tuple[Settings, str | None]] = []

    def serve(settings: Settings, *, browse: str | None = None) -> None:
        calls.append((settings, browse))

    monkeypatch.setattr(server, "serve", serve)
    return calls


@pytest.mark.parametrize("command", ["serve", "live"])
def test_every_setting_is_an_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in Settings.model_fields if f"--{name.replace('_', '-')}" not in text] == []


def test_options_and_the_file_reach_the_server(started: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("streams = 2\nphotos = 5\n")
    options = ["--config", str(file), "--photos", "7", "--hosts", "a.example", "--hosts", "b.example"]
    assert run(["serve", *options]) == 0
    ((settings, browse),) = started
    assert (settings.streams, settings.photos, settings.hosts) == (2, 7, ("a.example", "b.example"))
    assert browse is None


def test_live_opens_the_page_at_the_webcam(started: list[Any]) -> None:
    assert run(["live", "--port", "0"]) == 0
    assert started[0][1] == "#camera"


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--host", "0.0.0.0"], "API key"), (["--config", "nothing.toml"], "nothing.toml")],
)
def test_a_wrong_setting_is_one_line_and_status_1(
    options: list[str], word: str, capsys: pytest.CaptureFixture[str], started: list[Any]
) -> None:
    assert run(["serve", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert word in line
    assert started == []


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with server.listen(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 1
    assert str(port) in capsys.readouterr().err
