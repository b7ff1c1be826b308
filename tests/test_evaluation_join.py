"""The output ``basic``: fitted to labels and votes, the same in NumPy and in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import modelzoo
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import DataError
from ferkit.core.modelfile import CAM_PREFIX, read_model, write_model
from ferkit.core.taxonomy import BASIC, FER2013, FERPLUS, FERPLUS_TO_FER2013
from ferkit.data import FaceDataset, load_data
from ferkit.evaluation.calibration import softmax
from ferkit.evaluation.evaluate import evaluate_split, targets_for
from ferkit.evaluation.join import (
    LEAST_FACES,
    columns_of,
    fit_join,
    joined,
    joined_out_of_fold,
    label_distributions,
    label_frequencies,
)
from ferkit.evaluation.metrics import negative_log_likelihood
from ferkit.export.join import default_of, with_basic, with_coverage, with_priors

HEADS = {"fer2013": FER2013, "ferplus": FERPLUS}


@pytest.fixture(scope="module")
def faces() -> FaceDataset:
    return load_data("cartoon:300:3", cache=False)


def predictions(faces: FaceDataset, seed: int = 0, noise: float = 1.0) -> dict[str, np.ndarray]:
    """Probabilities of two heads that know the labels, each with noise of its own."""
    rng = np.random.default_rng(seed)
    plus = {fer: name for name, fer in FERPLUS_TO_FER2013.items()}
    columns = np.array([FERPLUS.index(str(plus[label])) for label in FER2013.labels])
    n = len(faces)
    return {
        "fer2013": softmax(2 * np.eye(7)[faces.labels] + rng.normal(size=(n, 7)) * noise),
        "ferplus": softmax(2 * np.eye(8)[columns[faces.labels]] + rng.normal(size=(n, 8)) * noise),
    }


@pytest.mark.parametrize(("head", "contempt"), [(FER2013, set()), (FERPLUS, {"contempt"})])
def test_every_label_but_contempt_has_its_column(head, contempt):
    found = [head.labels[k] for k in columns_of(head)]
    assert [FERPLUS_TO_FER2013.get(name, name) for name in found] == list(BASIC.labels)
    assert set(head.labels) - set(found) == contempt


def test_a_distribution_has_its_share_of_votes_and_of_the_label(faces):
    shares = label_distributions(faces, votes=0.25)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    given = [BASIC.index(FER2013.labels[k]) for k in faces.labels]
    assert (shares[np.arange(len(faces)), given] >= 0.75).all()
    assert np.array_equal(label_distributions(faces, votes=0).argmax(axis=1), given)


def test_a_face_without_a_vote_for_the_labels_keeps_its_label_alone(faces):
    votes = np.zeros_like(faces.votes)
    votes[:, FERPLUS.index("contempt")] = 10
    alone = FaceDataset(faces.images, faces.labels, faces.split, FER2013, votes)
    assert np.array_equal(label_distributions(alone).max(axis=1), np.ones(len(faces)))


def test_faces_without_votes_are_refused(faces):
    with pytest.raises(DataError, match="no votes"):
        label_distributions(FaceDataset(faces.images, faces.labels, faces.split, FER2013))


def test_the_fit_has_a_lower_loss_than_either_head_and_than_other_joins(faces):
    given, shares = predictions(faces), label_distributions(faces)
    head = fit_join(given, shares, prior_exponent=1)

    def loss(p):
        return -(shares * np.log(p)).sum(axis=1).mean()

    best = loss(joined(head, given))
    for name, taxonomy in HEADS.items():
        reduced = given[name][:, columns_of(taxonomy)]
        assert best < loss(reduced / reduced.sum(axis=1, keepdims=True))
    rng = np.random.default_rng(0)
    for _ in range(30):
        share = float(rng.uniform(0, 1))
        join = head.join.model_copy(
            update={
                "weights": {"fer2013": share, "ferplus": 1 - share},
                "offsets": tuple(np.array(head.join.offsets) + rng.normal(0, 0.2, 7)),
            }
        )
        other = head.model_copy(update={"join": join, "temperature": float(rng.uniform(0.5, 2))})
        assert best < loss(joined(other, given))


def test_weights_sum_to_one_offsets_to_zero_and_a_useless_head_gets_little(faces):
    given = predictions(faces)
    given["fer2013"] = softmax(np.random.default_rng(9).normal(size=(len(faces), 7)))
    head = fit_join(given, label_distributions(faces))
    assert sum(head.join.weights.values()) == pytest.approx(1, abs=1e-5)
    assert sum(head.join.offsets) == pytest.approx(0, abs=1e-5)
    assert sum(head.prior) == pytest.approx(1, abs=1e-5)
    assert head.join.weights["fer2013"] < 0.1


def test_an_exponent_of_zero_makes_labels_equally_likely(faces):
    kept = np.concatenate([np.flatnonzero(faces.labels == 3), np.flatnonzero(faces.labels != 3)[:60]])
    few = faces.select(kept)
    given, shares = predictions(few, noise=3), label_distributions(few)
    natural, equal = (fit_join(given, shares, prior_exponent=g) for g in (1, 0))
    assert max(equal.prior) == pytest.approx(1 / 7, abs=1e-5)
    assert np.argmax(natural.prior) == BASIC.index("happy")
    answers = [
        (joined(head, given).argmax(axis=1) == BASIC.index("happy")).mean() for head in (natural, equal)
    ]
    assert answers[0] > answers[1]


def test_few_faces_and_absent_labels_stay_finite(faces):
    some = faces.select(np.flatnonzero(faces.labels == 3)[:5])
    head = fit_join(predictions(some), label_distributions(some))
    assert np.isfinite(head.join.offsets).all()
    assert 0.05 <= head.temperature < 20


def test_out_of_fold_predictions_are_near_those_of_the_whole_fit_and_not_the_same(faces):
    given, shares = predictions(faces), label_distributions(faces)
    whole, folds = joined(fit_join(given, shares), given), joined_out_of_fold(given, shares)
    assert not np.array_equal(whole, folds)
    labels = shares.argmax(axis=1)
    assert negative_log_likelihood(folds, labels) == pytest.approx(
        negative_log_likelihood(whole, labels), abs=0.05
    )


def test_frequencies_are_those_of_labels_and_of_votes(faces):
    own = label_frequencies(faces, FER2013)
    np.testing.assert_allclose(own, np.bincount(faces.labels, minlength=7) / len(faces))
    assert sum(label_frequencies(faces, FERPLUS)) == pytest.approx(1)
    assert label_frequencies(FaceDataset(faces.images, faces.labels, faces.split, FER2013), FERPLUS) == ()


@pytest.fixture(scope="module")
def files(faces, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with ``basic``."""
    folder = tmp_path_factory.mktemp("join")
    plain = modelzoo.write_tiny_model(folder / "plain.onnx", temperature=1.7)
    content, info = read_model(plain)
    found = FaceClassifier(plain).predict(np.asarray(faces.images))
    content, info = with_basic(content, info, found, faces, "PublicTest")
    info = with_priors(with_coverage(info, found, faces, "PublicTest"), faces)
    write_model(
        content, info.model_copy(update={"default_taxonomy": default_of(info)}), folder / "basic.onnx"
    )
    return plain, folder / "basic.onnx"


def test_the_graph_computes_what_the_fit_says_and_keeps_the_heads_to_the_last_bit(faces, files):
    before, after = (FaceClassifier(path) for path in files)
    images = np.asarray(faces.images[:40])
    old, new = before.predict(images), after.predict(images)
    assert all(np.array_equal(old[head], new[head]) for head in HEADS)
    np.testing.assert_allclose(new["basic"], joined(after.info.head("basic"), new), atol=1e-5)
    assert after.info.default_taxonomy == "basic"
    assert after.info.training.fitted["basic"] == "join"


def test_the_map_of_the_join_is_that_of_its_logits(faces, files):
    classifier = FaceClassifier(files[1])
    images = np.asarray(faces.images[:10])
    info = classifier.info
    # The temperature that the tiny model records is not applied in its graph.
    parts = [
        info.head("basic").join.weights[name] / 1.7 * classifier.cams(images, name)[:, columns_of(taxonomy)]
        for name, taxonomy in HEADS.items()
    ]
    np.testing.assert_allclose(classifier.cams(images, "basic"), sum(parts), atol=1e-4)


def test_heads_without_maps_give_a_join_without_maps(faces, tmp_path):
    plain = modelzoo.write_tiny_model(tmp_path / "m.onnx", cam=False)
    content, info = read_model(plain)
    found = FaceClassifier(plain).predict(np.asarray(faces.images))
    graph, info = with_basic(content, info, found, faces, "PublicTest")
    assert not info.head("basic").cam
    assert CAM_PREFIX + "basic" not in {o.name for o in onnx.load_from_string(graph).graph.output}


def test_nothing_is_joined_without_both_heads_or_without_votes(faces, tmp_path):
    path = modelzoo.write_tiny_model(tmp_path / "m.onnx", (FER2013,))
    content, info = read_model(path)
    assert with_basic(content, info, {}, faces, "PublicTest") == (content, info)
    content, info = read_model(modelzoo.write_tiny_model(tmp_path / "n.onnx"))
    plain = FaceDataset(faces.images, faces.labels, faces.split, FER2013)
    assert with_basic(content, info, {}, plain, "PublicTest") == (content, info)
    few = faces.select(np.arange(LEAST_FACES - 1))
    assert with_basic(content, info, {}, few, "PublicTest") == (content, info)


def test_the_graph_is_extended_and_not_rewritten(files):
    before, after = (onnx.load(path).graph for path in files)
    assert list(after.node)[: len(before.node)] == list(before.node)
    assert list(after.initializer)[: len(before.initializer)] == list(before.initializer)


def test_priors_are_recorded_and_follow_the_balance_of_the_recipe(faces, files):
    info = read_model(files[1])[1]
    np.testing.assert_allclose(info.head("fer2013").prior, label_frequencies(faces, FER2013), atol=1e-6)
    balanced = with_priors(info.model_copy(update={"recipe": {"data": {"balance": "copies"}}}), faces)
    assert set(balanced.head("fer2013").prior) == {round(1 / 7, 6)}
    assert balanced.head("ferplus").prior == ()
    assert balanced.head("basic").prior == info.head("basic").prior
    adjusted = with_priors(info.model_copy(update={"recipe": {"loss": {"logit_adjustment": 1.0}}}), faces)
    assert len({share for share in adjusted.head("fer2013").prior if share}) == 1


def test_basic_is_measured_on_labels_and_on_the_majority(faces):
    names = [t.name for t in targets_for(faces, {**HEADS, "basic": BASIC})]
    assert names == ["fer2013", "ferplus majority", "ferplus argmax", "basic", "basic majority"]
    given = predictions(faces)
    given["basic"] = joined(fit_join(given, label_distributions(faces)), given)
    measured = evaluate_split(
        lambda images, tta: {k: p[: len(images)] for k, p in given.items()},
        faces,
        heads={**HEADS, "basic": BASIC},
        split="all",
    )
    by_name = {s.labels: s for s in measured.tta_modes[0].scores}
    assert by_name["basic"].n == len(faces)
    assert by_name["basic"].accuracy > by_name["fer2013"].accuracy
    majority = by_name["basic majority"]
    assert {c.label for c in majority.classes} == set(BASIC.labels)
    assert majority.n <= by_name["ferplus majority"].n
