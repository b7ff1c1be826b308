"""Real clips, from the file to the result. Expected values come from viewing them frame by frame."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import modelzoo
from ferkit import Recognizer, weights
from ferkit.video.clip import Clip
from ferkit.video.process import VideoOutputs, process_video

pytestmark = pytest.mark.realdata

# Frames; time of the last one; last frame with the one face (None: no face).
CLIPS = {
    "WolfgangLanger_Pexels.mp4": (472, Fraction(471 * 1001, 24_000), 471),
    "face_noface.mov": (169, Fraction(97_695, 15_360), 71),  # hevc, variable rate; he covers the lens
    "no_face.mp4": (95, Fraction(47, 12), None),  # 98 packets, three of which the file says not to show
    "single_face.mp4": (72, Fraction(71, 30), 71),
}


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    if weights.DEFAULT in weights.embedded_models():
        return Recognizer()
    return Recognizer(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_of_a_real_clip_has_its_time(shared_dir: Path, name: str) -> None:
    count, last, _ = CLIPS[name]
    path = shared_dir / "media" / name
    clip = Clip(path)
    times = [frame.time for frame in clip.frames()]
    assert (len(times), times[-1]) == (count, last)
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        assert stream.time_base is not None
        assert times == [(frame.pts or 0) * stream.time_base for frame in source.decode(stream)]
    assert clip.notes == ()


@pytest.mark.parametrize("name", CLIPS)
def test_the_one_face_is_tracked_while_visible_and_no_other_is_found(
    recognizer: Recognizer, shared_dir: Path, name: str
) -> None:
    _, _, until = CLIPS[name]
    results = list(recognizer.video(shared_dir / "media" / name, fps=12))
    seen = [frame.index for frame in results if frame.faces]
    if until is None:
        assert seen == []
        return
    assert {face.track for frame in results for face in frame.faces} == {1}
    assert all(len(frame.faces) <= 1 for frame in results)
    wanted = [frame.index for frame in results if frame.index <= until]
    assert seen == [index for index in seen if index <= until + 2]
    assert len(seen) >= 0.97 * len(wanted)


def test_moved_boxes_are_close_to_those_of_detection_in_each_frame(
    recognizer: Recognizer, shared_dir: Path
) -> None:
    """The head turns, nods and approaches; detection runs every 0.2 s."""
    path = shared_dir / "media" / "WolfgangLanger_Pexels.mp4"
    options = {"start": 6, "end": 9, "smoothing": None}
    every = list(recognizer.video(path, detect_every=0, **options))  # type: ignore[arg-type]
    some = list(recognizer.video(path, **options))  # type: ignore[arg-type]
    assert len(every) == len(some) == 72
    overlaps, apart = [], []
    for a, b in zip(every, some, strict=True):
        (one,), (other,) = a.faces, b.faces
        left, top, right, bottom = one.face.box
        x0, y0, x1, y1 = other.face.box
        shared = max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0))
        overlaps.append(shared / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared))
        p, q = (np.array(list(f.raw.probabilities.values())) for f in (one, other))
        apart.append(np.abs(p - q).sum() / 2)
    assert min(overlaps) > 0.75
    assert np.mean(overlaps) > 0.9
    assert np.mean(apart) < 0.1


@pytest.mark.parametrize("name", ["face_noface.mov", "single_face.mp4"])
def test_the_annotated_clip_has_all_frames_and_the_audio(
    recognizer: Recognizer, shared_dir: Path, tmp_path: Path, name: str
) -> None:
    source, target = shared_dir / "media" / name, tmp_path / "out.mp4"
    summary = process_video(recognizer, source, VideoOutputs(clip=target, plot=tmp_path / "out.png"))
    assert not summary.damaged
    before, after = list(Clip(source).frames()), list(Clip(target).frames())
    assert [frame.time for frame in after] == [frame.time for frame in before]
    assert (
        np.abs(after[-1].rgb.astype(int) - before[-1].rgb).mean() < 6
    )  # boxes and labels cover a part of the picture
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert [bytes(p) for p in a.demux(audio=0)] == [bytes(p) for p in b.demux(audio=0)]
        begins = [
            float((c.streams.audio[0].start_time or 0) * (c.streams.audio[0].time_base or 0)) for c in (a, b)
        ]
    assert begins[1] == pytest.approx(begins[0], abs=0.05)


def test_the_embedded_model_recognizes_sadness_and_then_happiness(
    recognizer: Recognizer, shared_dir: Path
) -> None:
    """She cries with a hand on her face until second 6, looks up, and laughs from second 11 on."""
    if weights.DEFAULT not in weights.embedded_models():
        pytest.skip("NO EMBEDDED MODEL in this checkout")
    path = shared_dir / "media" / "WolfgangLanger_Pexels.mp4"
    labels = [(frame.time, frame.faces[0].label) for frame in recognizer.video(path, fps=6) if frame.faces]
    late = Counter(label for time, label in labels if time > 12)
    assert late["happy"] / late.total() > 0.9
    early = Counter(label for time, label in labels if 2 < time < 6)
    assert early["sad"] / early.total() > 0.5
