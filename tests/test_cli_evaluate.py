"""`ferkit evaluate` measures model files and runs alike, and writes reports, predictions and results."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facefiles import csv_text, face_row
from ferkit.core.images import write_image
from ferkit.core.modelfile import write_model
from ferkit.core.taxonomy import FER2013, Taxonomy
from ferkit.data import SPLITS, faces_digest, load_data
from ferkit.data.cartoon import draw_faces
from ferkit.evaluation.model import open_model
from modelzoo import graph_bytes, model_info, write_tiny_model

DATA = "cartoon:150"


@pytest.fixture
def model(tmp_path):
    return str(write_tiny_model(tmp_path / "tiny.onnx"))


def test_a_model_file_is_measured_on_the_selection_split(ask, model):
    done = ask("evaluate", model, "--data", DATA)
    assert done.status == 0
    assert "PublicTest (selection split)" in done.out
    assert re.search(r"^none +fer2013 +17 ", done.out, re.MULTILINE)
    assert "confusion matrix" in done.out
    assert done.err == ""


def test_text_json_pictures_and_results_come_from_one_measurement(ask, model, tmp_path):
    options = ["--json", tmp_path / "a.json", "--out", tmp_path / "out", "--results", tmp_path / "r.csv"]
    done = ask("evaluate", model, "--data", DATA, *options)
    assert done.status == 0
    assert (tmp_path / "out" / "report.txt").read_text() == done.out
    assert (tmp_path / "out" / "report.json").read_text() == (tmp_path / "a.json").read_text()
    assert (tmp_path / "out" / "confusion-fer2013-none.png").stat().st_size > 10_000
    scores = json.loads((tmp_path / "a.json").read_text())["tta_modes"][0]["scores"][0]
    with (tmp_path / "r.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["accuracy"] == f"{100 * scores['accuracy']:.2f}"
    assert row["n"] == str(scores["n"])


def test_faces_are_loaded_at_the_size_of_the_model(ask, tmp_path):
    model = write_tiny_model(tmp_path / "m64.onnx", size=64)
    assert ask("evaluate", model, "--data", DATA).status == 0
    assert ask("data", "convert", DATA, tmp_path / "f.npz").status == 0
    refused = ask("evaluate", model, "--data", tmp_path / "f.npz")
    assert refused.status == 1
    assert "its faces are 48 pixels wide, and " in refused.err
    assert "takes 64" in refused.err
    assert "ferkit data convert PICTURES FACES.npz --size 64" in refused.err


def test_the_name_of_the_model_can_be_given(ask, model, tmp_path):
    options = ["--name", "seed 2", "--results", tmp_path / "r.csv"]
    done = ask("evaluate", model, "--data", DATA, *options)
    assert done.out.startswith("seed 2 ")
    with (tmp_path / "r.csv").open(newline="") as table:
        assert [row["model"] for row in csv.DictReader(table)] == ["seed 2"]


def test_a_row_has_digests_of_the_model_file_and_the_faces(ask, model, tmp_path):
    assert ask("evaluate", model, "--data", DATA, "--results", tmp_path / "r.csv").status == 0
    with (tmp_path / "r.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["sha256"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()[:16]
    assert (row["data"], row["faces"]) == (DATA, faces_digest(load_data(DATA).of_split("PublicTest"))[:16])


def test_another_model_of_the_same_name_replaces_a_row_only_with_overwrite(ask, model, tmp_path):
    other = write_tiny_model(tmp_path / "other.onnx", seed=1)
    options = ["--data", DATA, "--results", tmp_path / "r.csv"]
    assert ask("evaluate", model, *options).status == 0
    refused = ask("evaluate", other, *options)
    assert refused.status == 1
    assert "sha256" in refused.err
    assert ask("evaluate", other, *options, "--overwrite").status == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 2


def test_nothing_to_overwrite_is_a_usage_error(ask, model):
    done = ask("evaluate", model, "--data", DATA, "--overwrite")
    assert done.status == 2
    assert "--results" in done.err


@pytest.mark.parametrize("split", ["PublicTest", "all"])
def test_the_predictions_for_each_face_are_written_on_request(ask, model, tmp_path, split):
    options = [
        "--data",
        DATA,
        "--split",
        split,
        "--predictions",
        tmp_path / "a.csv",
        "--json",
        tmp_path / "a.json",
    ]
    done = ask("evaluate", model, *options, "--tta", "all")
    assert done.status == 0
    with (tmp_path / "a.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["tta"] == "flip"]
    data = load_data(DATA)
    where = [int(row["row"]) for row in rows]
    assert {SPLITS[data.split[k]] for k in where} == {row["split"] for row in rows}
    assert [row["label"] for row in rows] == [FER2013.labels[data.labels[k]] for k in where]
    written = np.array([[float(row[f"fer2013 {label}"]) for label in FER2013.labels] for row in rows])
    np.testing.assert_allclose(
        written, open_model(model).predict(data.images[where], "flip")["fer2013"], atol=1e-6
    )
    scores = json.loads((tmp_path / "a.json").read_text())["tta_modes"][1]["scores"][0]
    assert (len(rows), (written.argmax(axis=1) == data.labels[where]).sum()) == (
        scores["n"],
        scores["correct"],
    )


@pytest.fixture
def fitted_ensemble(ask, model, tmp_path):
    """An ensemble whose weights were fitted on the PublicTest of the drawn faces."""
    other, out = write_tiny_model(tmp_path / "other.onnx", seed=1), tmp_path / "ensemble.onnx"
    assert ask("ensemble", model, other, "-o", out, "--fit", "--data", DATA).status == 0
    return out


def test_an_ensemble_is_in_sample_where_its_weights_were_fitted_and_its_file_has_figures_out_of_fold(
    ask, fitted_ensemble, tmp_path
):
    done = ask("evaluate", fitted_ensemble, "--data", DATA, "--tta", "all", "--json", tmp_path / "a.json")
    assert "weights of the ensemble were fitted on these faces" in done.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["data"]["weights_in_sample"] is True
    held_out, *_ = [
        r for r in content["model"]["held_out"] if r["labels"] == "fer2013" and not r["without_leaks"]
    ]
    text = " ".join(done.out.split())
    assert f"Out of fold, from its file: fer2013 {100 * held_out['accuracy']:.2f} % (" in text
    none, flip, _ = (entry["scores"][0] for entry in content["tta_modes"])
    assert (none["nll_out_of_fold"], none["ece_out_of_fold"]) == (
        held_out["nll_out_of_fold"],
        held_out["ece_out_of_fold"],
    )
    assert none["ece_out_of_fold"] != none["ece"]
    assert (flip["nll_out_of_fold"], flip["ece_out_of_fold"]) == (None, None)


@pytest.mark.parametrize("other", [["--split", "Training"], ["--data", "cartoon:150:9"]])
def test_an_ensemble_is_not_in_sample_elsewhere(ask, fitted_ensemble, tmp_path, other):
    done = ask("evaluate", fitted_ensemble, "--data", DATA, *other, "--json", tmp_path / "a.json")
    assert "in sample" not in done.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["data"]["weights_in_sample"] is False
    assert content["tta_modes"][0]["scores"][0]["ece_out_of_fold"] is not None


def test_an_ensemble_is_in_sample_on_all_faces(ask, fitted_ensemble):
    done = ask("evaluate", fitted_ensemble, "--data", DATA, "--split", "all")
    assert "weights of the ensemble were fitted on these faces" in done.out


def test_an_ensemble_with_a_fitted_temperature_only_has_no_weights_in_sample(ask, model, tmp_path):
    other, out = write_tiny_model(tmp_path / "other.onnx", seed=1), tmp_path / "ensemble.onnx"
    assert ask("ensemble", model, other, "-o", out, "--data", DATA).status == 0
    assert "in sample" not in ask("evaluate", out, "--data", DATA).out


def test_all_ttas_are_measured_in_order(ask, model, tmp_path):
    done = ask("evaluate", model, "--data", DATA, "--tta", "all", "--json", tmp_path / "a.json")
    tta_modes = json.loads((tmp_path / "a.json").read_text())["tta_modes"]
    assert [p["tta"] for p in tta_modes] == ["none", "flip", "ten-crop"]
    assert "none, flip, ten-crop" in done.err


def test_another_split_can_be_measured(ask, model):
    done = ask("evaluate", model, "--data", DATA, "--split", "Training")
    assert done.status == 0
    assert "Training," in done.out
    assert "selection" not in done.out


@pytest.fixture
def unsplit(tmp_path, monkeypatch):
    """A csv of 70 faces without splits."""
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    faces = draw_faces(70, 1)
    rows = [
        f"{label},{' '.join(map(str, image.ravel()))}"
        for image, label in zip(faces.images, faces.labels, strict=True)
    ]
    (tmp_path / "own.csv").write_text(csv_text(rows, "emotion,pixels"))
    return tmp_path / "own.csv"


def test_a_held_out_tenth_is_reported_and_is_not_the_selection_split(ask, model, unsplit, caplog):
    done = ask("evaluate", model, "--data", unsplit)
    assert done.status == 0
    assert "own.csv, PublicTest, 7 faces" in done.out
    assert "selection" not in done.out
    assert caplog.messages == [
        f"{unsplit}: no PublicTest is named; 7 of 70 Training faces are held out as it"
    ]
    assert "--split all measures all 70 faces" in done.err


def test_all_faces_can_be_measured(ask, model, unsplit, tmp_path):
    done = ask("evaluate", model, "--data", unsplit, "--split", "all", "--json", tmp_path / "a.json")
    assert done.status == 0
    assert "own.csv, all, 70 faces" in done.out
    assert done.err == ""
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["data"]["split"], content["data"]["selection_split"]) == ("all", False)
    assert content["tta_modes"][0]["scores"][0]["n"] == 70


def test_flat_faces_can_be_left_out_and_the_data_stay_known(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    rows = [face_row(k % 7, ("Training", "PublicTest")[k % 2], fill=k, count=48 * 48) for k in range(8)]
    faces = draw_faces(14, 1)
    rows += [
        f"{label},{' '.join(map(str, image.ravel()))},PublicTest"
        for image, label in zip(faces.images, faces.labels, strict=True)
    ]
    (tmp_path / "f.csv").write_text(csv_text(rows))
    data = {"faces": faces_digest(load_data(tmp_path / "f.csv"))}
    write_model(graph_bytes(), model_info().model_copy(update={"data": data}), tmp_path / "m.onnx")
    options = ["--drop-flat", "--predictions", tmp_path / "a.csv"]
    done = ask("evaluate", tmp_path / "m.onnx", "--data", tmp_path / "f.csv", *options)
    assert "f.csv, PublicTest (selection split), 14 faces" in done.out
    with (tmp_path / "a.csv").open(newline="") as table:
        assert [int(row["row"]) for row in csv.DictReader(table)] == list(range(8, 22))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "Nowhere"], "unknown split 'Nowhere'"),
        (["--data", "absent.csv"], "absent.csv"),
        (["--split", "Training", "--drop-leaks"], "a duplicate in Training"),
    ],
)
def test_an_error_is_one_line_and_status_1(ask, model, options, message):
    done = ask("evaluate", model, "--data", DATA, *options)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_folders_with_some_of_the_labels_are_measured(ask, model, tmp_path):
    faces = draw_faces(30, 1)
    for k, (image, label) in enumerate(zip(faces.images, faces.labels, strict=True)):
        if label in (3, 4, 6):
            name = FER2013.labels[label].title()
            write_image(
                tmp_path / "few" / "test" / name / f"{k}.png", np.repeat(image[:, :, None], 3, axis=2)
            )
    options = ["--split", "all", "--json", tmp_path / "a.json"]
    done = ask("evaluate", model, "--data", tmp_path / "few", *options)
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "a.json").read_text())["tta_modes"][0]["scores"][0]
    assert scores["labels"] == "fer2013"
    assert {c["label"] for c in scores["classes"] if c["support"]} == {"happy", "sad", "neutral"}


def test_a_model_that_does_not_exist_is_named(ask):
    done = ask("evaluate", "nowhere.onnx", "--data", DATA)
    assert done.status == 1
    assert "nowhere.onnx" in done.err


def test_data_with_other_labels_than_the_model_are_refused_with_both_sets(ask, tmp_path):
    own = write_tiny_model(tmp_path / "own.onnx", (Taxonomy("pain", ("none", "some")),))
    done = ask("evaluate", own, "--data", DATA)
    assert done.status == 1
    assert "fer2013 (angry, disgust" in done.err
    assert "pain (none, some)" in done.err


def test_an_unknown_tta_is_a_usage_error(ask, model):
    done = ask("evaluate", model, "--data", DATA, "--tta", "twelve-crop")
    assert done.status == 2
    assert "ten-crop" in done.err


@pytest.mark.parametrize(
    "option",
    [
        ("--detector", "centerface"),
        ("--min-face", "48"),
        ("--taxonomy", "fer2013"),
        ("--provider", "CPUExecutionProvider"),
    ],
)
def test_options_of_photos_are_refused_and_not_ignored(ask, model, option):
    done = ask("evaluate", model, "--data", DATA, *option)
    assert (done.status, done.out) == (2, "")
    assert option[0] in done.err
    assert "goes with --photos" in done.err


def test_another_file_in_place_of_results_is_refused_before_the_measurement(ask, tmp_path):
    (tmp_path / "r.csv").write_text("something else\n")
    done = ask("evaluate", "nowhere.onnx", "--data", DATA, "--results", tmp_path / "r.csv")
    assert done.status == 1
    assert "no table of results" in done.err


def test_a_folder_that_is_no_run_is_refused(ask, tmp_path):
    done = ask("evaluate", tmp_path, "--data", DATA)
    assert done.status == 1
    assert "no run folder" in done.err


def test_threads_of_a_run_are_refused_and_not_ignored(ask, tmp_path):
    done = ask("evaluate", tmp_path, "--data", DATA, "--threads", "1")
    assert done.status == 2
    assert "--threads" in done.err
    assert "for model files" in done.err


def test_the_help_loads_no_heavy_library():
    code = (
        "import sys; from ferkit.cli import run; run(['evaluate', '--help']); run(['ensemble', '--help']); "
        "print(sorted({'numpy', 'cv2', 'onnxruntime', 'onnx', 'keras', 'scipy', 'matplotlib', 'sklearn'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_a_file_is_measured_without_keras_and_matplotlib(model):
    code = (
        "import sys; from ferkit.cli import run; "
        f"assert run(['evaluate', {model!r}, '--data', {DATA!r}]) == 0; "
        "print(sorted({'keras', 'tensorflow', 'matplotlib', 'sklearn', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.realdata
def test_the_published_counts_of_votes_and_leaks_are_reproduced(ask, model, shared_dir, tmp_path):
    data = shared_dir / "data"
    done = ask(
        "evaluate", model, "--data", data / "fer2013.csv.gz", "--votes", data / "fer2013new.csv",
        "--drop-leaks", "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert done.status == 0
    content = json.loads((tmp_path / "a.json").read_text())
    (entry,) = content["tta_modes"]
    # shared/data/README.md: 3,589 PublicTest faces, of which majority keeps 3,199, argmax 3,553; 280 leak.
    assert [s["n"] for s in entry["scores"]] == [3589, 3199, 3553]
    assert content["data"]["leaked"] == 280
    assert entry["without_leaks"][0]["n"] == 3589 - 280
    assert [c["support"] for c in entry["scores"][0]["classes"]] == [467, 56, 496, 895, 653, 415, 607]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run of one epoch of a very small network with a view of 40 of 48 pixels."""
    from ferkit.training.recipe import parse_recipe
    from ferkit.training.trainer import train

    params = {"stem": 4, "filters": [4, 8], "blocks": [1, 1], "view_size": 40}
    recipe = parse_recipe(
        {"name": "little", "epochs": 1, "seed": 3, "model": {"name": "se-resnet", "params": params}}
    )
    folder = tmp_path_factory.mktemp("runs") / "little"
    train(recipe, load_data(DATA), folder, tensorboard=False)
    return folder


@pytest.mark.slow
def test_a_run_and_the_file_exported_from_it_give_the_same_figures(small_run, ask, tmp_path):
    exported = tmp_path / "little.onnx"
    assert ask("export", small_run, "--data", DATA, "-o", exported).status == 0
    keras, onnx = open_model(small_run), open_model(exported)
    faces = load_data(DATA).of_split("PublicTest").images
    for tta in ("none", "flip", "ten-crop"):
        confusions = []
        for model in (small_run, exported):
            report = tmp_path / "a.json"
            assert ask("evaluate", model, "--data", DATA, "--tta", tta, "--json", report).status == 0
            confusions.append(json.loads(report.read_text())["tta_modes"][0]["scores"][0]["confusion"])
        assert confusions[0] == confusions[1], tta
        # The export left its temperatures in the run's folder, so even averages over views are the same.
        predicted = [model.predict(faces, tta)["fer2013"] for model in (keras, onnx)]
        np.testing.assert_allclose(predicted[0], predicted[1], atol=1e-4)
    known = ("name", "architecture", "parameters", "mmac", "seeds", "epochs")
    assert [getattr(keras.facts, k) for k in known] == [getattr(onnx.facts, k) for k in known]
    assert keras.facts.seeds == (3,)
    assert onnx.facts.hours == pytest.approx(keras.facts.hours, abs=1e-3)
    assert keras.heads == {"fer2013": FER2013}


@pytest.mark.slow
def test_ten_crop_of_a_run_shifts_by_the_margin_outside_the_view(small_run):
    # (48 - 40) / 2 = 4: a frame of 4 white pixels around a black face changes ten-crop only.
    faces = np.zeros((1, 48, 48), np.uint8)
    framed = np.full((1, 48, 48), 255, np.uint8)
    framed[:, 4:-4, 4:-4] = 0
    predict = open_model(small_run).predict
    plain = [predict(f, "none")["fer2013"] for f in (faces, framed)]
    crops = [predict(f, "ten-crop")["fer2013"] for f in (faces, framed)]
    np.testing.assert_array_equal(*plain)
    assert np.abs(crops[0] - crops[1]).max() > 1e-6


@pytest.mark.slow
def test_a_run_refuses_faces_of_another_size(small_run):
    from ferkit.core.errors import DataError

    with pytest.raises(DataError, match="faces of 48 pixels"):
        open_model(small_run).predict(np.zeros((1, 64, 64), np.uint8), "none")
