"""The study of diversity: pairs of networks, what each adds to an ensemble, and its cache."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs ferkit[train]")

from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import FerkitError
from ferkit.core.modelfile import read_model, write_model
from ferkit.data import load_data
from ferkit.evaluation.calibration import temper_out_of_fold
from ferkit.evaluation.metrics import accuracy, negative_log_likelihood
from modelzoo import write_tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))

import diversity  # found once the folder is on the path


def test_a_pair_is_counted_face_by_face():
    """Right together, wrong alike, wrong differently, only the first, only the second."""
    truth = np.array([0, 1, 2, 3, 4])
    predicted = {"a": np.array([0, 2, 0, 3, 0]), "b": np.array([0, 2, 1, 0, 4])}
    pair = diversity.pair_of("x", "a", "b", predicted, truth)
    assert (pair.n, pair.disagree, pair.both_wrong, pair.same_error) == (5, 0.6, 0.4, 0.2)
    assert (pair.only_first, pair.only_second) == (0.2, 0.2)


@pytest.fixture
def drawn():
    """Labels of 200 faces, and three networks that are right about as often as chance, each otherwise."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, 200)
    logits = [rng.normal(size=(200, 7)) + 1.5 * np.eye(7)[truth] for _ in range(3)]
    p = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits]
    return truth, dict(zip("abc", p, strict=True))


def test_a_member_is_taken_out_and_another_network_is_added(drawn):
    truth, predictions = drawn
    gains = diversity.gains_of("fer2013", {"ab": ["a", "b"]}, predictions, truth, "fer2013")
    assert [(gain.model, gain.is_member) for gain in gains] == [("a", True), ("b", True), ("c", False)]

    def figures(*names):
        p = temper_out_of_fold(np.mean([predictions[name] for name in names], axis=0), truth)
        return accuracy(truth, p.argmax(axis=1)), negative_log_likelihood(p, truth)

    for gain, without, joined in zip(gains, ("b", "a", "ab"), ("ab", "ab", "abc"), strict=True):
        before, after = figures(*without), figures(*joined)
        assert gain.change.accuracy == pytest.approx((before[0], after[0]))
        assert gain.change.nll == pytest.approx((before[1], after[1]))
        assert gain.change.accuracy_difference == pytest.approx(after[0] - before[0])
        assert gain.alone == accuracy(truth, predictions[gain.model].argmax(axis=1))


def test_a_network_adds_nothing_to_itself(drawn):
    truth, predictions = drawn
    gains = diversity.gains_of("fer2013", {"a": ["a"]}, predictions, truth, "fer2013")
    assert [gain.model for gain in gains] == ["b", "c"]


def test_best_is_an_ensemble_of_the_table_if_its_members_are_among_the_networks():
    members = [member.name for member in read_model(diversity.resolve_model("best"))[1].members]
    assert diversity.ensembles_of(["a", *members]) == {
        "best": members,
        "all networks": ["a", *members],
    }
    assert diversity.ensembles_of(members) == {"best": members}
    assert diversity.ensembles_of(["a", "b"]) == {"all networks": ["a", "b"]}


@pytest.fixture
def models(tmp_path):
    """Two small models of different names."""
    paths = []
    for seed, name in enumerate(("one", "two")):
        path = write_tiny_model(tmp_path / f"{name}.onnx", seed=seed)
        content, info = read_model(path)
        write_model(content, info.model_copy(update={"name": name}), path)
        paths.append(str(path))
    return paths


def test_the_tables_are_written_and_predictions_are_kept(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["diversity.py", *models, "--data", "cartoon:300:1", "--out", str(out)])
    diversity.main()
    assert capsys.readouterr().out == (out / "diversity.md").read_text()
    with (out / "pairs.csv").open(newline="") as stream:
        pairs = list(csv.DictReader(stream))
    assert [(row["labels"], row["first"], row["second"]) for row in pairs] == [
        ("fer2013", "one", "two"),
        ("ferplus majority", "one", "two"),
    ]
    with (out / "gains.csv").open(newline="") as stream:
        gains = list(csv.DictReader(stream))
    assert [row["model"] for row in gains] == ["one", "two", "one", "two"]
    assert {row["ensemble"] for row in gains} == {"all networks"}
    faces = load_data("cartoon:300:1", cache=False).of_split("PublicTest")
    right = FaceClassifier(models[0]).predict(faces.images)["fer2013"].argmax(axis=1) == faces.labels
    assert float(gains[0]["accuracy_alone"]) == pytest.approx(100 * right.mean(), abs=0.005)

    def refuse(*args, **options):
        raise AssertionError("predictions are kept")

    before = (out / "gains.csv").read_text()
    monkeypatch.setattr(diversity, "FaceClassifier", refuse)
    diversity.main()
    assert (out / "gains.csv").read_text() == before


def test_networks_of_one_name_are_refused(models, monkeypatch, tmp_path):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path))
    faces = load_data("cartoon:70:1", cache=False).of_split("PublicTest")
    with pytest.raises(FerkitError, match="networks need distinct names"):
        diversity.predict([models[0], models[0]], faces, "digest")
