"""Face tracking: motion between detections, and track numbers that last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from ferkit.core.errors import VideoError
from ferkit.detect import Detection
from ferkit.video.cuts import CutDetector
from ferkit.video.tracking import FaceTracker, move

WIDTH, HEIGHT = 320, 240
Box = tuple[float, float, float, float]


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with texture everywhere that does not repeat."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


SCENE = texture(HEIGHT, WIDTH)
FACE = texture(60, 48, seed=1)


def scene(*places: tuple[float, float], scale: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """A scene uint8 ``[H, W]`` with a face of 48 x 60 pixels at each place, its upper left corner."""
    import cv2

    picture = SCENE.copy() if seed == 0 else texture(HEIGHT, WIDTH, seed)
    for k, (x, y) in enumerate(places):
        face = FACE if k == 0 else texture(60, 48, seed=10 + k)
        to = np.array([[scale, 0, x], [0, scale, y]])
        moved = cv2.warpAffine(face, to, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(np.full_like(face, 255), to, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST)
        picture[mask > 0] = moved[mask > 0]
    return picture


def box_at(x: float, y: float, scale: float = 1.0) -> Box:
    return x, y, x + 48 * scale, y + 60 * scale


def rgb_of(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(gray[:, :, None], 3, axis=2)


class ScriptedDetector:
    """A detector that returns the boxes of the test, and counts its calls."""

    name = "scripted"

    def __init__(self, boxes: Callable[[], Sequence[Box]], score: float = 0.9) -> None:
        self._boxes = boxes
        self._score = score
        self.calls = 0

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        self.calls += 1
        height, width = image.shape[:2]
        x, y = width / WIDTH, height / HEIGHT
        return tuple(
            Detection(
                (b[0] * x, b[1] * y, b[2] * x, b[3] * y), self._score, ((b[0] * x + 10, b[1] * y + 10),) * 5
            )
            for b in self._boxes()
        )


def follow(
    frames: Sequence[Sequence[tuple[float, float]]],
    *,
    every: int = 1,
    max_gap: float = 1.0,
    rate: float = 30.0,
    score: float = 0.9,
    scenes: Sequence[int] | None = None,
) -> tuple[list[dict[int | None, Box]], int]:
    """Track faces at given places; return the boxes by track of each frame, and the number of detections."""
    at = 0
    detector = ScriptedDetector(lambda: [box_at(*place) for place in frames[at]], score)
    tracker = FaceTracker(detector, every=every / rate, max_gap=max_gap, rate=rate)
    found = []
    for at, places in enumerate(frames):
        gray = scene(*places, seed=0 if scenes is None else scenes[at])
        faces = tracker.update(rgb_of(gray), gray, at / rate)
        found.append({face.track: face.detection.box for face in faces})
    return found, detector.calls


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, -4), (7.5, 5.25), (-12, 9)])
def test_a_shifted_face_is_moved_by_the_same_amount(dx: float, dy: float) -> None:
    marks = tuple((110.0 + 5 * k, 100.0) for k in range(5))
    (moved,) = move(scene((100, 80)), scene((100 + dx, 80 + dy)), [Detection(box_at(100, 80), 0.7, marks)])
    assert moved is not None
    assert moved.box == pytest.approx(box_at(100 + dx, 80 + dy), abs=0.5)
    assert moved.score == 0.7
    assert moved.landmarks is not None
    assert np.array(moved.landmarks) == pytest.approx(np.array(marks) + np.array((dx, dy)), abs=0.5)


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
def test_an_approaching_face_grows(scale: float) -> None:
    (moved,) = move(scene((100, 80)), scene((100, 80), scale=scale), [Detection(box_at(100, 80), 0.9)])
    assert moved is not None
    assert moved.box == pytest.approx(box_at(100, 80, scale), abs=1.0)


def test_faces_move_independently() -> None:
    before, now = scene((40, 60), (200, 100)), scene((46, 60), (196, 103))
    first, second = move(before, now, [Detection(box_at(40, 60), 0.9), Detection(box_at(200, 100), 0.9)])
    assert first is not None
    assert second is not None
    assert first.box == pytest.approx(box_at(46, 60), abs=0.5)
    assert second.box == pytest.approx(box_at(196, 103), abs=0.5)


@pytest.mark.parametrize(
    "now", [texture(HEIGHT, WIDTH, 5), np.zeros((HEIGHT, WIDTH), np.uint8)], ids=["elsewhere", "dark"]
)
def test_a_face_that_disappeared_is_not_moved(now: NDArray[np.uint8]) -> None:
    assert move(scene((100, 80)), now, [Detection(box_at(100, 80), 0.9)]) == [None]


def test_a_face_at_the_border_is_moved_by_its_visible_part() -> None:
    (moved,) = move(scene((-15, 80)), scene((-12, 80)), [Detection(box_at(-15, 80), 0.9)])
    assert moved is not None
    assert moved.box == pytest.approx(box_at(-12, 80), abs=1.0)


def test_without_faces_nothing_is_moved() -> None:
    assert move(SCENE, SCENE, []) == []


def test_a_track_has_its_number_from_the_first_frame_on() -> None:
    found, _ = follow([[(100 + k, 80)] for k in range(10)])
    assert [list(frame) for frame in found] == [[1]] * 10


@pytest.mark.parametrize(("every", "calls"), [(1, 20), (2, 10), (5, 4), (20, 1), (100, 1)])
def test_faces_are_detected_in_each_n_th_frame_and_moved_in_between(every: int, calls: int) -> None:
    path = [(60 + 4 * k, 80 + 2 * k) for k in range(20)]
    found, called = follow([[place] for place in path], every=every)
    assert called == calls
    for frame, place in zip(found, path, strict=True):
        assert frame[1] == pytest.approx(box_at(*place), abs=2.5)


def test_detected_and_moved_faces_are_marked() -> None:
    tracker = FaceTracker(ScriptedDetector(lambda: [box_at(100, 80)]), every=3 / 30)
    gray = scene((100, 80))
    assert [tracker.update(rgb_of(gray), gray, k / 30)[0].detected for k in range(7)] == [
        True, False, False, True, False, False, True,
    ]  # fmt: skip


def test_faces_are_detected_again_when_optical_flow_loses_one() -> None:
    """The face jumps."""
    found, calls = follow([[(40, 80)], [(41, 80)], [(220, 120)], [(221, 120)]], every=10)
    assert calls == 2
    assert next(iter(found[2].values())) == pytest.approx(box_at(220, 120), abs=1e-3)


def test_faces_that_pass_each_other_at_a_distance_keep_their_tracks() -> None:
    frames = [[(20 + 8 * k, 20), (250 - 8 * k, 150)] for k in range(25)]
    found, _ = follow(frames, every=4)
    for frame, (first, second) in zip(found, frames, strict=True):
        assert frame[1] == pytest.approx(box_at(*first), abs=3)
        assert frame[2] == pytest.approx(box_at(*second), abs=3)


@pytest.mark.parametrize(("missing", "same"), [(1, True), (10, True), (25, True), (40, False)])
@pytest.mark.parametrize("every", [1, 5])
def test_a_track_survives_a_short_gap_and_not_a_long_one(missing: int, same: bool, every: int) -> None:
    frames = [[(100, 80)]] * 15 + [[]] * missing + [[(102, 81)]] * 15
    found, _ = follow(frames, every=every)
    assert [list(frame) for frame in found[:15]] == [[1]] * 15
    assert list(found[-1]) == [1 if same else 2]


def test_max_gap_sets_the_length_of_a_gap() -> None:
    frames = [[(100, 80)]] * 5 + [[]] * 40 + [[(100, 80)]] * 5
    assert list(follow(frames, max_gap=3.0)[0][-1]) == [1]
    assert list(follow(frames, max_gap=0.5)[0][-1]) == [2]


def test_a_face_is_tracked_at_one_frame_in_two_seconds() -> None:
    """Frames further apart than the gap do not begin a new track each."""
    found, _ = follow([[(100 + k, 80)] for k in range(6)], rate=0.5)
    assert [list(frame) for frame in found] == [[1]] * 6


class Still:
    """A detector that always finds the same face."""

    name = "still"

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        return (Detection((10, 10, 40, 50), 0.9),)


@pytest.mark.parametrize(
    ("max_gap", "rate"),
    [(0, 30.0), (0.01, 25.0), (0.04, 25.0), (0.7, 1.0), (0.75, 1.0), (1.0, 1.0), (1.0, 0.2)],
)
def test_a_face_in_each_frame_keeps_its_track_whatever_the_gap(max_gap: float, rate: float) -> None:
    """A known fault: rounding decided about frames exactly one gap apart (frame 64 by default)."""
    tracker = FaceTracker(Still(), max_gap=max_gap, rate=rate)
    gray = np.zeros((60, 60), np.uint8)
    rgb = rgb_of(gray)
    assert {tracker.update(rgb, gray, k / rate)[0].track for k in range(70)} == {1}


@pytest.mark.parametrize(("max_gap", "missing", "same"), [(0, 1, False), (0.04, 1, False), (0.07, 1, True)])
def test_a_gap_below_two_frames_is_respected(max_gap: float, missing: int, same: bool) -> None:
    frames = [[(100, 80)]] * 5 + [[]] * missing + [[(100, 80)]] * 5
    assert list(follow(frames, max_gap=max_gap)[0][-1]) == [1 if same else 2]


def test_a_cut_ends_tracks() -> None:
    found, calls = follow([[(100, 80)]] * 10, every=100, scenes=[0] * 5 + [3] * 5)
    assert [list(frame) for frame in found] == [[1]] * 5 + [[2]] * 5
    assert calls == 2


def shot(seed: int, gray: tuple[int, int]) -> NDArray[np.uint8]:
    """A scenery of blurred blocks between two gray levels, uint8 ``[90, 160, 3]``."""
    import cv2

    rng = np.random.default_rng(seed)
    blocks = rng.integers(*gray, (6, 10, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blocks, (160, 90), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize(
    ("before", "now", "cut"),
    [
        (shot(1, (0, 256)), shot(2, (0, 256)), True),  # another layout
        (shot(1, (20, 90)), shot(1, (150, 256)) // 2 * 2, False),  # the same layout, much brighter: a flash
        (shot(3, (10, 60)), shot(4, (180, 250)), True),  # 91 gray levels and more apart
        (shot(5, (0, 256)), np.roll(shot(5, (0, 256)), 4, axis=1), False),  # a pan
        (shot(6, (0, 256)), (shot(6, (0, 256)) * 0.6).astype(np.uint8), False),  # a fade
    ],
)
def test_motion_flashes_and_fades_are_no_cuts(
    before: NDArray[np.uint8], now: NDArray[np.uint8], cut: bool
) -> None:
    detector = CutDetector()
    assert not detector.is_cut(before, before[..., 1])
    assert detector.is_cut(now, now[..., 1]) is cut


def test_a_flash_or_a_dark_moment_is_not_a_cut() -> None:
    tracker = FaceTracker(ScriptedDetector(lambda: [box_at(100, 80)]), every=0)
    gray = scene((100, 80))
    bright = np.clip(gray.astype(int) + 80, 0, 255).astype(np.uint8)
    frames = [gray, bright, gray, np.zeros_like(gray), np.zeros_like(gray), gray]
    assert [tracker.update(rgb_of(f), f, k / 30)[0].track for k, f in enumerate(frames)] == [1] * 6


def test_a_face_with_a_low_score_has_no_track() -> None:
    found, _ = follow([[(100, 80)]] * 5, score=0.45)
    assert [list(frame) for frame in found] == [[None]] * 5


def test_tracks_survive_a_change_of_size() -> None:
    import cv2

    tracker = FaceTracker(ScriptedDetector(lambda: [box_at(100, 80)]), every=3 / 30)
    for k in range(9):
        gray = scene((100, 80))
        if k >= 4:
            gray = np.asarray(cv2.resize(gray, (WIDTH * 2, HEIGHT * 2)), np.uint8)
        (face,) = tracker.update(rgb_of(gray), gray, k / 30)
        assert face.track == 1
        factor = 2 if k >= 4 else 1
        assert face.detection.box == pytest.approx([v * factor for v in box_at(100, 80)], abs=2)


def test_times_that_do_not_increase_are_tolerated() -> None:
    tracker = FaceTracker(ScriptedDetector(lambda: [box_at(100, 80)]))
    gray = scene((100, 80))
    assert [tracker.update(rgb_of(gray), gray, t)[0].track for t in (5.0, 5.0, 4.0, 4.5, 100.0)] == [1] * 5


def test_tracks_that_ended_are_forgotten() -> None:
    """Memory does not grow with the number of tracks."""
    frames: list[list[tuple[float, float]]] = []
    for k in range(12):
        frames += [[(20 + 20 * k, 80)]] * 2 + [[]] * 4
    at = 0
    tracker = FaceTracker(ScriptedDetector(lambda: [box_at(*place) for place in frames[at]]), max_gap=0.1)
    alive = []
    for at, places in enumerate(frames):
        gray = scene(*places)
        tracker.update(rgb_of(gray), gray, at / 30)
        alive.append(len(tracker.tracks))
    assert max(alive) <= 2


@pytest.mark.parametrize(
    "options", [{"every": -1}, {"every": float("nan")}, {"max_gap": -1}, {"max_gap": float("nan")}]
)
def test_invalid_arguments_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(VideoError):
        FaceTracker(ScriptedDetector(lambda: []), **options)  # type: ignore[arg-type]
