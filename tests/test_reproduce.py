"""The study that reproduces a shipped model: its commands, their order, and how they are resumed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.cli import run
from ferkit.core.modelfile import read_model
from ferkit.training.recipe import dump_recipe, load_recipe
from ferkit.weights import embedded_models
from modelzoo import write_tiny_model
from tinyruns import tiny

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "studies"))

import reproduce  # noqa: E402  # found once the folder is on the path


def test_every_shipped_model_can_be_reproduced():
    assert set(reproduce.MODELS) == set(embedded_models())


@pytest.mark.parametrize("name", reproduce.MODELS)
def test_the_last_step_is_the_recipe_of_the_shipped_model(name):
    step = reproduce.MODELS[name].steps[-1]
    used = load_recipe(ROOT / "results" / name / "recipe.toml")
    recipe = load_recipe(step.recipe, step.changes)
    # The models were trained where `auto` is bfloat16.
    precision = "bfloat16" if recipe.mixed_precision == "auto" else recipe.mixed_precision
    others = {"name": used.name, "description": used.description, "mixed_precision": precision}
    assert recipe.model_copy(update=others) == used


@pytest.mark.parametrize("name", reproduce.MODELS)
def test_a_models_file_is_stored_as_the_embedded_one(name):
    info = read_model(ROOT / "src/ferkit/weights" / f"{name}.onnx")[1]
    model = reproduce.MODELS[name]
    # Without --taxonomy, `ferkit export` makes basic the default.
    assert (model.precision, info.default_taxonomy) == (info.precision, "basic")


@pytest.mark.parametrize("name", reproduce.MODELS)
def test_commands_know_the_options_that_they_are_given(name, tmp_path, capsys):
    shown = list(reproduce.commands(name, "cartoon", Path("v.csv"), tmp_path, epochs=1))
    assert [words[0] for words in shown[-2:]] == ["export", "evaluate"]
    for words in shown:
        assert run([words[0], "--help"]) == 0
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_the_readme_shows_the_commands_that_make_the_embedded_model():
    lines = re.findall(r"^ferkit distil .*ferkit-large.*", (ROOT / "README.md").read_text(), re.M)
    shown = [shlex.split(line)[1:] for line in lines]
    data = ("fer2013.csv.gz", Path("fer2013new.csv"), Path("runs"))
    made = list(reproduce.commands("ferkit-distilled", *data))[: len(shown)]
    for words in made:
        at = words.index("--out")
        del words[at : at + 2]  # the default, runs/RECIPE
    assert [sorted(words) for words in shown] == [sorted(words) for words in made]


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A model of two tiny steps, the second taught and from the first's weights; calls in this process."""
    for name, more in (("first", {}), ("second", {"distil": {"weight": 0.5, "tta": "none"}})):
        recipe = tiny(name=name, epochs=2, deterministic=False, **more)
        (tmp_path / f"{name}.toml").write_text(dump_recipe(recipe))
    teacher = str(write_tiny_model(tmp_path / "teacher.onnx"))
    steps = (
        reproduce.Step(str(tmp_path / "first.toml"), (), ("optimizer.ema=0",)),
        reproduce.Step(str(tmp_path / "second.toml"), (teacher,)),
    )
    monkeypatch.setitem(reproduce.MODELS, "tiny", reproduce.Model(steps))
    called = []

    def call(words):
        called.append(words)
        return run(list(words))

    monkeypatch.setattr(reproduce, "call", call)
    line = ["reproduce.py", "tiny", "--data", "cartoon:280:1", "--runs", str(tmp_path / "runs")]
    return line, called, tmp_path / "runs/tiny"


def test_one_command_trains_exports_and_measures(chain, monkeypatch, capsys):
    line, called, folder = chain
    monkeypatch.setattr(sys, "argv", line)
    assert reproduce.main() == 0
    assert [words[0] for words in called] == ["train", "distil", "export", "evaluate"]
    facts = json.loads((folder / "second/run.json").read_text())
    assert facts["init"]["from"] == "first"
    assert facts["teacher"]["models"][0]["name"] == "tiny"
    assert load_recipe(folder / "first/recipe.toml").optimizer.ema == 0
    info = read_model(folder / "tiny.onnx")[1]
    # Too few faces for the output basic, so the first head is the default.
    assert (info.name, info.precision, info.default_taxonomy) == ("tiny", "float16", "fer2013")
    assert (folder / "tiny.md").read_text().startswith("# tiny 1")
    assert (folder / "tiny.weights.npz").exists()
    assert (folder / "report/report.json").exists()
    assert f"ferkit export {folder / 'second'} " in capsys.readouterr().out
    # What is finished is not trained again.
    called.clear()
    monkeypatch.setattr(sys, "argv", [*line, "--dry-run"])
    assert reproduce.main() == 0
    assert called == []
    assert [shown.split()[1] for shown in capsys.readouterr().out.splitlines()] == ["export", "evaluate"]


def test_a_started_run_is_resumed_and_a_failure_ends_the_study(chain, monkeypatch, capsys):
    line, called, folder = chain
    (folder / "first").mkdir(parents=True)
    (folder / "first/checkpoint.npz").write_bytes(b"damaged")
    monkeypatch.setattr(sys, "argv", line)
    assert reproduce.main() == 1
    assert [words[:3] for words in called] == [["train", "--resume", str(folder / "first")]]
    assert "recipe.toml" in capsys.readouterr().err


def test_an_interrupt_is_reported(chain, monkeypatch, capsys):
    line, _, _ = chain

    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "call", interrupted)
    monkeypatch.setattr(sys, "argv", line)
    assert reproduce.main() == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_commands_status_comes_back(capfd):
    assert reproduce.call(["models", "--no-such-option"]) == 2
    assert "--no-such-option" in capfd.readouterr().err
