"""Measures `ferkit video`: frames per second, time per stage, the cost of rarer face detection, memory.

    python benchmarks/video.py clip.mp4 other.mov --data fer2013.csv.gz --out results/bench

Parts that `--parts` leaves out keep their figures in the report in `--out`, with the run that measured them.

The 720p clips are made from a clip with one face: enlarged, or five times side by side; without a clip from
a photo that drifts. Jobs that are compared are measured in turns. Needs the extra `video`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from bench import ASTRONAUT
from measuring import Part, chosen_parts, describe_machine, held_parts, in_turns, write_report
from numpy.typing import NDArray

from ferkit import Recognizer
from ferkit.core.crops import crop_faces
from ferkit.core.images import load_image, to_gray
from ferkit.detect import Detection, make_detector
from ferkit.video.clip import Clip
from ferkit.video.process import VideoOutputs, process_video
from ferkit.video.recognition import FrameResult
from ferkit.video.smoothing import Smoother, Smoothing
from ferkit.video.tracking import FaceTracker
from ferkit.video.writers import ClipWriter, draw_frame

EVERY = (0, 0.1, 0.2, 0.4)
"""Seconds from one face detection to the next; 0: in each frame."""
SLOWER = (30, 10, 5, 2, 1)
"""Frames per second that are read of a clip with 30."""
PARTS = ("rate", "slower", "profile", "cost", "accuracy", "memory")
RARER = (0.1, 0.2, 0.4, 0.8)
WIDTH, HEIGHT = 1280, 720
RATE = 30
SOUND_RATE = 48_000
MOST = 100  # frames of the profile, which holds them all
REAL_TIME = 30.0
PEOPLE = 60  # of the labelled clip, a second each
SAME_FACE = 0.5  # intersection over union

if TYPE_CHECKING:
    from av import AudioFrame

Picture = NDArray[np.uint8]


def source_frames(clip: Path | None) -> list[Picture]:
    """Return the frames of a clip; without one, the astronaut, drifting."""
    if clip is not None:
        return [frame.rgb for frame in Clip(clip, end=10).frames()]
    photo = load_image(ASTRONAUT)
    return [np.roll(photo[:360], 2 * k, axis=1) for k in range(60)]


def scene(frames: Sequence[Picture], index: int, faces: int) -> Picture:
    """Return frame ``index`` of a 720p scene with one or five faces; the source runs to and fro."""

    def at(k: int) -> Picture:
        k %= 2 * len(frames) - 2
        return frames[k if k < len(frames) else 2 * len(frames) - 2 - k]

    if faces == 1:
        return np.asarray(cv2.resize(at(index), (WIDTH, HEIGHT)), np.uint8)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    tile = WIDTH // 3, HEIGHT // 2
    for k in range(faces):
        left, top = k % 3 * tile[0], k // 3 * tile[1]
        picture[top : top + tile[1], left : left + tile[0]] = cv2.resize(at(index + 7 * k), tile)
    return picture


def write_scene(path: Path, frames: Sequence[Picture], faces: int, count: int) -> Path:
    """Write a 720p clip."""
    with ClipWriter(path, time_base=Fraction(1, RATE)) as writer:
        for k in range(count):
            writer.write(scene(frames, k, faces), Fraction(k, RATE), Fraction(1, RATE))
    return path


def write_long(path: Path, frames: Sequence[Picture], seconds: int, *, sound: bool = False) -> Path:
    """Write a clip of 320x240 and any length: ten seconds, over and over, without encoding them again.

    Args:
        path: The new clip.
        frames: The pictures.
        seconds: Its length, in whole tens.
        sound: Whether it has a tone, as AAC.
    """
    import av

    loop = path.with_name("loop.mp4")
    with ClipWriter(loop, time_base=Fraction(1, RATE)) as writer:
        for k in range(10 * RATE):
            picture = np.asarray(cv2.resize(scene(frames, k, 1), (320, 240)), np.uint8)
            writer.write(picture, Fraction(k, RATE), Fraction(1, RATE))
    with av.open(str(path), "w") as target:
        out = audio = None
        for turn in range(max(1, seconds // 10)):
            with av.open(str(loop)) as source:
                stream = source.streams.video[0]
                if out is None:
                    out = target.add_stream_from_template(stream)
                    audio = target.add_stream("aac", rate=SOUND_RATE, layout="mono") if sound else None
                for packet in source.demux(stream):
                    if packet.pts is None or packet.dts is None or stream.time_base is None:
                        continue
                    shift = int(10 * turn / stream.time_base)
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = out
                    target.mux(packet)
            if audio is not None:
                for second in range(10 * turn, 10 * (turn + 1)):
                    target.mux(audio.encode(_second_of_tone(second)))
        if audio is not None:
            target.mux(audio.encode(None))
    return path


def _second_of_tone(second: int) -> AudioFrame:
    import av

    wave = 9000 * np.sin(2 * np.pi * 440 * np.arange(SOUND_RATE) / SOUND_RATE)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
    frame.pts = second * SOUND_RATE
    return frame


def frame_rates(folder: Path, frames: Sequence[Picture], count: int, rounds: int) -> Part:
    """Frames per second of a 720p clip, by faces, by the interval of detection, and by output."""
    recognizer = Recognizer()
    jobs: dict[str, Callable[[], float]] = {}
    for faces in (1, 5):
        clip = scene_of(folder, frames, faces, count)
        jobs[f"{faces} face(s), decoding alone"] = _rate(_decode(clip))
        for every in EVERY:
            for drawn in (False, True):
                outputs = VideoOutputs(csv=folder / "out.csv", clip=folder / "out.mp4" if drawn else None)
                how = f"detection {_interval(every)}, csv{' and annotated clip' if drawn else ''}"
                jobs[f"{faces} face(s), {how}"] = _rate(
                    _process(recognizer, clip, outputs, detect_every=every)
                )
    list(recognizer.video(folder / "1.mp4", end=1))  # warms up
    rates = in_turns(jobs, rounds, warm=False)
    rows = {name: {"frames_per_s": rate, "x real time": rate / REAL_TIME} for name, rate in rates.items()}
    return {
        "note": f"Aim: real time, {REAL_TIME:.0f} frames a second, with detection every 0.2 s.",
        "rows": rows,
    }


def _interval(seconds: float) -> str:
    return f"every {seconds:g} s" if seconds else "in each frame"


def slower_clips(folder: Path, frames: Sequence[Picture], count: int, rounds: int) -> Part:
    """Processor time for a second of a clip read at fewer frames, by the rule for detection."""
    recognizer = Recognizer()
    clip = scene_of(folder, frames, 1, count)
    outputs = VideoOutputs(csv=folder / "out.csv")
    seconds = count / RATE
    jobs: dict[str, Callable[[], float]] = {}
    for fps in SLOWER:
        for every in (0.2, 5 / fps):
            work = _process(recognizer, clip, outputs, detect_every=every, fps=fps)
            jobs[f"{fps} frames/s, {every:g} s"] = _milliseconds(work, seconds)
    took = in_turns(jobs, rounds)
    rows = {
        f"{fps} frames/s": {
            "detections per second": min(5, fps),
            "detection every 0.2 s, ms": took[f"{fps} frames/s, 0.2 s"],
            "in every fifth frame, ms": took[f"{fps} frames/s, {5 / fps:g} s"],
        }
        for fps in SLOWER
    }
    return {"note": "One face; processor time per second of the clip, with decoding and csv.", "rows": rows}


def _milliseconds(job: Callable[[], int], seconds: float) -> Callable[[], float]:
    def milliseconds() -> float:
        start = time.process_time()
        job()
        return 1000 * (time.process_time() - start) / seconds

    return milliseconds


def _rate(job: Callable[[], int]) -> Callable[[], float]:
    def rate() -> float:
        start = time.perf_counter()
        return job() / (time.perf_counter() - start)

    return rate


def scene_of(folder: Path, frames: Sequence[Picture], faces: int, count: int) -> Path:
    """Return the 720p clip with so many faces, written when it is first asked for."""
    clip = folder / f"{faces}.mp4"
    return clip if clip.exists() else write_scene(clip, frames, faces, count)


def _decode(clip: Path) -> Callable[[], int]:
    return lambda: sum(1 for _ in Clip(clip).frames())


def _process(recognizer: Recognizer, clip: Path, outputs: VideoOutputs, **options: Any) -> Callable[[], int]:
    return lambda: process_video(recognizer, clip, outputs, **options).timeline.frames


def cost_of_rarer_detection(clips: Sequence[Path]) -> Part:
    """Compare with detection in every frame: faces, positions of their boxes, their expressions."""
    recognizer = Recognizer()
    rows: dict[str, Any] = {}
    for clip in clips:
        reference = list(recognizer.video(clip, detect_every=0, smoothing=None))
        for every in RARER:
            found = list(recognizer.video(clip, detect_every=every, smoothing=None))
            rows[f"{clip.name}, {_interval(every)}"] = compare(reference, found)
    note = (
        "Frame by frame, unsmoothed. recall: faces of the reference that a face overlaps by half; extra: "
        "faces more than in the reference; overlap: mean intersection over union; moved: mean total "
        "variation distance of the probabilities."
    )
    return {"note": note, "rows": rows}


def cost_in_accuracy(folder: Path, data: Path | None) -> Part:
    """Accuracy by the interval of detection: labelled faces of PublicTest that turn, drift and grow."""
    if data is None:
        return {"skipped": "name FER2013 with --data"}
    from ferkit.data import load_data

    dataset = load_data(data, drop_flat=True).of_split("PublicTest")
    dataset = dataset.select(np.random.default_rng(0).permutation(len(dataset))[:PEOPLE])
    clip = folder / "labelled.mp4"
    with ClipWriter(clip, time_base=Fraction(1, RATE)) as writer:
        for k, face in enumerate(dataset.images):
            for step in range(RATE):
                writer.write(
                    moved_face(face, k, step / RATE), Fraction(k * RATE + step, RATE), Fraction(1, RATE)
                )
    names = [dataset.taxonomy.labels[label] for label in dataset.labels]
    recognizer = Recognizer(taxonomy="fer2013")
    table: dict[str, Any] = {}
    for every in (0, *RARER):
        seen = right = 0
        for frame in recognizer.video(clip, detect_every=every, smoothing=None):
            best = max(frame.faces, key=lambda face: face.face.score, default=None)
            seen += best is not None
            right += best is not None and best.raw.label == names[frame.index // RATE]
        whole = PEOPLE * RATE
        table[_interval(every)] = {"recall": seen / whole, "accuracy": right / max(1, seen)}
    note = (
        f"{PEOPLE} faces of PublicTest (selection split), enlarged four times, each for a second in which it "
        f"turns, drifts and grows; {PEOPLE * RATE:,} frames. accuracy: of single frames with a face."
    )
    return {"note": note, "rows": table}


def moved_face(face: Picture, seed: int, time: float) -> Picture:
    """Return a frame uint8 ``[480, 640, 3]`` with a face ``[48, 48]`` at a time from 0 to 1 of its motion."""
    rng = np.random.default_rng(seed)
    turn, growth = rng.uniform(-1, 1), rng.uniform(-0.2, 0.2)
    shift = rng.uniform(-60, 60, 2)
    matrix: NDArray[Any] = cv2.getRotationMatrix2D(
        (24, 24), 20 * turn * (time - 0.5), 4 * (1 + growth * time)
    )
    matrix[:, 2] += np.array([320 - 24, 240 - 24]) + shift * (2 * time - 1)
    gray = cv2.warpAffine(face, matrix, (640, 480), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.repeat(np.asarray(gray, np.uint8)[:, :, None], 3, axis=2)


def compare(reference: Sequence[FrameResult], found: Sequence[FrameResult]) -> dict[str, Any]:
    """Compare frame by frame: each face of the reference with the one that overlaps it most, if one does."""
    faces = extra = 0
    overlaps, distances, same = [], [], []
    for wanted, got in zip(reference, found, strict=True):
        faces += len(wanted.faces)
        extra += max(0, len(got.faces) - len(wanted.faces))
        for face in wanted.faces:
            best = max(got.faces, key=lambda other: overlap(face.face.box, other.face.box), default=None)
            if best is None or overlap(face.face.box, best.face.box) < SAME_FACE:
                continue
            overlaps.append(overlap(face.face.box, best.face.box))
            p, q = (np.array(list(one.raw.probabilities.values())) for one in (face, best))
            distances.append(float(np.abs(p - q).sum() / 2))
            same.append(face.raw.label == best.raw.label)
    return {
        "faces": faces,
        "recall": len(overlaps) / faces if faces else 1.0,
        "extra": extra,
        "overlap": float(np.mean(overlaps)) if overlaps else 1.0,
        "same label": float(np.mean(same)) if same else 1.0,
        "moved": float(np.mean(distances)) if distances else 0.0,
        "tracks": len({face.track for frame in found for face in frame.faces}),
    }


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def profile(folder: Path, frames: Sequence[Picture], count: int) -> Part:
    """Milliseconds of each stage per 720p frame, one stage after the other, and their share."""
    rows: dict[str, Any] = {}
    for faces in (1, 5):
        clip = scene_of(folder, frames, faces, count)
        spent = _stages(clip, folder / "profile.mp4")
        whole = sum(processor for _, processor in spent.values())
        rows |= {
            f"{faces} face(s), {stage}": {
                "ms": 1000 * wall,
                "cpu_ms": 1000 * processor,
                "share": processor / whole,
            }
            for stage, (wall, processor) in spent.items()
        }
    note = (
        "Per frame, one stage after the other; by default detection runs every 0.2 s, in one of six frames."
    )
    return {"note": note, "rows": rows}


def _stages(path: Path, target: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds, of the clock and of the processors, of each stage for a frame.

    Each stage runs over all frames by itself; otherwise threads of the libraries would run during the next.
    """
    spent: dict[str, tuple[float, float]] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        value = work()
        count = len(results)
        spent[stage] = (time.perf_counter() - wall) / count, (time.process_time() - processor) / count
        return value

    recognizer, detector, smoother = Recognizer(), make_detector(), Smoother(Smoothing())
    results = list(recognizer.video(path, end=MOST / RATE))
    boxes = [[face.face.box for face in frame.faces] for frame in results]
    recorded = _Recorded(
        [[Detection(f.face.box, f.face.score, f.face.landmarks) for f in r.faces] for r in results]
    )
    tracker = FaceTracker(recorded, every=1_000_000)
    detector.detect(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    frames = timed("decode, to RGB", lambda: list(Clip(path, end=MOST / RATE).frames()))
    grays = timed("to gray", lambda: [to_gray(f.rgb) for f in frames])
    timed("detection (in each frame)", lambda: [detector.detect(f.rgb) for f in frames])

    def move() -> None:
        for recorded.index, (f, gray) in enumerate(zip(frames, grays, strict=True)):
            tracker.update(f.rgb, gray, float(f.time))

    timed("move and track", move)
    crops = timed("crop", lambda: [crop_faces(g, b) for g, b in zip(grays, boxes, strict=True)])
    read = timed("classify", lambda: recognizer.predict_crops(np.concatenate(crops)))

    def smooth() -> None:
        values = iter(read)
        for result in results:
            for face in result.faces:
                smoother.update(face.track or 0, result.time, list(next(values).probabilities.values()))

    timed("smooth", smooth)
    drawn = timed("draw", lambda: [draw_frame(f.rgb, r) for f, r in zip(frames, results, strict=True)])

    def encode() -> None:
        with ClipWriter(target, time_base=Fraction(1, RATE)) as writer:
            for picture, frame in zip(drawn, frames, strict=True):
                writer.write(picture, frame.time, frame.duration)

    timed("encode", encode)
    return spent


class _Recorded:
    """A detector that returns recorded faces, and takes no time."""

    name = "recorded"

    def __init__(self, faces: Sequence[Sequence[Detection]]) -> None:
        self._faces = faces
        self.index = 0

    def detect(self, image: Picture) -> tuple[Detection, ...]:
        """Return the faces of frame ``index``."""
        del image
        return tuple(self._faces[self.index])


MEMORY = """
import json, sys, time
from pathlib import Path
from ferkit import Recognizer
from ferkit.video.process import VideoOutputs, process_video

def mib(name):
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)]
    return int(line.split()[1]) / 1024

path, step, every, *out = sys.argv[1:]
sizes, last = [], None

def look(frame, share=None):
    global last
    last = frame
    if frame.index % int(step) == int(step) - 1:
        sizes.append(mib("VmRSS"))

start = time.perf_counter()
if out:
    outputs = VideoOutputs(*(Path(out[0]) / f"out.{kind}" for kind in ("mp4", "csv", "jsonl", "png")))
    process_video(Recognizer(), path, outputs, progress=look, detect_every=float(every))
else:
    for frame in Recognizer().video(path, detect_every=float(every)):
        look(frame)
took = time.perf_counter() - start
print(json.dumps([last.index + 1, last.time, took, mib("VmHWM"), sizes]))
"""


def memory(folder: Path, frames: Sequence[Picture], seconds: int) -> Part:
    """Resident memory in MiB over a long clip of 320x240: of the results alone, and with all outputs."""
    rows: dict[str, Any] = {}
    for written in (False, True):
        length = max(60, seconds // 6) if written else seconds
        path = write_long(folder / "long.mp4", frames, length, sound=written)
        line = [sys.executable, "-c", MEMORY, str(path), str(max(1, length * RATE // 20)), "0.4"]
        if written:
            line.append(str(folder))
        done = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        count, last, took, peak, sizes = json.loads(done)
        what = "annotated clip with sound, csv, jsonl, timeline" if written else "results alone"
        rows[f"{length / 60:g} minutes, {what}"] = {
            "frames": count,
            "last frame at, s": last,
            "frames_per_s": count / took,
            "MiB after each twentieth": sizes,
            "growth after the first quarter, MiB": max(sizes[5:]) - sizes[4],
            "peak_mib": peak,
        }
    note = (
        "Detection every 0.4 s. The peak is that of the whole process, with the outputs and the timeline "
        "drawn at the end."
    )
    return {"note": note, "rows": rows}


def main() -> None:
    """Measure as the command line says, and write ``video.json`` and the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, help="clips with faces; the first makes the scenes")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for the results")
    parser.add_argument("--data", type=Path, help="FER2013, for the cost in accuracy")
    parser.add_argument("--frames", type=int, default=300, help="frames of a 720p scene")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each measurement")
    parser.add_argument("--minutes", type=float, default=60, help="length of the clip for the memory")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: %(default)s)")
    arguments = parser.parse_args()
    wanted = chosen_parts(parser, arguments.parts, PARTS)
    if missing := [clip for clip in arguments.clips if not clip.is_file()]:
        parser.error(f"there is no {missing[0]}")
    report: dict[str, Any] = {"machine": describe_machine(), "parts": {}}
    if find_spec("av") is None:
        report["parts"]["Video"] = {"skipped": "the extra is not installed; `pip install 'ferkit[video]'`"}
        write_report(arguments.out, "video", report, sys.argv[1:])
        return
    frames = source_frames(arguments.clips[0] if arguments.clips else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, tuple[str, Callable[[], Part]]] = {
            "rate": (
                f"Frames per second, {WIDTH} x {HEIGHT}",
                lambda: frame_rates(folder, frames, arguments.frames, arguments.rounds),
            ),
            "slower": (
                f"Detection by time in slower clips, {WIDTH} x {HEIGHT}",
                lambda: slower_clips(folder, frames, arguments.frames, arguments.rounds),
            ),
            "profile": (
                f"Where the time goes, {WIDTH} x {HEIGHT}",
                lambda: profile(folder, frames, arguments.frames),
            ),
            "cost": (
                "Rarer detection, against every frame",
                lambda: cost_of_rarer_detection(
                    arguments.clips or [scene_of(folder, frames, n, arguments.frames) for n in (1, 5)]
                ),
            ),
            "accuracy": (
                "Rarer detection, labelled faces",
                lambda: cost_in_accuracy(folder, arguments.data),
            ),
            "memory": (
                "Memory over a long clip, 320 x 240",
                lambda: memory(folder, frames, round(arguments.minutes * 60)),
            ),
        }
        titles = [title for title, _ in parts.values()]
        found = held_parts(arguments.out, "video")
        for part in wanted:
            title, measure = parts[part]
            print(f"measuring: {title}", file=sys.stderr, flush=True)
            found[title] = measure()
            report["parts"] = {title: found[title] for title in titles if title in found}
            write_report(arguments.out, "video", report, sys.argv[1:], print_tables=False)
    write_report(arguments.out, "video", report, sys.argv[1:])


if __name__ == "__main__":
    main()
