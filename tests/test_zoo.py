"""The study that trains the zoo: its list, its commands, their order, and how they are resumed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.cli import run
from ferkit.core.errors import FerkitError
from ferkit.core.modelfile import read_model, resolve_model
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.models import build_model, count_macs
from ferkit.training.recipe import dump_recipe, load_recipe, shipped_recipes
from ferkit.weights import embedded_models, find_model, zoo_models
from modelzoo import write_tiny_model
from tinyruns import tiny

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "studies"))

import zoo  # noqa: E402  # found once the folder is on the path

ENTRIES = zoo.read_list(zoo.LIST)
MADE = [name for name, entry in ENTRIES.items() if entry.export and find_model(name) is not None]
NETWORKS = [name for name in MADE if ENTRIES[name].recipe]


def test_every_model_can_be_made_again():
    assert set(MADE) == {*embedded_models(), *zoo_models()}


def test_the_smallest_student_learns_from_every_strong_network():
    fast = ENTRIES["fast"]
    assert (fast.recipe, fast.init, fast.precision) == ("fast", "fast-start", "mixed")
    assert set(fast.teachers) >= {"ferkit-large", "ferkit-cutmix", "ferkit-distilled"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_run_is_the_recipe_of_the_model(name):
    entry = ENTRIES[name]
    used = load_recipe(ROOT / "results" / name / "recipe.toml")
    recipe = load_recipe(entry.recipe, entry.set)
    # The models were trained where `auto` is bfloat16, which older runs recorded.
    precisions = ("auto", "bfloat16") if recipe.mixed_precision == "auto" else (recipe.mixed_precision,)
    assert used.mixed_precision in precisions
    others = {"name": used.name, "description": used.description, "mixed_precision": used.mixed_precision}
    assert recipe.model_copy(update=others) == used


@pytest.mark.parametrize("name", NETWORKS)
def test_a_models_file_is_stored_as_its_own(name):
    info = read_model(resolve_model(name))[1]
    # Without --taxonomy, `ferkit export` makes basic the default.
    assert (ENTRIES[name].precision, info.default_taxonomy) == (info.precision, "basic")


def test_an_ensembles_members_are_those_of_its_file():
    info = read_model(resolve_model("best"))[1]
    assert ENTRIES["best"].members == tuple(member.name for member in info.members)


def shown_commands(names, folder, **options):
    chosen = zoo.chosen_of(ENTRIES, names)
    data = ("fer2013.csv.gz", Path("fer2013new.csv"), folder)
    return [words for entry in chosen for words in zoo.commands(entry, *data, **options)]


def test_commands_know_the_options_that_they_are_given(tmp_path, capsys):
    shown = shown_commands(list(ENTRIES), tmp_path, epochs=1)
    assert {words[0] for words in shown} == {"train", "distil", "export", "ensemble", "evaluate"}
    known = {}
    for command in {words[0] for words in shown}:
        assert run([command, "--help"]) == 0
        known[command] = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    for words in shown:
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known[words[0]]


def test_the_page_shows_the_commands_that_make_the_default_model():
    lines = re.findall(r"^ferkit distil .*ferkit-large.*", (ROOT / "docs/models.md").read_text(), re.M)
    shown = [shlex.split(line)[1:] for line in lines]
    made = [w for w in shown_commands(["ferkit-distilled", "standard"], Path("runs")) if w[0] == "distil"]
    for words in made:
        at = words.index("--out")
        del words[at : at + 2]  # the default, runs/RECIPE
    assert len(shown) == 4
    assert [sorted(words) for words in shown] == [sorted(words) for words in made]


def test_a_name_brings_what_it_is_made_from_unless_that_is_installed():
    names = [entry.name for entry in zoo.chosen_of(ENTRIES, ["ferkit-distilled", "member-votes"])]
    assert names == [
        "distilled-start",
        "distilled-matched",
        "ferkit-distilled",
        "member-votes-start",
        "member-votes",
    ]
    with pytest.raises(FerkitError, match="there is no nothing in the list; it has ferkit-small, "):
        zoo.chosen_of(ENTRIES, ["nothing"])


def test_without_a_name_what_is_installed_is_skipped():
    names = {entry.name for entry in zoo.chosen_of(ENTRIES, [])}
    assert names.isdisjoint(MADE)
    assert {"member-plain", "member-votes-start"} <= names
    assert "distilled-start" not in names, "only installed models start from it"


PLANNED = [entry for entry in zoo.chosen_of(ENTRIES, []) if entry.recipe]


@pytest.mark.parametrize("entry", PLANNED, ids=lambda entry: entry.name)
def test_a_planned_network_has_the_arithmetic_that_the_list_states(entry):
    stated = re.search(rf'"{entry.name}" # (\d+) MMAC', zoo.LIST.read_text())
    model = load_recipe(entry.recipe, entry.set).model
    network = build_model(model.name, {h.id: len(h) for h in (FER2013, FERPLUS)}, **model.params)
    if entry.init:  # the network of the run that it starts from
        assert stated is None
    else:
        assert stated is not None
        assert round(count_macs(network) / 1e6) == int(stated[1])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in shipped_recipes() if name.startswith("member-")])
def test_a_planned_member_trains(recipe, tmp_path):
    line = ["train", "-r", recipe, "--data", "cartoon:40", "--epochs", "1", "--batch-size", "32"]
    assert run([*line, "-s", "mixed_precision=off", "-o", str(tmp_path / "run"), "--quiet"]) == 0
    assert zoo._is_finished(tmp_path / "run")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('[[model]]\nname = "a"\nrecipe = "small"\ninit = "b"', "a uses b, which is neither above it nor"),
        ('[[model]]\nname = "a"\nrecipe = "small"\nmembers = ["best"]', "with a recipe or with members"),
        ('[[model]]\nname = "a"\nrecipes = "small"', "is no list of models"),
        ("model = 3", "is no list of models"),
        ("[[model", "is no list of models"),
    ],
)
def test_a_wrong_list_is_refused(lines, message, tmp_path):
    (tmp_path / "list.toml").write_text(lines)
    with pytest.raises(FerkitError, match=message):
        zoo.read_list(tmp_path / "list.toml")


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A list of two tiny runs, the second taught and from the first's weights; calls in this process."""
    for name, more in (("first", {}), ("second", {"distil": {"weight": 0.5, "tta": "none"}})):
        recipe = tiny(name=name, epochs=2, deterministic=False, **more)
        (tmp_path / f"{name}.toml").write_text(dump_recipe(recipe))
    monkeypatch.setattr(zoo, "find_model", {"teacher": write_tiny_model(tmp_path / "teacher.onnx")}.get)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").symlink_to("teacher.onnx")
    (tmp_path / "list.toml").write_text(
        '[[model]]\nname = "first"\nrecipe = "first.toml"\nset = ["optimizer.ema=0"]\nexport = false\n'
        '[[model]]\nname = "tiny"\nrecipe = "second.toml"\nteachers = ["teacher"]\ninit = "first"\n'
        '[[model]]\nname = "both"\nmembers = ["tiny", "teacher"]\n'
    )
    called = []

    def call(words, backend=None):
        called.append((words, backend))
        return run(list(words))

    monkeypatch.setattr(zoo, "call", call)
    line = ["zoo.py", "--list", "list.toml", "--data", "cartoon:280:1", "--out", "runs"]
    return SimpleNamespace(line=line, called=called, out=tmp_path / "runs")


def test_one_command_trains_exports_joins_and_measures(chain, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", chain.line)
    assert zoo.main() == 0
    made = [words[0] for words, _ in chain.called]
    assert made == ["train", "distil", "export", "evaluate", "ensemble", "evaluate"]
    facts = json.loads((chain.out / "tiny/run.json").read_text())
    assert facts["init"]["from"] == "first"
    assert facts["teacher"]["models"][0]["name"] == "tiny"
    assert load_recipe(chain.out / "first/recipe.toml").optimizer.ema == 0
    info = read_model(chain.out / "tiny.onnx")[1]
    # Too few faces for the output basic, so the first head is the default.
    assert (info.name, info.precision, info.default_taxonomy) == ("tiny", "float16", "fer2013")
    assert (chain.out / "tiny.md").read_text().startswith("# tiny 1")
    assert (chain.out / "tiny.weights.npz").exists()
    assert (chain.out / "tiny-report/report.json").exists()
    assert len(read_model(chain.out / "both.onnx")[1].members) == 2
    assert "ferkit export runs/tiny " in capsys.readouterr().out
    # What is done is done once.
    chain.called.clear()
    assert zoo.main() == 0
    assert chain.called == []
    # A report that is missing is written again, and --dry-run only says so.
    (chain.out / "tiny-report/report.json").unlink()
    monkeypatch.setattr(sys, "argv", [*chain.line, "--dry-run"])
    capsys.readouterr()
    assert zoo.main() == 0
    assert chain.called == []
    assert [shown.split()[1] for shown in capsys.readouterr().out.splitlines()] == ["evaluate"]


def test_a_started_run_is_resumed_and_a_failure_ends_the_study(chain, monkeypatch, capsys):
    (chain.out / "first").mkdir(parents=True)
    (chain.out / "first/checkpoint.npz").write_bytes(b"damaged")
    monkeypatch.setattr(sys, "argv", chain.line)
    assert zoo.main() == 1
    assert [words[:3] for words, _ in chain.called] == [["train", "--resume", "runs/first"]]
    assert "recipe.toml" in capsys.readouterr().err


def test_an_interrupt_is_reported(chain, monkeypatch, capsys):
    def interrupted(words, backend):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "call", interrupted)
    monkeypatch.setattr(sys, "argv", chain.line)
    assert zoo.main() == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_commands_status_comes_back(capfd):
    assert zoo.call(["models", "--no-such-option"]) == 2
    assert "--no-such-option" in capfd.readouterr().err


def test_an_online_teacher_of_the_study_is_named_by_its_training_weights(tmp_path):
    recipe = {"recipe": "distilled", "teachers": ("ferkit-large", "member-plain")}
    words = next(zoo.commands(zoo.Entry(name="a", **recipe), "cartoon", None, tmp_path))
    at = [k for k, word in enumerate(words) if word == "--teacher"]
    assert [words[k + 1] for k in at] == ["ferkit-large", str(tmp_path / "member-plain.weights.npz")]


def test_networks_are_trained_on_the_gpu_and_exported_by_tensorflow(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    trained, exported = (zoo.environment_of(command, "jax") for command in ("distil", "export"))
    assert (trained["KERAS_BACKEND"], trained["CUDA_VISIBLE_DEVICES"]) == ("jax", "0")
    assert (exported["KERAS_BACKEND"], exported["CUDA_VISIBLE_DEVICES"]) == ("tensorflow", "-1")
    on_cpu = zoo.environment_of("train", None)
    assert (on_cpu["KERAS_BACKEND"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("tensorflow", "-1")


@pytest.mark.parametrize("jax", [True, False])
def test_a_gpu_is_used_through_jax_if_it_is_installed_and_one_that_is_absent_is_an_error(
    jax, chain, monkeypatch, capsys
):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: object() if jax else None)
    backend = "jax" if jax else "tensorflow"
    seen = []

    def answer(number):
        def ask(line, **options):
            seen.append(line[-1])
            return subprocess.CompletedProcess(line, 0, f"gpus {number}\n", "")

        return ask

    monkeypatch.setattr(zoo.subprocess, "run", answer(0))
    monkeypatch.setattr(sys, "argv", [*chain.line, "--device", "gpu"])
    assert zoo.main() == 1
    err = capsys.readouterr().err
    assert f"error: --device gpu: {backend} sees no GPU here" in err
    assert ("JAX is not installed" in err) is not jax
    monkeypatch.setattr(zoo.subprocess, "run", answer(1))
    assert zoo.gpu_backend() == backend
    assert all(f"import {backend}" in script for script in seen)
