"""The laboratory on the command line: train, resume, export, evaluate, predict, fine-tune."""

from __future__ import annotations

import json

import pytest

from facefiles import write_faces
from ferkit import weights
from ferkit.cli import run
from ferkit.core.modelfile import read_model
from ferkit.core.taxonomy import FERPLUS
from modelzoo import write_tiny_model

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.training.runs import load_run as read_run

pytestmark = pytest.mark.slow

TINY = [
    "--set", "model.params={stem = 4, filters = [8, 8], blocks = [1, 1]}", "--batch-size", "32",
    "--learning-rate", "0.05",
]  # fmt: skip


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """One run of two epochs and the model file made of it."""
    folder = tmp_path_factory.mktemp("line")
    trained = [
        "train", "--recipe", "small", "--data", "cartoon:300", "--out", str(folder / "run"), "--epochs", "2",
        "--no-tensorboard", *TINY,
    ]  # fmt: skip
    assert run(trained) == 0
    weights = folder / "start.weights.npz"
    exported = [
        "export", str(folder / "run"), "--data", "cartoon:300", "-o", str(folder / "m.onnx"),
        "--name", "mine", "--training-weights", str(weights), "--card", str(folder / "m.md"),
    ]  # fmt: skip
    assert run(exported) == 0
    return folder


def test_training_prints_each_epoch_and_the_final_accuracy(tmp_path, capfd):
    args = [
        "train",
        "-r",
        "small",
        "--data",
        "cartoon:300",
        "-o",
        str(tmp_path / "r"),
        "--epochs",
        "2",
        *TINY,
    ]
    assert run(args) == 0
    out, err = capfd.readouterr()
    lines = [text for text in err.splitlines() if text.startswith(("small", "epoch"))]
    assert lines[0].startswith("small: se-resnet,")
    assert [text.split()[1] for text in lines[1:]] == ["1/2", "2/2"]
    assert "images/s" in lines[1]
    assert out.startswith(f"{tmp_path / 'r'}: 2 epochs, PublicTest")


def test_the_exported_file_is_evaluated_and_predicts(line, tmp_path, capsys):
    report = tmp_path / "report.json"
    args = ["evaluate", str(line / "m.onnx"), "--data", "cartoon:300", "--json", str(report)]
    assert run(args) == 0
    measured = json.loads(report.read_text())
    trained = json.loads((line / "run" / "history.json").read_text())[-1]["val_accuracy"]
    assert measured["tta_modes"][0]["scores"][0]["accuracy"] == pytest.approx(trained)
    assert run(["data", "convert", "cartoon:20", str(tmp_path / "faces")]) == 0
    face = next((tmp_path / "faces").rglob("*.png"))
    capsys.readouterr()
    assert run(["predict", str(face), "--model", str(line / "m.onnx"), "--detector", "none", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed) == 1


def test_the_card_has_the_files_own_figures(line):
    card = (line / "m.md").read_text("utf-8")
    info = read_model(line / "m.onnx")[1]
    assert card.startswith("# mine 1\n")
    for row in info.metrics:
        assert f"| {100 * row.accuracy:.2f} |" in card
    assert "Do not use it to decide about people" in card
    assert "FER2013's label is a search query" not in card, "of drawn faces that says nothing"
    assert f"{info.licence}." in card


def test_a_run_is_evaluated_like_its_file(line, tmp_path):
    for subject, name in ((line / "run", "keras.json"), (line / "m.onnx", "onnx.json")):
        args = ["evaluate", str(subject), "--data", "cartoon:300", "--json", str(tmp_path / name)]
        assert run(args) == 0
    keras, onnx = (json.loads((tmp_path / n).read_text()) for n in ("keras.json", "onnx.json"))
    first, second = (r["tta_modes"][0]["scores"][0]["confusion"] for r in (keras, onnx))
    assert first == second


def test_weights_fine_tune_to_a_users_own_labels(line, tmp_path, capsys):
    assert run(["data", "convert", "cartoon:60", str(tmp_path / "faces")]) == 0
    mine = tmp_path / "mine"
    for k, face in enumerate(sorted((tmp_path / "faces").rglob("*.png"))):
        folder = mine / ("calm" if k % 2 else "cross")
        folder.mkdir(parents=True, exist_ok=True)
        face.rename(folder / f"{k}.png")
    args = [
        "train", "-r", "seed", "--data", str(mine), "-o", str(tmp_path / "r"), "--epochs", "1", "--init",
        str(line / "start.weights.npz"), "--no-tensorboard", "--quiet", "--batch-size", "16",
        "--set", "model.params.dropout=0.4", "--set", "model.params.drop_path=0.1",
    ]  # fmt: skip
    assert run(args) == 0  # the recipe's own architecture, the student's, knows no drop_path
    assert read_run(tmp_path / "r").recipe.model.params["drop_path"] == 0.1
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["heads"] == {"own": 1.0}
    assert facts["init"]["heads"] == []


def test_a_run_of_own_labels_is_resumed_and_evaluated_with_the_same_folder(tmp_path, capfd):
    seven = sorted(set(FERPLUS.labels) - {"contempt"})
    names = [f"{side}/{x}/{k}.png" for side in ("train", "val") for x in seven for k in range(3)]
    mine, kept = str(write_faces(tmp_path / "mine", names)), str(tmp_path / "own.npz")
    first, file = str(tmp_path / "run"), str(tmp_path / "m.onnx")
    assert run(["data", "convert", mine, kept, "--taxonomy", "own"]) == 0
    begin = ["train", "-r", "seed", "--epochs", "1", "--no-tensorboard", "--quiet", "--batch-size", "8"]
    assert run([*begin, "--data", kept, "-o", first]) == 0
    for command in (
        ["train", "--resume", first],
        ["export", first, "-o", file],
        ["evaluate", file],
        ["compare", file, first],
        ["ensemble", file, file, "-o", str(tmp_path / "e.onnx")],
        [*begin, "-o", str(tmp_path / "tuned"), "--init", first],
    ):
        assert run([*command, "--data", mine]) == 0, capfd.readouterr().err
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["init"]["heads"] == ["own"]


def test_faces_have_the_size_of_the_network_that_is_resumed(line, tmp_path, capfd):
    small = ["train", "-r", "small", "--epochs", "1", "--no-tensorboard", "--quiet", *TINY]
    first, second, third = (str(tmp_path / name) for name in "abc")
    assert run([*small, "--data", "cartoon:70", "-o", first, "--size", "32"]) == 0
    assert read_run(first).input_size == 32
    assert run([*small, "--data", "cartoon:70", "-o", second, "--init", first]) == 0
    assert read_run(second).input_size == 32
    assert run(["train", "--resume", first, "--data", "cartoon:70"]) == 0
    assert run(["export", first, "--data", "cartoon:70", "-o", str(tmp_path / "m.onnx")]) == 0
    assert read_model(tmp_path / "m.onnx")[1].input_size == 32
    assert run(["data", "convert", "cartoon:70", str(tmp_path / "f.npz")]) == 0
    capfd.readouterr()
    assert run([*small, "--data", str(tmp_path / "f.npz"), "-o", third, "--init", first]) == 1
    assert f"its faces are 48 pixels wide, and {first} takes 32" in capfd.readouterr().err


def test_faces_of_another_size_than_the_teachers_are_refused_before_it_predicts(tmp_path, capfd):
    teacher = str(write_tiny_model(tmp_path / "m64.onnx", size=64))
    assert run(["data", "convert", "cartoon:70", str(tmp_path / "f.npz")]) == 0
    capfd.readouterr()
    student = ["distil", "-t", teacher, "-r", "small", "-o", str(tmp_path / "r")]
    assert run([*student, "--data", str(tmp_path / "f.npz")]) == 1
    assert f"its faces are 48 pixels wide, and teacher {teacher} takes 64" in capfd.readouterr().err


def test_resuming_a_finished_run_prints_its_result_again(line, capsys):
    assert run(["train", "--resume", str(line / "run"), "--data", "cartoon:300"]) == 0
    assert "2 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--data", "cartoon:70"], "name a recipe with --recipe"),
        (["train", "-r", "nothing", "--data", "cartoon:70"], "no recipe 'nothing'"),
        (["train", "-r", "small", "--resume", "x", "--data", "cartoon:70"], "--resume continues"),
        (["train", "--resume", "x", "--seed", "3", "--data", "cartoon:70"], "no change to the recipe"),
        (["train", "--resume", "x", "--size", "32", "--data", "cartoon:70"], "--size"),
        (["train", "--resume", "absent", "--data", "cartoon:70"], "cannot read recipe"),
        (["train", "-r", "seed", "--init", "absent", "--data", "cartoon:70"], "there is no absent"),
        (["train", "-r", "seed", "--init", "m.onnx", "--data", "cartoon:70"], "graph is folded"),
        (["train", "-r", "seed", "--set", "epochs=-1", "--data", "cartoon:70"], "epochs"),
        (["export", "absent", "--data", "cartoon:70"], "is no run folder"),
    ],
)
def test_wrong_requests_are_one_line_and_status_1(args, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(args) == 1
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflwo"])
@pytest.mark.parametrize("where", ["KERAS_BACKEND", "keras.json"])
def test_other_backends_are_refused(backend, where, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if where == "KERAS_BACKEND":
        monkeypatch.setenv("KERAS_BACKEND", backend)
    else:
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        (tmp_path / where).write_text(json.dumps({"backend": backend}))
    assert run(["train", "-r", "small", "--data", "cartoon:70", "-o", str(tmp_path / "r")]) == 1
    err = capfd.readouterr().err
    assert "trains, and reads runs, on Keras' backends tensorflow and jax; set KERAS_BACKEND to one" in err
    assert f"Received: {backend!r} (from " in err
    assert where in err
    assert len(err.splitlines()) == 1


def test_an_installed_wheel_says_where_the_training_weights_are(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "ZOO", tmp_path / "absent")
    assert run(["train", "-r", "finetune", "--init", "ferkit-base", "--data", "cartoon:70"]) == 1
    err = capfd.readouterr().err
    assert "there is no ferkit-base" in err
    assert "NAME.weights.npz in the folder zoo/" in err
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_is_no_start_and_its_members_are_named(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "-r", "finetune", "--init", "best", "--data", "cartoon:70"]) == 1
    err = capfd.readouterr().err
    assert "best is an ensemble, which has no training weights" in err
    assert "name one of its members: ferkit-large, ferkit-cutmix, ferkit-distilled" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_finds_its_data_again(line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["data", "convert", "cartoon:70", "faces.npz"]) == 0
    small = ["train", "-r", "small", "--epochs", "1", "--no-tensorboard", "--quiet", *TINY]
    assert run([*small, "--data", "faces.npz", "-o", "run"]) == 0
    monkeypatch.chdir(tmp_path.parent)  # the run records an absolute path
    again = str(tmp_path / "run")
    assert run(["train", "--resume", again, "--epochs", "2", "--no-tensorboard"]) == 0
    assert run(["export", again, "-o", str(tmp_path / "m.onnx")]) == 0
    assert str(tmp_path) not in read_model(tmp_path / "m.onnx")[1].model_dump_json()
    (tmp_path / "faces.npz").rename(tmp_path / "moved.npz")
    capfd.readouterr()
    assert run(["train", "--resume", again, "--epochs", "3"]) == 1
    assert str(tmp_path / "faces.npz") in capfd.readouterr().err
    assert run(["train", "--resume", again, "--epochs", "3", "--data", str(tmp_path / "moved.npz")]) == 0
    assert run(["data", "convert", "cartoon:70:5", str(tmp_path / "faces.npz")]) == 0
    assert run(["export", again, "--data", str(tmp_path / "faces.npz"), "-o", str(tmp_path / "n.onnx")]) == 1
    assert "is not the data of this run" in capfd.readouterr().err


def test_recipes_lists_recipes_and_describes_one(capsys):
    assert run(["recipes", "--json"]) == 0
    assert {"seed", "small"} <= {row["recipe"] for row in json.loads(capsys.readouterr().out)}
    assert run(["recipes", "small"]) == 0
    text = capsys.readouterr().out
    assert "optimizer.weight_decay" in text
    assert "model.params.filters" in text
    assert run(["recipes", "smal"]) == 1
    assert "no recipe 'smal'" in capsys.readouterr().err


def test_a_recipe_has_its_whole_keys_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["recipes", "small", "--json"]) == 0
    keys = {row["key"] for row in json.loads(capsys.readouterr().out)}
    assert run(["recipes", "small"]) == 0
    assert keys <= set(capsys.readouterr().out.split())


def test_models_lists_what_there_is(capsys):
    assert run(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"seed-cnn", "se-resnet"} <= {a["name"] for a in found["architectures"]}
    assert {"seed", "small"} <= {r["name"] for r in found["recipes"]}
    assert run(["models", "se-*"]) == 0
    text = capsys.readouterr().out
    assert "se-resnet" in text
    assert "mini-xception" not in text
    assert run(["models", "nope"]) == 1
