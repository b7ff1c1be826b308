"""The studies of training: every variant is a recipe, and what is finished is told without training."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.data import load_dataset
from ferkit.training.recipe import load_recipe
from ferkit.training.trainer import train
from tinyruns import tiny

STUDIES = Path(__file__).resolve().parents[1] / "studies"
sys.path.insert(0, str(STUDIES))

import accuracy  # noqa: E402  # found once the folder is on the path
import student  # noqa: E402
import taxonomies  # noqa: E402


@pytest.mark.parametrize("variant", accuracy.variants("ferkit-small"), ids=lambda v: v.name)
def test_every_variant_of_the_accuracy_study_is_one_change_that_a_recipe_takes(variant):
    base = load_recipe("best-single", accuracy.SHORT)
    recipe = load_recipe("best-single", variant.changes)
    assert bool(recipe.distil.weight) == bool(variant.teachers)
    changed = {k for k, v in recipe.model_dump().items() if v != base.model_dump()[k]}
    assert len(changed - {"seed"}) <= 1
    assert changed or variant.name == "seed-1" or variant.epochs != accuracy.EPOCHS


@pytest.mark.parametrize("variant", student.VARIANTS, ids=lambda v: v.name)
def test_every_variant_of_the_students_study_is_one_that_a_recipe_takes(variant):
    assert load_recipe("seed", variant.changes).model.name == "seed-cnn"


def test_names_of_variants_are_unique():
    for variants in (accuracy.variants("x"), student.VARIANTS):
        assert len({v.name for v in variants}) == len(variants)


@pytest.mark.slow
def test_what_is_finished_is_told_in_a_table_and_a_picture(tmp_path):
    faces = load_dataset("cartoon:240:3", cache=False)
    first = tmp_path / "runs" / "seed-1"
    train(tiny(epochs=accuracy.EPOCHS, deterministic=False), faces, first)
    shutil.copytree(first, tmp_path / "runs" / "seed-2")
    line = [
        sys.executable, str(STUDIES / "accuracy.py"), "--data", "unused", "--votes", "unused", "--runs",
        str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--only-finished",
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "Over 2 seeds: mean" in done.stdout
    with (tmp_path / "out" / "ablation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows] == ["seed-1", "seed-2"]
    assert rows[0]["epochs"] == str(accuracy.EPOCHS)
    assert (tmp_path / "out" / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "ablation.md").read_text() in done.stdout


def test_agreement_with_people_counts_votes_and_compares_nobody_with_themselves():
    votes = np.zeros((2, 8), np.uint8)
    votes[0, [0, 1]] = 3, 1  # three say neutral, one says happiness
    votes[1, 2] = 2
    happy, surprise, neutral = 3, 5, 6
    answers = {
        "fer2013": np.eye(7)[[neutral, happy]],
        "ferplus": np.eye(8)[[0, 2]],
    }
    found = taxonomies.agreements(votes, np.array([happy, surprise]), answers)
    assert found == {
        "FER2013's label": pytest.approx((1 / 4 + 1) / 2),
        "the fer2013 head": pytest.approx((3 / 4 + 0) / 2),
        "the ferplus head": pytest.approx((3 / 4 + 1) / 2),
        "another tagger": pytest.approx(((3 * 2) / (4 * 3) + 1) / 2),
        "the most frequent vote": pytest.approx((3 / 4 + 1) / 2),
    }


def test_a_class_without_faces_or_answers_has_no_figures():
    p = np.eye(3)[[0, 0, 1]]
    rows = taxonomies.by_class(p, np.array([0, 1, 1]), ("a", "b", "c"))
    assert [row["recall"] for row in rows] == [1.0, 0.5, None]
    assert [row["precision"] for row in rows] == [0.5, 1.0, None]
