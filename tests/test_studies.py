"""The studies of training: every variant is a recipe, and finished runs are not trained again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.core.errors import TrainingError
from ferkit.core.modelfile import resolve_model
from ferkit.data import load_data
from ferkit.training.recipe import dump_recipe, load_recipe
from ferkit.training.runs import load_training_weights
from ferkit.training.state import digest_arrays
from ferkit.training.trainer import train
from modelzoo import write_tiny_model
from tinyruns import tiny

STUDIES = Path(__file__).resolve().parents[1] / "studies"
sys.path.insert(0, str(STUDIES))

import accuracy  # noqa: E402  # found once the folder is on the path
import errors  # noqa: E402
import sharpness  # noqa: E402
import student  # noqa: E402
import taxonomies  # noqa: E402
import variants  # noqa: E402


@pytest.mark.parametrize("variant", accuracy.variants(["ferkit-small"]), ids=lambda v: v.name)
def test_every_variant_of_the_accuracy_study_is_one_change_that_a_recipe_takes(variant):
    base = load_recipe("best-single", accuracy.SHORT)
    recipe = load_recipe("best-single", variant.changes)
    assert bool(recipe.distil.weight) == bool(variant.teachers)
    changed = {k for k, v in recipe.model_dump().items() if v != base.model_dump()[k]}
    assert len(changed - {"seed"}) <= 1 + (variant.name == "bilinear-precise")
    assert changed or variant.name == "seed-1" or variant.epochs != accuracy.EPOCHS


@pytest.mark.parametrize("variant", student.VARIANTS, ids=lambda v: v.name)
def test_every_variant_of_the_students_study_is_one_that_a_recipe_takes(variant):
    assert load_recipe("seed", variant.changes).model.name == "seed-cnn"


def test_names_of_variants_are_unique():
    for found in (accuracy.variants(["x"]), student.VARIANTS):
        assert len({v.name for v in found}) == len(found)


@pytest.fixture
def two_seeds(tmp_path, monkeypatch):
    """Two finished runs of the study, with a recipe of a second an epoch in place of ``best-single``."""
    recipe = tmp_path / "short.toml"
    recipe.write_text(dump_recipe(tiny(epochs=2, deterministic=False)))
    faces = load_data("cartoon:240:3", cache=False)
    found = [variants.Variant(f"seed-{k}", "the recipe", 2, (f"seed={k}",)) for k in (1, 2)]
    for variant in found:
        train(variants.recipe_of(variant, str(recipe)), faces, tmp_path / "runs" / variant.name)
    return recipe, found, tmp_path / "runs"


@pytest.mark.slow
def test_finished_variants_are_recognised_and_other_runs_are_refused(two_seeds, tmp_path):
    recipe, (first, second), folder = two_seeds
    assert variants.is_finished(first, str(recipe), folder / "seed-1")
    assert not variants.is_finished(first, str(recipe), folder / "absent")
    with pytest.raises(TrainingError, match="another recipe"):
        variants.is_finished(second, str(recipe), folder / "seed-1")
    taught = variants.Variant("x", "taught", 2, first.changes, (str(write_tiny_model(tmp_path / "t.onnx")),))
    with pytest.raises(TrainingError, match="another teacher"):
        variants.is_finished(taught, str(recipe), folder / "seed-1")
    histories = {name: variants.read_run(folder / name)[0] for name in ("seed-1", "seed-2")}
    variants.draw_histories(tmp_path / "a.png", histories)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_gives_the_distance_of_a_significant_difference():
    row = {
        "what": "", "mmac": 1.0, "epochs": 2, "training_accuracy": 0.5, "loss": 1.0, "ferplus_majority": "",
        "minutes": 1.0, "seed": 1,
    }  # fmt: skip
    rows = [{**row, "variant": f"seed-{k}", "accuracy": a} for k, a in ((1, 0.60), (2, 0.61), (3, 0.62))]
    text = accuracy.table([*rows, {**row, "variant": "other", "accuracy": 0.7}])
    assert "mean 61.00 %, standard deviation 1.00 points" in text
    assert "its accuracy is 5.0 points away, or its loss 0.000; of 1 variants" in text  # 4.303 * sqrt(4 / 3)


def test_the_table_lists_variants_that_were_not_run():
    row = {
        "variant": "other", "what": "", "mmac": 1.0, "epochs": 2, "training_accuracy": 0.5, "accuracy": 0.5,
        "loss": 1.0, "ferplus_majority": 0.5, "minutes": 1.0, "seed": 1,
    }  # fmt: skip
    assert accuracy.table([row], ["ema", "wider"]).endswith("\n\nNot run: ema, wider.\n")
    assert "Not run" not in accuracy.table([row])


def test_a_row_outlives_its_run_but_not_a_change_of_its_recipe(tmp_path, monkeypatch, capsys):
    """The study's rows are of one recipe only; what another recipe gave is left out of the table."""
    known = {variant.name: variant for variant in accuracy.variants([])}
    row = {
        "what": "as it was", "mmac": 26.4, "epochs": 15, "training_accuracy": 0.5, "accuracy": 0.6,
        "loss": 1.0, "ferplus_majority": "", "minutes": 5.0, "seed": 1, "faces": "0123456789abcdef",
    }  # fmt: skip

    def of(name):
        return variants.digest_of_variant(known[name], "best-single")

    rows = [
        {"variant": "seed-1", **row, "recipe": of("seed-1"), "teachers": ""},
        {"variant": "ema", **row, "recipe": "0" * 12, "teachers": ""},
        {"variant": "no longer known", **row, "recipe": of("seed-1"), "teachers": ""},
        {"variant": "mirror", **row, "faces": "", "recipe": of("mirror"), "teachers": ""},
        {"variant": "distilled-t1", **row, "recipe": "1" * 12, "teachers": "2" * 12},
        {"variant": "distilled-only", **row, "recipe": of("distilled-only"), "teachers": "2" * 12},
    ]
    variants.write_rows(tmp_path / "ablation.csv", rows)
    line = [
        "accuracy.py", "--data", "x", "--votes", "x", "--only-finished",
        "--runs", str(tmp_path / "runs"), "--out", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    accuracy.main()
    # No teacher is named here, so that nothing speaks against the one of a row.
    assert variants.read_rows(tmp_path / "ablation.csv") == [rows[0], rows[-1]]
    monkeypatch.setattr(sys, "argv", [*line, "--teacher", "ferkit-small"])
    accuracy.main()
    assert variants.read_rows(tmp_path / "ablation.csv") == rows[:1], "another teacher than the row's"
    assert "| seed-1 | as it was |" in capsys.readouterr().out
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_of_different_data_are_not_put_into_one_table(tmp_path, monkeypatch, capsys):
    known = {variant.name: variant for variant in accuracy.variants([])}
    rows = [
        {
            "variant": name, "what": "", "mmac": 1.0, "epochs": 2, "training_accuracy": 0.5, "accuracy": 0.5,
            "loss": 1.0, "ferplus_majority": "", "minutes": 1.0, "seed": 1, "faces": faces,
            "recipe": variants.digest_of_variant(known[name], "best-single"), "teachers": "",
        }
        for name, faces in (("seed-1", "1e2"), ("ema", "0123456789abcdef"))
    ]  # fmt: skip
    variants.write_rows(tmp_path / "ablation.csv", rows)
    assert variants.read_rows(tmp_path / "ablation.csv") == rows, "a fingerprint is no number"
    line = [
        "accuracy.py", "--data", "x", "--votes", "x", "--only-finished",
        "--runs", str(tmp_path / "runs"), "--out", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "variants of different data" in capsys.readouterr().err


def test_a_variants_digest_depends_on_its_recipe_alone(tmp_path):
    one = variants.Variant("a", "what", 5, ("seed=2",))
    digest = variants.digest_of_variant(one, "small")
    assert digest == variants.digest_of_variant(variants.Variant("b", "other", 5, ("seed=2",)), "small")
    others = [variants.Variant("a", "what", 6, ("seed=2",)), variants.Variant("a", "what", 5, ("seed=3",))]
    assert len({digest, *(variants.digest_of_variant(other, "small") for other in others)}) == 3


def test_a_variants_teachers_are_identified_by_their_files(tmp_path):
    teacher = str(write_tiny_model(tmp_path / "t.onnx"))
    taught = variants.Variant("a", "what", 5, (), (teacher, "ferkit-small"))
    first, second = variants.digest_of_teachers(taught).split()
    assert first == hashlib.sha256((tmp_path / "t.onnx").read_bytes()).hexdigest()[:12]
    assert second == hashlib.sha256(resolve_model("ferkit-small").read_bytes()).hexdigest()[:12]
    online = variants.Variant("a", "what", 5, ("distil.online=true",), ("ferkit-small",))
    digest = digest_arrays(load_training_weights("ferkit-small").arrays)
    assert variants.digest_of_teachers(online) == digest[:12]
    assert variants.digest_of_teachers(variants.Variant("a", "what", 5)) == ""


def test_distilled_variants_need_a_teacher(tmp_path, monkeypatch, capsys):
    line = ["accuracy.py", "--data", "x", "--votes", "x", "--out", str(tmp_path), "--only", "distilled-t2"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "distilled-t2 needs a --teacher" in capsys.readouterr().err


def test_a_study_without_any_finished_run_is_an_error(tmp_path):
    for script in ("accuracy.py", "student.py"):
        line = [
            sys.executable,
            str(STUDIES / script),
            "--data",
            "x",
            "--runs",
            str(tmp_path),
            "--only-finished",
        ]
        line += ["--votes", "x"] if script == "accuracy.py" else []
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert "is finished" in done.stderr


def test_agreement_of_taggers_leaves_out_the_tagger_that_is_compared():
    votes = np.zeros((2, 8), np.uint8)
    votes[0, [0, 1]] = 3, 1  # three say neutral, one says happiness
    votes[1, 2] = 2  # both say surprise
    happy, surprise, neutral = 3, 5, 6
    predictions = {
        "fer2013": np.eye(7)[[neutral, happy]],
        "ferplus": np.eye(8)[[0, 2]],
    }
    found = taxonomies.agreements(votes, np.array([happy, surprise]), predictions)
    assert found == {
        "FER2013's label": pytest.approx((1 / 4 + 1) / 2),
        "the fer2013 head": pytest.approx((3 / 4 + 0) / 2),
        "the ferplus head": pytest.approx((3 / 4 + 1) / 2),
        "another tagger": pytest.approx(((3 * 2) / (4 * 3) + 1) / 2),
        "the most frequent vote": pytest.approx((3 / 4 + 1) / 2),
    }


def test_a_class_without_faces_or_predictions_has_no_figures():
    p = np.eye(3)[[0, 0, 1]]
    rows = taxonomies.by_class(p, np.array([0, 1, 1]), ("a", "b", "c"))
    assert [row["recall"] for row in rows] == [1.0, 0.5, None]
    assert [row["precision"] for row in rows] == [0.5, 1.0, None]


def test_the_finest_detail_is_lost_first_and_more_of_it_bilinearly():
    noise = np.random.default_rng(0).integers(0, 256, (128, 48, 48)).astype(np.uint8)
    bands = sharpness.spectrum(noise.astype(float))
    assert bands.max() / bands.min() < 1.2  # noise holds as much of every frequency
    left = sharpness.kept_detail(noise)
    assert left["bilinear"] == sorted(left["bilinear"], reverse=True)
    assert left["bilinear"][-1] < left["cubic"][-1] < 1


def test_statistics_anew_change_a_runs_readings_and_the_checkpoint_keeps_the_old_ones(two_seeds):
    _, found, runs = two_seeds
    faces = load_data("cartoon:240:3", cache=False)
    training, test = np.asarray(faces.of_split("Training").images), faces.of_split("PublicTest")
    read = sharpness.readings(runs / found[0].name, training, test)
    history, _ = variants.read_run(runs / found[0].name)
    before = read.pop("moving averages of training")
    assert before["loss"] == pytest.approx(history[-1]["val_loss"], abs=1e-4)
    assert all(figures["loss"] != before["loss"] for figures in read.values())


def test_errors_are_grouped_by_the_votes_of_the_taggers():
    """Happy and seen so; sad but seen happy; sad, seen as contempt; divided; angry and seen so."""
    labels = np.array([3, 4, 4, 4, 0])
    votes = np.zeros((5, 10), np.uint8)
    for row, counts in enumerate(({1: 9}, {1: 8, 3: 2}, {7: 9}, {1: 4, 3: 4, 0: 2}, {4: 10})):
        for column, count in counts.items():
            votes[row, column] = count
    kinds, seen = errors.kinds_of_faces(labels, votes)
    assert kinds.tolist() == [0, 1, 1, 2, 0]
    assert seen.tolist() == [3, 3, -1, -1, 0]
    first = errors.figures(np.array([3, 3, 4, 4, 6]), labels, kinds, seen)
    assert (first["accuracy"], first["errors"]) == (0.6, 2)
    assert [(k["accuracy"], k["errors"]) for k in first["kinds"].values()] == [(0.5, 1), (0.5, 1), (1.0, 0)]
    assert first["sides"] == {"label": 1, "taggers": 1, "neither": 0}
    predictions = {"a": np.array([3, 3, 5, 2, 6]), "b": np.array([3, 3, 5, 4, 6])}
    assert errors.in_common(predictions, labels, kinds, seen) == {
        "faces": 3,
        "taggers_see_what_the_models_see": 1,
        "taggers_see_the_label": 1,
        "taggers_see_something_else": 1,
        "no_majority": 0,
        "some_model_is_right": 2,
    }


def test_the_errors_of_models_add_up(tmp_path, monkeypatch, capsys):
    models = [str(write_tiny_model(tmp_path / f"{name}.onnx", seed=k)) for k, name in enumerate("ab")]
    monkeypatch.setattr(sys, "argv", ["errors.py", "--data", "x", "--votes", "y", "--models", *models])
    monkeypatch.setattr(errors, "load_data", lambda data, votes: load_data("cartoon:300:1", cache=False))
    monkeypatch.chdir(tmp_path)
    errors.main()
    report = json.loads((tmp_path / "results/errors/errors.json").read_text())
    assert sum(report["counts"].values()) == report["faces"] > 0
    assert list(report["models"]) == ["tiny", models[1]], "of one name, and both listed"
    for model in report["models"].values():
        assert sum(kind["errors"] for kind in model["kinds"].values()) == model["errors"]
        assert sum(model["sides"].values()) == report["counts"]["something else"]
    assert capsys.readouterr().out.strip() == (tmp_path / "results/errors/errors.md").read_text().strip()


def test_faces_without_votes_are_refused(tmp_path, monkeypatch, capsys):
    bare = load_data("cartoon:70:1", cache=False)
    bare = dataclasses.replace(bare, votes=None)
    monkeypatch.setattr(sys, "argv", ["errors.py", "--data", "x", "--votes", "y", "--models", "ferkit-small"])
    monkeypatch.setattr(errors, "load_data", lambda data, votes: bare)
    with pytest.raises(SystemExit):
        errors.main()
    assert "x has no PublicTest faces with votes" in capsys.readouterr().err
