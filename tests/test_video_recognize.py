"""Recognition in clips: no frame lost, results independent of batches, constant memory."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import modelzoo
from clips import BITS, CELL, number_in, write_clip
from ferkit import Recognizer, to_pandas
from ferkit.core.crops import CropGeometry
from ferkit.core.errors import DetectorError, ImageError, MissingDependencyError, OutputError, VideoError
from ferkit.core.taxonomy import FER2013
from ferkit.detect import Detection
from ferkit.recognize.sinks import CSVSink
from ferkit.video.clip import Clip
from ferkit.video.process import STDOUT, VideoOutputs, process_video
from ferkit.video.recognition import FrameResult, frame_columns
from ferkit.video.smoothing import Smoothing

WIDTH, HEIGHT = 160, 120
FRAMES = 24
LEFT = 70


def place(index: int) -> tuple[int, int]:
    """The upper left corner of the face of 40 x 50 pixels in a frame."""
    return 20 + 3 * index, 30 + index


def picture(index: int) -> Any:
    """A frame uint8 ``[H, W, 3]`` with its number and a face that moves and changes."""
    import cv2

    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 120, (20, 27, 3), np.uint8), (WIDTH, HEIGHT))
    x, y = place(index)
    face = cv2.resize(np.random.default_rng(1).integers(60, 256, (9, 7, 3), np.uint8), (40, 50))
    face[36:44, 8 : 9 + index] = 200 if index % 2 else 120
    rgb[y : y + 50, x : x + 40] = face
    for bit in range(BITS):
        rgb[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if index >> bit & 1 else 0
    return rgb


class ByNumber:
    """A detector that knows the face of each numbered frame; some frames have none."""

    name = "by-number"

    def __init__(self, empty: Sequence[int] = ()) -> None:
        self._empty = empty

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        index = number_in(image)
        if index in self._empty:
            return ()
        x, y = place(index)
        marks = (
            (x + 10.0, y + 20.0),
            (x + 30.0, y + 20.0),
            (x + 20.0, y + 30.0),
            (x + 12.0, y + 40.0),
            (x + 28.0, y + 40.0),
        )
        return (Detection((x, y, x + 40.0, y + 50.0), 0.9, marks),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer(model, detector=ByNumber())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "face.mp4"
    return write_clip(path, [picture(k) for k in range(FRAMES)], options={"crf": "10"})


def numbers(results: Sequence[FrameResult]) -> NDArray[np.float64]:
    return np.array([list(face.face.probabilities.values()) for frame in results for face in frame.faces])


def test_the_boxes_of_a_custom_detector_are_used_whatever_its_name(
    model: Path, recognizer: Recognizer, clip: Path
) -> None:
    detector = ByNumber()
    detector.name = "none"
    assert list(Recognizer(model, detector=detector).video(clip)) == list(recognizer.video(clip))


def test_each_frame_has_a_result_with_its_time_and_track(recognizer: Recognizer, clip: Path) -> None:
    reading = recognizer.video(clip)
    results = list(reading)
    assert [frame.index for frame in results] == list(range(FRAMES))
    assert [frame.time for frame in results] == [k / 30 for k in range(FRAMES)]
    assert sum(frame.duration for frame in results) == pytest.approx(FRAMES / 30)
    assert {(frame.width, frame.height, frame.taxonomy) for frame in results} == {(WIDTH, HEIGHT, "fer2013")}
    assert [[face.track for face in frame.faces] for frame in results] == [[1]] * FRAMES
    assert [face.detected for frame in results for face in frame.faces] == [k % 6 == 0 for k in range(FRAMES)]
    assert reading.info.codec == "h264"
    assert (reading.notes, reading.damaged) == ((), False)


@pytest.mark.parametrize(
    ("options", "first"),
    [({}, 1 / FRAMES), ({"start": "0.4"}, 1 / (FRAMES - 12)), ({"end": "0.4"}, 1 / 12)],
)
def test_the_share_that_is_read_grows_to_one_over_the_range(
    recognizer: Recognizer, clip: Path, options: dict[str, Any], first: float
) -> None:
    with recognizer.video(clip, **options) as reading:
        shares = [reading.share_read(frame) for frame in reading]
    assert shares[0] == pytest.approx(first)
    assert shares[-1] == pytest.approx(1)
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(shares))


def test_a_frame_has_the_result_of_a_photo_of_it(recognizer: Recognizer, clip: Path) -> None:
    for frame, shown in zip(
        recognizer.video(clip, detect_every=0, smoothing=None), Clip(clip).frames(), strict=True
    ):
        (photo,) = recognizer.predict(shown.rgb).faces
        (tracked,) = frame.faces
        assert tracked.face.box == pytest.approx(photo.box, abs=1e-9)
        assert tracked.face.landmarks is not None
        assert tracked.face.score == photo.score
        assert tracked.face.quality == photo.quality
        assert list(tracked.face.probabilities.values()) == pytest.approx(
            list(photo.probabilities.values()), abs=1e-6
        )
        assert tracked.raw == tracked.face.expression


def test_each_face_has_a_quality_including_moved_ones(recognizer: Recognizer, clip: Path) -> None:
    for frame in recognizer.video(clip):
        (tracked,) = frame.faces
        box, quality = tracked.face.box, tracked.face.quality
        assert quality is not None
        assert quality.size == box[3] - box[1]
        assert quality.yaw is not None
        assert frame.to_dict()["faces"][0]["quality"] == quality.to_dict()


def test_a_table_for_pandas_has_the_columns_and_rows_of_the_csv(model: Path, clip: Path) -> None:
    pd = pytest.importorskip("pandas")
    frames = list(Recognizer(model, detector=ByNumber(empty=range(3))).video(clip, detect_every=0))
    stream = io.StringIO()
    writer = CSVSink(stream, frame_columns(FER2013.labels))
    for frame in frames:
        writer.write(frame)
    read = pd.read_csv(io.StringIO(stream.getvalue()))
    table = to_pandas(frames)
    assert list(table.columns) == list(read.columns)
    assert table["p_happy"].tolist()[3:] == read["p_happy"].tolist()[3:]
    assert table["faces"].tolist() == [0] * 3 + [1] * (FRAMES - 3)
    assert table["label"].isna().tolist() == [True] * 3 + [False] * (FRAMES - 3)
    assert frames[5].to_pandas()["frame"].tolist() == [5]


def test_a_table_for_pandas_has_all_columns_even_without_a_face(model: Path, clip: Path) -> None:
    pytest.importorskip("pandas")
    stream = io.StringIO()
    CSVSink(stream, frame_columns(FER2013.labels))
    table = to_pandas(Recognizer(model, detector=ByNumber(range(FRAMES))).video(clip))
    assert list(table.columns) == stream.getvalue().strip().split(",")


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_results_do_not_depend_on_batches(model: Path, clip: Path, batch_size: int) -> None:
    """A known fault."""
    expected = list(Recognizer(model, detector=ByNumber(), batch_size=1000).video(clip))
    results = list(Recognizer(model, detector=ByNumber(), batch_size=batch_size).video(clip))
    assert [frame.time for frame in results] == [frame.time for frame in expected]
    assert [[f.face.box for f in frame.faces] for frame in results] == [
        [f.face.box for f in frame.faces] for frame in expected
    ]
    assert numbers(results) == pytest.approx(numbers(expected), abs=1e-6)


def test_a_stride_gives_the_results_of_these_frames(recognizer: Recognizer, clip: Path) -> None:
    options: dict[str, Any] = {"detect_every": 0, "smoothing": None}
    whole = {frame.index: frame for frame in recognizer.video(clip, **options)}
    for stride in (recognizer.video(clip, every=5, **options), recognizer.video(clip, fps=6, **options)):
        part = list(stride)
        assert [frame.index for frame in part] == [0, 5, 10, 15, 20]
        assert [frame.time for frame in part] == [k / 30 for k in (0, 5, 10, 15, 20)]
        assert sum(frame.duration for frame in part) == pytest.approx(FRAMES / 30)
        assert numbers(part) == pytest.approx(numbers([whole[k] for k in (0, 5, 10, 15, 20)]), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({}, 6),  # 0.2 s
        ({"every": 2}, 3),
        ({"every": 4}, 1),
        ({"every": 5}, 1),
        ({"fps": 10}, 2),
        ({"fps": 1}, 1),
        ({"fps": 6, "detect_every": 0.5}, 3),
        ({"every": 2, "detect_every": 1 / 3}, 5),
        ({"detect_every": 0}, 1),
    ],
)
def test_the_interval_of_detection_is_in_seconds_of_the_clip(
    recognizer: Recognizer, clip: Path, options: dict[str, Any], interval: int
) -> None:
    detected = [frame.faces[0].detected for frame in recognizer.video(clip, **options)]
    assert detected == [k % interval == 0 for k in range(len(detected))]


@pytest.mark.parametrize(("rate", "fps"), [(1, None), (2, None), (5, None), (8, None), (10, None), (10, 1)])
def test_a_face_visible_for_two_seconds_is_found_at_a_low_frame_rate(
    model: Path, tmp_path: Path, rate: int, fps: int | None
) -> None:
    """A known fault: detection ran in each fifth frame, which may be every five seconds."""
    start, end = Fraction(23, 10), Fraction(43, 10)

    class Passing(ByNumber):
        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            visible = start <= Fraction(number_in(image), rate) < end
            return (Detection((20.0, 20.0, 60.0, 70.0), 0.9),) if visible else ()

    frames = [picture(0) for _ in range(6 * rate)]
    for k, frame in enumerate(frames):
        for bit in range(BITS):
            frame[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if k >> bit & 1 else 0
    path = write_clip(tmp_path / "passing.mp4", frames, time_base=Fraction(1, rate), options={"crf": "10"})
    results = list(Recognizer(model, detector=Passing()).video(path, fps=fps))
    visible = [frame for frame in results if start <= frame.time < end]
    assert len(visible) >= 2
    assert all(frame.faces for frame in visible if frame.time >= start + Fraction(1, 5))


def test_moved_boxes_stay_on_the_face_between_detections(recognizer: Recognizer, clip: Path) -> None:
    for frame in recognizer.video(clip, detect_every=8 / 30):
        x, y = place(frame.index)
        assert frame.faces[0].face.box == pytest.approx((x, y, x + 40, y + 50), abs=3)


def test_smoothing_reduces_changes_and_can_be_disabled(recognizer: Recognizer, clip: Path) -> None:
    smooth = list(recognizer.video(clip))
    plain = list(recognizer.video(clip, smoothing=None))
    raw = np.array([list(frame.faces[0].raw.probabilities.values()) for frame in smooth])
    assert raw == pytest.approx(numbers(plain), abs=1e-6)
    assert np.abs(np.diff(numbers(smooth), axis=0)).sum() < 0.5 * np.abs(np.diff(raw, axis=0)).sum()
    assert numbers(smooth).sum(axis=1) == pytest.approx(np.ones(FRAMES))
    slow = list(recognizer.video(clip, smoothing=Smoothing("mean", 100)))
    assert numbers(slow)[-1] == pytest.approx(raw.mean(axis=0), abs=1e-5)


def test_frames_without_a_face_have_results(model: Path, clip: Path) -> None:
    """Known faults: an exception on no face; the whole frame scored as one."""
    results = list(Recognizer(model, detector=ByNumber(range(FRAMES))).video(clip))
    assert [frame.faces for frame in results] == [()] * FRAMES


def test_min_confidence_applies_to_smoothed_expressions(model: Path, clip: Path) -> None:
    results = list(Recognizer(model, detector=ByNumber(), min_confidence=1.0).video(clip))
    assert {face.label for frame in results for face in frame.faces} == {"uncertain"}


def test_a_clip_of_face_crops_needs_no_detector(model: Path, clip: Path) -> None:
    results = list(Recognizer(model, detector="none").video(clip))
    assert [face.face.box for frame in results for face in frame.faces] == [(0, 0, WIDTH, HEIGHT)] * FRAMES
    assert all(face.detected for frame in results for face in frame.faces)


def test_a_range_can_be_read(recognizer: Recognizer, clip: Path) -> None:
    reading = recognizer.video(clip, start="0.2", end=Fraction(1, 2))
    assert [round(frame.time * 30) for frame in reading] == list(range(6, 15))


def test_pictures_are_returned_with_keep_pictures(recognizer: Recognizer, clip: Path) -> None:
    reading = recognizer.video(clip, keep_pictures=True)
    assert [number_in(frame.rgb) for _, frame in reading.with_pictures()] == list(range(FRAMES))


def test_pictures_that_were_not_kept_are_an_error(recognizer: Recognizer, clip: Path) -> None:
    with recognizer.video(clip) as reading:
        with pytest.raises(VideoError, match="open it with keep_pictures=True"):
            reading.with_pictures()
        assert next(reading).index == 0


def test_results_are_plain_types_for_json(recognizer: Recognizer, clip: Path) -> None:
    first = next(recognizer.video(clip))
    content = json.loads(json.dumps(first.to_dict()))
    assert content["time"] == first.time
    (face,) = content["faces"]
    assert face["track"] == 1
    assert face["probabilities"] == dict(first.faces[0].face.probabilities)
    assert face["raw"]["label"] == first.faces[0].raw.label


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ferkit-reader"]


def test_stopping_early_leaves_no_thread(recognizer: Recognizer, clip: Path) -> None:
    with recognizer.video(clip) as reading:
        next(reading)
    assert readers() == []
    reading = recognizer.video(clip)
    next(reading)
    del reading
    gc.collect()
    assert readers() == []


def test_stopping_early_stops_the_clip(recognizer: Recognizer, clip: Path) -> None:
    with recognizer.video(clip) as reading:
        next(reading)
    assert reading._clip.stopped


def test_a_clip_that_is_stopped_before_its_first_frame_writes_nothing(
    recognizer: Recognizer, clip: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    stop.set()
    outputs = VideoOutputs(clip=tmp_path / "out.mp4", csv=tmp_path / "out.csv")
    with pytest.raises(VideoError, match=r"face\.mp4 was stopped before its first frame; nothing is written"):
        process_video(recognizer, clip, outputs, start="0.5", stop=stop)
    assert list(tmp_path.iterdir()) == []
    assert list(recognizer.video(clip, start="0.5", stop=stop)) == []


def test_a_plot_that_cannot_be_written_is_an_error_before_the_clip_is_read(
    recognizer: Recognizer, clip: Path, tmp_path: Path
) -> None:
    """The clip may last for hours."""
    (tmp_path / "file").write_text("")
    read: list[FrameResult] = []
    outputs = VideoOutputs(plot=tmp_path / "file" / "out.png")
    with pytest.raises(OutputError, match=r"cannot write .*out\.png: "):
        process_video(recognizer, clip, outputs, progress=lambda frame, share: read.append(frame))
    assert read == []


class Refusing(io.StringIO):
    """A standard output that raises an error."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


def test_an_error_of_the_standard_output_does_not_name_a_file(
    recognizer: Recognizer, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = VideoOutputs(csv=tmp_path / "out.csv", jsonl=STDOUT)
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    with pytest.raises(BrokenPipeError):
        process_video(recognizer, clip, outputs)
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputError, match=r"^cannot write the standard output: No space left on device$"):
        process_video(recognizer, clip, outputs)
    assert list(tmp_path.iterdir()) == []


def test_one_recognizer_processes_several_clips_at_once(recognizer: Recognizer, clip: Path) -> None:
    expected = list(recognizer.video(clip))
    found: list[list[FrameResult]] = [[] for _ in range(3)]

    def read(number: int) -> None:
        found[number] = list(recognizer.video(clip))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * len(found)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (
            (5.0, 5.0, 5.0, 20.0),
            r"boxes are left, top, right, bottom\. Received: \[\[5\.0, 5\.0, 5\.0",
        ),
        ((0.0, 0.0, 1e6, 1e6), "a face has a finite position and an extent of 1 to 30000 pixels"),
    ],
)
def test_a_face_that_cannot_be_cropped_is_dropped_and_noted(
    recognizer: Recognizer, model: Path, clip: Path, box: tuple[float, float, float, float], reason: str
) -> None:
    class SometimesEmpty(ByNumber):
        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            more = (Detection(box, 0.9),) if number_in(image) in (3, 7) else ()
            return (*more, *super().detect(image))

    reading = Recognizer(model, detector=SometimesEmpty()).video(clip, detect_every=0)
    assert list(reading) == list(recognizer.video(clip, detect_every=0))
    (note,) = reading.notes
    assert "2" in note
    assert re.search(reason, note)
    assert not reading.damaged


class FailingAt(ByNumber):
    """A detector that fails at some frames."""

    def __init__(self, frames: Sequence[int]) -> None:
        super().__init__()
        self._frames = frames

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        if number_in(image) in self._frames:
            raise DetectorError(f"no memory for frame {number_in(image)}")
        return super().detect(image)


@pytest.mark.parametrize("failing", [(5,), (5, 9)])
def test_a_failed_detection_finds_no_face_and_is_noted(
    model: Path, clip: Path, failing: tuple[int, ...]
) -> None:
    """A known fault: the rest of the clip was lost."""
    reading = Recognizer(model, detector=FailingAt(failing)).video(clip, detect_every=0)
    assert [frame.index for frame in reading if not frame.faces] == list(failing)
    (note,) = reading.notes
    assert f"{len(failing)} (first: no memory for frame 5)" in note
    assert not reading.damaged


def test_a_failure_of_the_first_detection_is_an_error(model: Path, clip: Path) -> None:
    with pytest.raises(DetectorError, match="no memory for frame 0"):
        list(Recognizer(model, detector=FailingAt(range(FRAMES))).video(clip))


def test_a_detector_without_landmarks_does_not_fit_a_model_that_aligns_by_the_eyes(
    clip: Path, tmp_path: Path
) -> None:
    """Dropping each face would look like a clip without faces."""

    class Markless(ByNumber):
        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            return tuple(replace(face, landmarks=None) for face in super().detect(image))

    model = modelzoo.write_tiny_model(tmp_path / "eyes.onnx", crop=CropGeometry(align="eyes"))
    assert [len(frame.faces) for frame in Recognizer(model, detector=ByNumber()).video(clip)] == [1] * FRAMES
    with pytest.raises(ImageError, match="aligns faces by the eyes"):
        list(Recognizer(model, detector=Markless()).video(clip))


def test_an_error_in_the_middle_comes_after_the_results_before_it_and_ends_the_reader(
    model: Path, clip: Path
) -> None:
    class Broken(ByNumber):
        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            if number_in(image) == 10:
                raise VideoError("the detector fell over")
            return super().detect(image)

    reading = Recognizer(model, detector=Broken()).video(clip, detect_every=0)
    assert [next(reading).index for _ in range(10)] == list(range(10))  # the error does not take them away
    with pytest.raises(VideoError, match="fell over") as caught:
        next(reading)
    assert caught.value.__notes__ == ["ferkit had taken 10 frames before this"]
    assert readers() == []


def test_a_missing_clip_is_refused_at_once(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no file"):
        recognizer.video(tmp_path / "absent.mp4")


def test_without_the_extra_the_error_names_it(
    recognizer: Recognizer, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ferkit\[video\]'"):
        recognizer.video(clip)


def test_importing_the_recognizer_does_not_import_the_extra() -> None:
    code = "import sys, ferkit.recognize, ferkit.video.recognition, ferkit.cli.video_command\n"
    code += "print(sorted({'av', 'matplotlib', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (240, 320, 3), np.uint8)
    frames = (np.roll(still, k % 16, axis=1) for k in range(1500))
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_clip(path, frames, options={"preset": "ultrafast", "crf": "40"})


MEASURE = """
import sys
from pathlib import Path
from ferkit import Recognizer

def resident():
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS")]
    return int(line.split()[1]) / 1024

sizes = []
for frame in Recognizer(sys.argv[1], detector="none").video(sys.argv[2]):
    if frame.index % 250 == 249:
        sizes.append(resident())
print(*sizes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_clip(model: Path, long_clip: Path) -> None:
    """A known fault. The last 500 frames of 225 KiB are 110 MiB; none of it stays."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), str(long_clip)],
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = [float(value) for value in done.stdout.split()]
    assert len(sizes) == 6
    assert max(sizes[4:]) - max(sizes[:4]) < 12
