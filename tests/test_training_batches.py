"""The input pipeline: every batch once an epoch, in order, without TensorFlow's autotuning."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras

from ferkit.training.batches import input_pipeline

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tests TensorFlow's pipeline")


class ThreeBatches(keras.utils.PyDataset):
    """Three batches whose numbers change with the epoch."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def __len__(self):
        return 3

    def __getitem__(self, at):
        return ({"face": np.full((2, 4, 4), at, np.uint8), "label": np.full((2, 7), self.epoch, np.float32)},)


def test_an_epoch_yields_every_batch_once_in_order_with_the_values_at_its_begin():
    batches = ThreeBatches()
    dataset = input_pipeline(batches)
    assert len(dataset) == 3
    for epoch in range(2):
        batches.epoch = epoch
        seen = list(dataset.as_numpy_iterator())
        assert [int(batch["face"][0, 0, 0]) for (batch,) in seen] == [0, 1, 2]
        assert all(batch["face"].dtype == np.uint8 for (batch,) in seen)
        assert {float(batch["label"].max()) for (batch,) in seen} == {float(epoch)}


def test_autotuning_is_off():
    assert input_pipeline(ThreeBatches()).options().autotune.enabled is False
