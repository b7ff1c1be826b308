"""Temporal smoothing: depends on time, is causal, and returns probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkit.core.errors import FerkitError
from ferkit.video.smoothing import Smoother, Smoothing

A, B = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.6, 0.3])
ALL = [Smoothing(kind, 0.5, space) for kind in ("ema", "mean") for space in ("probability", "log")]


def test_the_weights_of_the_ema_fall_by_e_in_its_time_constant() -> None:
    smoother = Smoother(Smoothing("ema", 0.5))
    assert smoother.update(1, 10.0, A) == pytest.approx(A)
    older = math.exp(-0.25 / 0.5)
    assert smoother.update(1, 10.25, B) == pytest.approx((older * A + B) / (older + 1))
    oldest = math.exp(-1.25 / 0.5)
    expected = (oldest * A + math.exp(-1.0 / 0.5) * B + A) / (oldest + math.exp(-1.0 / 0.5) + 1)
    assert smoother.update(1, 11.25, A) == pytest.approx(expected)


def test_the_mean_forgets_frames_older_than_its_window() -> None:
    smoother = Smoother(Smoothing("mean", 1.0))
    smoother.update(1, 0.0, A)
    assert smoother.update(1, 0.5, B) == pytest.approx((A + B) / 2)
    assert smoother.update(1, 1.0, B) == pytest.approx(B)
    assert smoother.update(1, 1.1, A) == pytest.approx((2 * B + A) / 3)


def test_the_mean_in_log_space_is_geometric() -> None:
    smoother = Smoother(Smoothing("mean", 1.0, "log"))
    smoother.update(1, 0.0, A)
    expected = np.sqrt(A * B)
    assert smoother.update(1, 0.5, B) == pytest.approx(expected / expected.sum())


def test_a_probability_of_zero_does_not_rule_out_a_label_for_good() -> None:
    smoother = Smoother(Smoothing("ema", 0.5, "log"))
    smoother.update(1, 0.0, [1.0, 0.0])
    for k in range(1, 100):
        shown = smoother.update(1, k / 10, [0.0, 1.0])
    assert np.isfinite(shown).all()
    assert shown[1] > 0.99


@pytest.mark.parametrize("smoothing", ALL)
def test_tracks_are_independent_and_can_be_forgotten(smoothing: Smoothing) -> None:
    smoother = Smoother(smoothing)
    smoother.update(1, 0.0, A)
    assert smoother.update(2, 0.1, B) == pytest.approx(B)
    smoother.keep([2])
    assert smoother.update(1, 0.2, B) == pytest.approx(B)
    assert smoother.update(2, 0.2, A) != pytest.approx(A)


def test_a_stride_gives_about_the_same() -> None:
    """Smoothing depends on time, not on the number of frames."""
    readings = [A if k < 60 else B for k in range(120)]
    ends = []
    for stride in (1, 2, 4):
        smoother = Smoother(Smoothing("ema", 0.5))
        for k in range(0, 120, stride):
            end = smoother.update(1, k / 60, readings[k])
        ends.append(end)
    assert ends[1] == pytest.approx(ends[0], abs=0.02)
    assert ends[2] == pytest.approx(ends[0], abs=0.04)


@given(
    smoothing=st.sampled_from(ALL),
    rows=st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20),
    steps=st.lists(st.floats(0, 10), min_size=20, max_size=20),
)
def test_the_result_is_a_distribution_between_the_inputs(
    smoothing: Smoothing, rows: list[list[float]], steps: list[float]
) -> None:
    smoother = Smoother(smoothing)
    readings = np.array(rows) + 1e-3
    readings /= readings.sum(axis=1, keepdims=True)
    time = 0.0
    for step, reading in zip(steps, readings, strict=False):
        time += step
        shown = smoother.update(7, time, reading)
    assert shown.sum() == pytest.approx(1)
    assert (shown >= 0).all()
    if smoothing.space == "probability":
        assert (shown >= readings.min(axis=0) - 1e-9).all()
        assert (shown <= readings.max(axis=0) + 1e-9).all()


@pytest.mark.parametrize("smoothing", ALL)
def test_a_constant_input_is_unchanged(smoothing: Smoothing) -> None:
    smoother = Smoother(smoothing)
    for k in range(50):
        assert smoother.update(1, k / 30, A) == pytest.approx(A)


@pytest.mark.parametrize(
    "arguments",
    [("median",), ("ema", 0), ("ema", -1), ("ema", math.inf), ("ema", math.nan), ("ema", 1, "cube")],
)
def test_invalid_smoothing_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(FerkitError, match="smoothing has"):
        Smoothing(*arguments)  # type: ignore[arg-type]
