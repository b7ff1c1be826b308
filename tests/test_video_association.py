"""ByteTrack: boxes keep their track through motion, low scores, gaps and crossings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from ferkit.video.association import ByteTrack, best_assignment, intersection_over_union


def box(x: float, y: float = 0.0, side: float = 40.0) -> list[float]:
    return [x, y, x + side, y + side]


def run(
    track: ByteTrack, *boxes: list[float], scores: list[float] | None = None, step: float = 1 / 30
) -> list[int | None]:
    given_scores = np.array([0.9] * len(boxes) if scores is None else scores, np.float64)
    return track.update(np.array(boxes, np.float64).reshape(-1, 4), given_scores, step)


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_the_assignment_costs_as_little_as_that_of_scipy(rows: int, columns: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 6, (rows, columns)).astype(np.float64)
    found = best_assignment(matrix)
    pairs = [(row, column) for row, column in enumerate(found) if column >= 0]
    assert len(found) == rows
    assert len({column for _, column in pairs}) == len(pairs) == min(rows, columns)
    assert sum(matrix[pair] for pair in pairs) == pytest.approx(matrix[linear_sum_assignment(matrix)].sum())


def test_the_overlap_is_intersection_over_union() -> None:
    a = np.array([box(0), box(100), [5.0, 5.0, 5.0, 9.0]])
    b = np.array([box(0), box(20), box(40)])
    assert intersection_over_union(a, b) == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0], [0, 0, 0]]))


def test_boxes_that_move_keep_their_numbers_in_any_order() -> None:
    track = ByteTrack(max_gap=1, rate=30)
    assert run(track, box(0), box(200, 30)) == [1, 2]
    for k in range(1, 40):  # they pass each other and overlap
        assert run(track, box(200 - 4 * k, 30), box(4 * k)) == [2, 1]
    assert track.tracks == (1, 2)


def test_a_box_of_low_score_continues_a_track_and_opens_none() -> None:
    track = ByteTrack(max_gap=1, rate=30)
    assert run(track, box(0), box(200), scores=[0.9, 0.3]) == [1, None]
    assert run(track, box(1), box(200), scores=[0.3, 0.3]) == [1, None]
    # A high score goes first: the low one beside it gets nothing.
    assert run(track, box(3), box(2), scores=[0.3, 0.9]) == [None, 1]


def test_a_fast_box_is_found_where_its_motion_leads_after_a_gap() -> None:
    """After ten frames without it, it is 200 pixels on: far from where it was seen last."""
    track = ByteTrack(max_gap=1, rate=30)
    for k in range(20):
        assert run(track, box(20 * k)) == [1]
    for _ in range(9):
        assert run(track) == []
    assert run(track, box(20 * 29)) == [1]


@pytest.mark.parametrize("rate", [5.0, 30.0])
def test_a_track_ends_after_its_gap_in_seconds_whatever_the_rate(rate: float) -> None:
    for missed, number in ((0.9, 1), (1.3, 2)):
        track = ByteTrack(max_gap=1.01, rate=rate)
        assert run(track, box(0), step=1 / rate) == [1]
        for _ in range(round(missed * rate) - 1):
            run(track, step=1 / rate)
        assert run(track, box(0), step=1 / rate) == [number]


def test_a_reset_ends_all_tracks_and_numbers_go_on() -> None:
    track = ByteTrack(max_gap=1, rate=30)
    assert run(track, box(0)) == [1]
    track.reset()
    assert track.tracks == ()
    assert run(track, box(0)) == [2]
