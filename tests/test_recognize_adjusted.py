"""Priors, wanted errors and poor faces: what they do to the results of a recognizer and of the command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelzoo
from ferkit import Recognizer
from ferkit.cli import run
from ferkit.core.errors import FerkitError, ModelFileError, TaxonomyError
from ferkit.core.images import load_image, write_image
from ferkit.core.modelfile import Coverage, QualityCurve, write_model
from ferkit.core.priors import shift_prior
from ferkit.core.taxonomy import FER2013
from ferkit.recognize.results import UNCERTAIN
from samples import sample

ASTRONAUT, CAMERAMAN = sample("astronaut.jpg"), sample("camera.png")
PRIOR = (0.3, 0.05, 0.1, 0.2, 0.15, 0.1, 0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a prior, a coverage curve and a quality curve for its first output only."""
    info = modelzoo.model_info()
    curve = QualityCurve(measure="brightness", values=(20, 60), temperatures=(4, 1))
    coverage = Coverage(
        split="PublicTest", labels="fer2013", n=100, thresholds=(0, 0.99), coverage=(1, 0.1), error=(0.5, 0.1)
    )
    first = info.taxonomies[0].model_copy(update={"prior": PRIOR, "coverage": coverage, "quality": (curve,)})
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    write_model(
        modelzoo.graph_bytes(), info.model_copy(update={"taxonomies": (first, info.taxonomies[1])}), path
    )
    return path


def values(recognizer: Recognizer, photo: Any = ASTRONAUT) -> np.ndarray:
    (face,) = recognizer.predict(photo).faces
    return np.array(list(face.probabilities.values()))


def test_another_prior_changes_the_probabilities_by_bayes_rule(model: Path) -> None:
    own = values(Recognizer(model))
    uniform = values(Recognizer(model, prior="uniform"))
    np.testing.assert_allclose(uniform, shift_prior(own, PRIOR, np.ones(7)), atol=1e-6)
    np.testing.assert_allclose(values(Recognizer(model, prior="training")), own, atol=1e-6)


def test_a_prior_from_a_file_survives_pickling_without_the_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "wedding.toml"
    path.write_text("\n".join(f"{label} = {2 if label == 'happy' else 0.1}" for label in FER2013.labels))
    recognizer = Recognizer(model, prior=path)
    path.unlink()
    again = pickle.loads(pickle.dumps(recognizer))
    assert np.array_equal(values(again), values(recognizer))
    assert values(recognizer)[3] > values(Recognizer(model))[3]


def test_an_estimated_prior_is_a_prior(model: Path) -> None:
    recognizer = Recognizer(model)
    estimated = recognizer.estimate_prior([ASTRONAUT, CAMERAMAN, b"no photo"])
    assert tuple(estimated) == FER2013.labels
    assert sum(estimated.values()) == pytest.approx(1)
    # Two faces against a known prior that counts as fifty.
    assert np.abs(np.array(list(estimated.values())) - PRIOR).max() < 0.05
    Recognizer(model, prior=estimated).predict(ASTRONAUT)
    known = recognizer.estimate_prior([])
    np.testing.assert_allclose(list(known.values()), PRIOR, atol=1e-6)


def test_below_the_confidence_of_a_wanted_error_faces_are_uncertain(model: Path) -> None:
    (sure,) = Recognizer(model, max_error=0.5).predict(ASTRONAUT).faces
    (unsure,) = Recognizer(model, max_error=0.1).predict(ASTRONAUT).faces
    assert sure.label != UNCERTAIN
    assert sure.confidence < 0.99
    assert unsure.label == UNCERTAIN
    assert unsure.probabilities == sure.probabilities
    (both,) = Recognizer(model, max_error=0.5, min_confidence=1).predict(ASTRONAUT).faces
    assert both.label == UNCERTAIN


def test_a_dark_face_keeps_its_label_and_loses_confidence(model: Path) -> None:
    dark = (load_image(ASTRONAUT) * 0.15).astype(np.uint8)
    (face,) = Recognizer(model).predict(dark).faces
    assert face.quality is not None
    assert face.quality.brightness < 60
    crops = Recognizer(model).crops(dark)
    (plain,) = Recognizer(model).predict_crops(crops)  # nothing is known of the quality of a crop
    assert face.label == plain.label
    assert face.confidence < plain.confidence


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_error": 0.01}, ModelFileError, "smallest error"),
        ({"max_error": 1.5}, FerkitError, "max_error is a number between 0 and 1"),
        ({"max_error": True}, FerkitError, "max_error is a number"),
        ({"max_error": 0.1, "taxonomy": "ferplus"}, ModelFileError, "no coverage curve for 'ferplus'"),
        ({"prior": "uniform", "taxonomy": "ferplus"}, TaxonomyError, "does not record the prior"),
        ({"prior": {"happy": 1}}, TaxonomyError, "needs a frequency for each label"),
        ({"prior": "weddings"}, FerkitError, "cannot read the prior weddings"),
    ],
)
def test_settings_that_the_model_cannot_follow_are_an_error_at_once(
    model: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Recognizer(model, **settings)


def test_the_command_takes_both_options(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", str(ASTRONAUT), "--json", "--model", str(model)]
    assert run([*command, "--max-error", "0.1", "--prior", "uniform"]) == 0
    ((face,),) = (photo["faces"] for photo in json.loads(capsys.readouterr().out))
    assert face["label"] == UNCERTAIN
    np.testing.assert_allclose(
        list(face["probabilities"].values()), values(Recognizer(model, prior="uniform")), atol=1e-6
    )


def test_the_command_estimates_the_prior_of_all_photos_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(3):
        write_image(tmp_path / f"{k}.png", load_image(ASTRONAUT))
    assert run(["predict", str(tmp_path), "--json", "--model", str(model), "--prior", "estimate"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("estimated prior: ")
    estimated = Recognizer(model).estimate_prior(sorted(tmp_path.glob("*.png")))
    expected = values(Recognizer(model, prior=estimated))
    for photo in json.loads(captured.out):
        np.testing.assert_allclose(list(photo["faces"][0]["probabilities"].values()), expected, atol=1e-6)


def test_the_standard_input_cannot_be_read_twice(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "-", "--model", str(model), "--prior", "estimate"]) == 2
    assert "read twice" in capsys.readouterr().err
