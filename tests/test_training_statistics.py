"""Batch normalisation's statistics after the training: what they are, and that they can come later."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras

from ferkit.data import load_data
from ferkit.models import build_model
from ferkit.training.runs import load_run
from ferkit.training.statistics import reestimate_batch_norm
from ferkit.training.trainer import train
from tinyruns import numbers, tiny

RECIPE = {"epochs": 2, "augment": "modern"}


def network():
    return build_model(
        "se-resnet",
        {"fer2013": 7},
        input_size=48,
        stem=4,
        filters=[8, 8],
        blocks=[1, 1],
        drop_path=0.5,
        dropout=0.5,
    )


def norms(built):
    return [layer for layer in built.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_the_first_layers_statistics_are_those_of_the_faces():
    # 300 faces are a whole batch and a part of one, which counts for what it is.
    faces = np.random.default_rng(1).integers(0, 256, (300, 48, 48), np.uint8)
    faces[256:] //= 4
    built = network()
    reestimate_batch_norm(built, faces, 300, seed=0)
    norm = norms(built)[0]
    before = keras.Model(built.input, norm.input)
    maps = before.predict(faces[..., None].astype(np.float32), verbose=0)
    mirrored = before.predict(faces[:, :, ::-1, None].astype(np.float32), verbose=0)
    either = (maps.mean(axis=(0, 1, 2)) + mirrored.mean(axis=(0, 1, 2))) / 2
    np.testing.assert_allclose(norm.moving_mean, either, rtol=0.05, atol=0.01)
    # The variance is the mean of the batches' own, not that of all faces in one.
    rows = np.random.default_rng(0).permutation(300)
    parts = [maps[rows[:256]].var(axis=(0, 1, 2)), maps[rows[256:]].var(axis=(0, 1, 2))]
    expected = (256 * parts[0] + 44 * parts[1]) / 300
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=0.05)


def test_nothing_is_dropped_and_everything_is_put_back():
    faces = np.random.default_rng(2).integers(0, 256, (64, 48, 48), np.uint8)
    first, second = network(), network()
    second.set_weights(first.get_weights())
    for built in (first, second):
        reestimate_batch_norm(built, faces, 64, seed=3)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    drops = [layer.rate for layer in first.layers if isinstance(layer, keras.layers.Dropout)]
    assert max(drops) == 0.5
    assert {norm.momentum for norm in norms(first)} == {0.9}


@pytest.mark.slow
def test_a_finished_run_gets_what_it_would_have_got_from_the_start(tmp_path):
    faces = load_data("cartoon:240:3", cache=False)
    plain = train(tiny(**RECIPE), faces, tmp_path / "plain", tensorboard=False)
    shutil.copytree(tmp_path / "plain", tmp_path / "later")
    whole = tiny(**RECIPE, precise_batch_norm=100)
    start = train(whole, faces, tmp_path / "start", tensorboard=False)
    later = train(whole, faces, tmp_path / "later", resume=True, tensorboard=False)
    for expected, got in zip(numbers(start.history), numbers(later.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)
    assert numbers(start.history)[0] == pytest.approx(numbers(plain.history)[0], abs=1e-6)
    assert start.history[-1]["val_loss"] != plain.history[-1]["val_loss"]
    runs = [load_run(tmp_path / name) for name in ("plain", "start", "later")]
    for name, array in runs[1].arrays.items():
        np.testing.assert_allclose(runs[2].arrays[name], array, atol=1e-6, err_msg=name)
    changed = [k for k, a in runs[0].arrays.items() if not np.allclose(a, runs[1].arrays[k], atol=1e-6)]
    assert len(changed) == 2 * len(norms(runs[0].network()))  # a mean and a variance each, and nothing else
    assert runs[2].recipe.precise_batch_norm == 100
    again = train(whole, faces, tmp_path / "later", resume=True, tensorboard=False)
    assert again.history == later.history


@pytest.mark.slow
def test_a_precise_run_can_still_be_made_longer(tmp_path):
    faces = load_data("cartoon:240:3", cache=False)
    train(tiny(**RECIPE, precise_batch_norm=64), faces, tmp_path / "a", tensorboard=False)
    longer = {**RECIPE, "epochs": 3, "precise_batch_norm": 64}
    schedule = {"schedule": {"name": "constant"}}
    again = train(tiny(**longer), faces, tmp_path / "a", resume=True, tensorboard=False)
    assert len(again.history) == 3
    for name, epochs in (("b", 2), ("c", 3)):
        recipe = tiny(**{**longer, **schedule, "epochs": epochs})
        found = train(recipe, faces, tmp_path / name, tensorboard=False)
    extended = train(tiny(**{**longer, **schedule}), faces, tmp_path / "b", resume=True, tensorboard=False)
    # The statistics of the two epochs' end do not leak into the third.
    assert numbers(extended.history)[-1] == pytest.approx(numbers(found.history)[-1], abs=1e-6)
