"""`ferkit compare` says in words and figures whether two models differ significantly."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ferkit.core.taxonomy import Taxonomy
from ferkit.data import load_data
from ferkit.evaluation.model import open_model
from modelzoo import write_tiny_model

DATA = "cartoon:150"


@pytest.fixture
def models(tmp_path):
    return [write_tiny_model(tmp_path / f"m{seed}.onnx", seed=seed) for seed in (0, 1)]


def _right(model, tta="none"):
    faces = load_data(DATA).of_split("PublicTest")
    predicted = open_model(model).predict(faces.images, tta)["fer2013"]
    return predicted.argmax(axis=1) == faces.labels


def test_the_differences_are_those_of_the_predictions_of_both(ask, models, tmp_path):
    done = ask("compare", *models, "--data", DATA, "--tta", "flip", "--json", tmp_path / "a.json")
    assert (done.status, done.err) == (0, "")
    first, second = (_right(model, "flip") for model in models)
    content = json.loads((tmp_path / "a.json").read_text())
    found = content["differences"][0]
    assert found["accuracy"] == [pytest.approx(first.mean()), pytest.approx(second.mean())]
    assert (found["only_first"], found["only_second"]) == (sum(first & ~second), sum(second & ~first))
    assert found["accuracy_difference"] == pytest.approx(second.mean() - first.mean())
    assert f"p = {found['p_value']:.2g}" in done.out
    assert (content["tta"], content["data"]["faces"]) == ("flip", len(first))
    assert f"{100 * first.mean():.2f}  {100 * second.mean():.2f}" in done.out


def test_a_model_does_not_differ_from_itself(ask, models):
    done = ask("compare", models[0], models[0], "--data", DATA)
    assert "fer2013: accuracy does not differ significantly (p = 1); NLL does not differ" in " ".join(
        done.out.split()
    )
    assert "PublicTest (selection split)" in done.out


def test_one_label_set_is_compared_on_request(ask, models):
    done = ask("compare", *models, "--data", DATA, "--taxonomy", "ferplus")
    assert done.status == 0
    verdicts = [line.split(":")[0] for line in done.out.splitlines() if "accuracy does" in line]
    assert verdicts == ["ferplus majority", "ferplus argmax"]
    assert "fer2013 " not in done.out


def test_a_folder_gets_text_and_json(ask, models, tmp_path):
    done = ask("compare", *models, "--data", DATA, "--split", "all", "--out", tmp_path / "out")
    assert done.status == 0
    assert (tmp_path / "out" / "comparison.txt").read_text() == done.out
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (content["data"]["split"], content["data"]["faces"]) == ("all", 150)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.json", "comparison.txt"]


def test_nothing_is_written_by_default(ask, models, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ask("compare", *models, "--data", DATA).status == 0
    assert list((tmp_path / "here").iterdir()) == []


def test_an_ensemble_compared_where_its_weights_were_fitted_is_in_sample(ask, models, tmp_path):
    assert ask("ensemble", *models, "-o", tmp_path / "ensemble.onnx", "--fit", "--data", DATA).status == 0
    done = ask("compare", models[0], tmp_path / "ensemble.onnx", "--data", DATA)
    assert "\nB: The weights of the ensemble were fitted on these faces" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--taxonomy", "pain"], "taxonomy 'pain'"),
        (["--split", "Nowhere"], "unknown split 'Nowhere'"),
        (["--data", "absent.csv"], "absent.csv"),
    ],
)
def test_an_error_is_one_line_and_status_1(ask, models, options, message):
    done = ask("compare", *models, "--data", DATA, *options)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_models_of_different_labels_are_named_with_their_labels(ask, models, tmp_path):
    own = write_tiny_model(tmp_path / "own.onnx", (Taxonomy("pain", ("none", "some")),))
    done = ask("compare", models[0], own, "--data", DATA)
    assert done.status == 1
    assert "pain (none, some)" in done.err


def test_models_with_faces_of_different_sizes_are_refused_and_of_one_size_compared(ask, models, tmp_path):
    large = write_tiny_model(tmp_path / "large.onnx", size=64)
    done = ask("compare", models[0], large, "--data", DATA)
    assert done.status == 1
    assert "of 48 pixels, tiny of 64" in done.err
    assert ask("compare", large, large, "--data", DATA).status == 0


@pytest.mark.parametrize(
    ("options", "named"), [(["--tta", "all"], "--tta"), (["--threads", "0"], "--threads")]
)
def test_a_wrong_option_is_a_usage_error(ask, models, options, named):
    done = ask("compare", *models, "--data", DATA, *options)
    assert done.status == 2
    assert named in done.err


def test_threads_of_two_runs_are_refused_and_not_ignored(ask, tmp_path):
    done = ask("compare", tmp_path, tmp_path, "--data", DATA, "--threads", "1")
    assert done.status == 2
    assert "for model files" in done.err


def test_files_are_compared_without_keras_matplotlib_and_scipy(models):
    code = (
        "import sys; from ferkit.cli import run; "
        f"assert run(['compare', {str(models[0])!r}, {str(models[1])!r}, '--data', {DATA!r}]) == 0; "
        "print(sorted({'keras', 'tensorflow', 'matplotlib', 'scipy', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
