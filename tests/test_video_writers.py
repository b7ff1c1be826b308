"""The annotated clip with its sound, the sums and the timeline."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from clips import BITS, CELL, number_in, numbered, sound_of, tone, write_clip
from faceresults import frame, tracked
from ferkit.core.errors import OutputError, VideoError
from ferkit.core.images import load_image
from ferkit.core.palette import palette
from ferkit.core.taxonomy import FER2013
from ferkit.recognize.results import UNCERTAIN
from ferkit.video.clip import Clip
from ferkit.video.process import VideoOutputs, process_video
from ferkit.video.recognition import FrameResult
from ferkit.video.timeline import Timeline
from ferkit.video.writers import ClipWriter

# The annotated clip


def copy_clip(
    source: Path, target: Path, *, start: Fraction = Fraction(0), sound: bool = True, **options: Any
) -> Path:
    clip = Clip(source, start=start, **options)
    with ClipWriter(
        target, source=str(source) if sound else None, start=start, time_base=clip.info.time_base
    ) as writer:
        for frame in clip.frames():
            writer.write(frame.rgb, frame.time, frame.duration)
        if "end" not in options:
            writer.finish_sound()
    return target


UNEVEN = [0, 10, 20, 500, 510, 511, 900, 1200]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_pictures_keep_their_times_also_at_a_variable_rate(tmp_path: Path, suffix: str) -> None:
    pictures = [numbered(k) for k in range(8)]
    source = write_clip(tmp_path / "in.mp4", pictures, times=UNEVEN, time_base=Fraction(1, 1000))
    copy = list(Clip(copy_clip(source, tmp_path / f"out{suffix}")).frames())
    assert [frame.time for frame in copy] == [Fraction(t, 1000) for t in UNEVEN]
    assert [number_in(frame.rgb) for frame in copy] == list(range(8))


def test_the_last_picture_is_shown_as_long_as_in_the_source(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with ClipWriter(path, time_base=Fraction(1, 1000)) as writer:
        for k in range(3):
            writer.write(numbered(k), Fraction(k, 10), Fraction(1, 10) if k < 2 else Fraction(7, 10))
    assert Clip(path).info.duration == pytest.approx(0.9)


def test_colours_stay_as_they_are(tmp_path: Path) -> None:
    """Large untagged clips are BT.709, small ones BT.601; what is written says what it is."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (240, 240, 240), (90, 120, 150)]
    path = tmp_path / "out.mp4"
    with ClipWriter(path) as writer:
        for k, colour in enumerate(colours):
            writer.write(np.full((720, 1280, 3), colour, np.uint8), Fraction(k, 30), Fraction(1, 30))
    with av.open(str(path)) as written:
        assert written.streams.video[0].codec_context.colorspace == 1
    for shown, colour in zip(Clip(path).frames(), colours, strict=True):
        assert shown.rgb[300, 300].tolist() == pytest.approx(colour, abs=4)


@pytest.mark.parametrize("size", [(81, 49), (80, 49), (81, 48), (80, 48)])
def test_odd_sizes_get_one_more_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "out.mp4"
    with ClipWriter(path) as writer:
        for k in range(3):
            writer.write(numbered(k, size=size), Fraction(k, 30), Fraction(1, 30))
    frames = list(Clip(path).frames())
    assert {frame.rgb.shape for frame in frames} == {(48 + size[1] % 2 * 2, 80 + size[0] % 2 * 2, 3)}
    assert [number_in(frame.rgb) for frame in frames] == [0, 1, 2]


def test_a_picture_of_another_size_is_fitted_in(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with ClipWriter(path) as writer:
        writer.write(np.full((48, 80, 3), 200, np.uint8), Fraction(0), Fraction(1, 30))
        writer.write(np.full((96, 96, 3), 200, np.uint8), Fraction(1, 30), Fraction(1, 30))
    first, second = (frame.rgb for frame in Clip(path).frames())
    assert first.shape == second.shape == (48, 80, 3)
    assert second[24, 40].mean() == pytest.approx(200, abs=6)
    assert second[24, 4].mean() < 12


def silence_before(samples: NDArray[np.float64]) -> int:
    return int(np.flatnonzero(np.abs(samples) > 0.02)[0])


@pytest.mark.parametrize("codec", ["aac", "mp3"])
def test_sound_is_copied_as_it_is(tmp_path: Path, codec: str) -> None:
    pictures = [numbered(k) for k in range(30)]
    source = write_clip(tmp_path / "in.mp4", pictures, sound=codec, sound_seconds=1.5)
    target = copy_clip(source, tmp_path / "out.mp4")
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert [bytes(p) for p in a.demux(audio=0)] == [bytes(p) for p in b.demux(audio=0)]
    before, after = sound_of(source), sound_of(target)
    assert after[0] == pytest.approx(before[0], abs=1e-3)
    assert np.array_equal(before[1], after[1])


@pytest.mark.parametrize(
    ("source", "target"), [("in.mkv", "out.mp4"), ("in.avi", "out.mkv"), ("in.mov", "out.mov")]
)
def test_sound_that_players_would_not_know_becomes_aac(tmp_path: Path, source: str, target: str) -> None:
    pictures = [numbered(k) for k in range(30)]
    path = write_clip(tmp_path / source, pictures, sound="pcm_s16le", options={"bf": "0"})
    copy = copy_clip(path, tmp_path / target)
    assert Clip(copy).info.audio == ("aac",)
    begin, samples = sound_of(copy)
    wanted = tone(1.0) / 32768
    assert len(samples) / 44_100 == pytest.approx(1.0, abs=0.05)
    start = round(begin * 44_100)
    audio_samples = np.zeros(max(len(wanted), start + len(samples)))
    audio_samples[start : start + len(samples)] = samples
    assert np.corrcoef(audio_samples[: len(wanted)], wanted)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("codec", "rates", "begins"),
    [("mp2", (44_100, 32_000), (0, 1)), ("mp2", (44_100, 44_100), (5, 0)), ("aac", (44_100, 44_100), (5, 0))],
    ids=["another rate", "set back, encoded", "set back, copied"],
)
def test_sound_of_two_recordings_in_one_file_goes_on(
    tmp_path: Path, codec: str, rates: tuple[int, int], begins: tuple[int, int]
) -> None:
    """Found by the fuzzer: the sound changes its form midway, or its clock is set back."""
    parts = []
    for k, (rate, begin) in enumerate(zip(rates, begins, strict=True)):
        path = tmp_path / f"{k}.ts"
        with av.open(str(path), "w") as target:
            stream: Any = target.add_stream("libx264", rate=30)
            stream.height, stream.width = 48, 80
            audio: Any = target.add_stream(codec, rate=rate)
            audio.codec_context.layout = "mono"
            for n in range(30):
                picture = av.VideoFrame.from_ndarray(numbered(n), format="rgb24")
                picture.pts, picture.time_base = 30 * begin + n, Fraction(1, 30)
                target.mux(stream.encode(picture))
                samples = np.full((1, rate // 30), 8000, np.int16)
                samples[:, ::2] = -8000
                audio_samples = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                audio_samples.sample_rate, audio_samples.time_base = rate, Fraction(1, rate)
                audio_samples.pts = rate * begin + n * (rate // 30)
                target.mux(audio.encode(audio_samples))
            target.mux(stream.encode(None))
            target.mux(audio.encode(None))
        parts.append(path.read_bytes())
    source = tmp_path / "both.ts"
    source.write_bytes(b"".join(parts))
    target_path = copy_clip(source, tmp_path / "out.mp4")
    assert len(list(Clip(target_path).frames())) == 60
    assert len(sound_of(target_path)[1]) / 44_100 == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(
    ("codec", "rate", "source", "target", "heard"),
    [
        ("pcm_s16le", 192_000, "in.mov", "out.mp4", ("aac", 96_000)),
        ("pcm_s16le", 6_000, "in.mov", "out.mkv", ("aac", 7_350)),
        ("pcm_s16le", 46_000, "in.mov", "out.mov", ("aac", 48_000)),
        ("mp3", 11_025, "in.mkv", "out.mp4", ("aac", 11_025)),
        ("mp3", 11_025, "in.mkv", "out.mkv", ("mp3", 11_025)),
        ("flac", 48_000, "in.mkv", "out.mov", ("aac", 48_000)),
        ("flac", 48_000, "in.mkv", "out.mp4", ("flac", 48_000)),
    ],
)
def test_sound_that_aac_or_the_container_refuses_does_not_end_the_run(
    tmp_path: Path, codec: str, rate: int, source: str, target: str, heard: tuple[str, int]
) -> None:
    path = write_clip(
        tmp_path / source, [numbered(k) for k in range(15)], sound=codec, sound_seconds=0.5, sound_rate=rate
    )
    with av.open(str(copy_clip(path, tmp_path / target))) as copy:
        (stream,) = copy.streams.audio
        assert (stream.codec_context.codec.canonical_name, stream.codec_context.sample_rate) == heard
        seconds = sum(frame.samples for frame in copy.decode(stream)) / heard[1]
    assert seconds == pytest.approx(0.5, abs=2.5 * 1152 / heard[1])  # packets are filled up, and begin early


def test_damaged_packets_of_sound_do_not_end_the_run(tmp_path: Path) -> None:
    """Found by the fuzzer: what is copied from a TS is unpacked on the way, and some packets cannot be."""
    pictures = [numbered(k) for k in range(30)]
    source = write_clip(tmp_path / "in.ts", pictures, sound="aac", sound_seconds=1.0)
    content = bytearray(source.read_bytes())
    headers = [k for k in range(len(content) - 1) if content[k] == 0xFF and content[k + 1] in (0xF0, 0xF1)]
    for k in headers[len(headers) // 3 : len(headers) // 2]:
        content[k + 2 : k + 5] = b"\xff\xff\xff"
    source.write_bytes(content)
    target = copy_clip(source, tmp_path / "out.mp4")
    assert len(list(Clip(target).frames())) == 30
    with av.open(str(target)) as copy:
        assert 10 < len([packet for packet in copy.demux(audio=0) if packet.size]) < 44


def test_sound_with_a_damaged_description_does_not_end_the_run(tmp_path: Path) -> None:
    """Found by the fuzzer: MP4 writes what Opus says of itself at the end, and refuses it only then."""
    pictures = [numbered(k) for k in range(15)]
    source = write_clip(tmp_path / "in.mkv", pictures, sound="libopus", sound_seconds=0.5, sound_rate=48_000)
    content = source.read_bytes()
    at = content.index(b"OpusHead")
    assert content[at - 3 : at] == b"\x63\xa2\x93"  # CodecPrivate of 19 bytes
    source.write_bytes(content[: at - 3] + b"\xec\x94" + bytes(20) + content[at + 19 :])  # a Void instead
    target = copy_clip(source, tmp_path / "out.mp4")
    assert len(list(Clip(target).frames())) == 15


def test_the_sound_of_a_range_stays_in_step(tmp_path: Path) -> None:
    pictures = [numbered(k) for k in range(60)]
    source = write_clip(tmp_path / "in.mp4", pictures, sound="aac", sound_seconds=2.0)
    target = copy_clip(source, tmp_path / "out.mp4", start=Fraction(1, 2), end=Fraction(3, 2))
    frames = list(Clip(target).frames())
    assert [number_in(frame.rgb) for frame in frames] == list(range(15, 45))
    begin, samples = sound_of(target)
    assert begin == pytest.approx(0, abs=0.03)
    assert len(samples) / 44_100 == pytest.approx(1.0, abs=0.06)
    # The tone swells: how loud it is tells which second it is from.
    wanted = tone(2.0) / 32768
    at = round((0.5 + begin) * 44_100)
    middle = slice(10_000, 30_000)
    loud = np.abs(wanted[at:][middle]).mean()
    assert np.abs(samples[middle]).mean() == pytest.approx(loud, rel=0.05)


def test_a_clip_that_was_interrupted_can_be_played(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", [numbered(k) for k in range(60)], sound="aac", sound_seconds=2.0)
    path = tmp_path / "out.mp4"
    clip = Clip(source)

    def interrupted() -> None:
        with ClipWriter(path, source=str(source), time_base=clip.info.time_base) as writer:
            for frame in clip.frames():
                writer.write(frame.rgb, frame.time, frame.duration)
                if frame.index == 20:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [number_in(frame.rgb) for frame in Clip(path).frames()] == list(range(21))
    assert len(sound_of(path)[1]) / 44_100 == pytest.approx(0.7, abs=0.06)


def test_a_clip_of_no_pictures_is_closed_without_a_crash(tmp_path: Path) -> None:
    with ClipWriter(tmp_path / "out.mp4"):
        pass


@pytest.mark.parametrize("name", ["out.avi", "out", "out.gif", "no/such/folder.mp4"])
def test_a_clip_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with ClipWriter(tmp_path / name) as writer:
            for k in range(90):
                writer.write(numbered(k), Fraction(k, 30), Fraction(1, 30))

    with pytest.raises(OutputError):
        write()


# Sums


def test_seconds_of_each_label_add_up_for_each_person() -> None:
    timeline = Timeline(FER2013)
    for k in range(10):
        timeline.add(
            frame(k, tracked(1, "happy" if k < 7 else UNCERTAIN), *([tracked(2, "sad")] if k > 7 else []))
        )
    timeline.add(frame(10))
    first, second = timeline.tracks()
    assert (first.track, first.frames, first.label) == (1, 10, "happy")
    assert first.by_label["happy"] == pytest.approx(0.7)
    assert first.by_label[UNCERTAIN] == pytest.approx(0.3)
    assert sum(first.by_label.values()) == pytest.approx(first.seconds) == pytest.approx(1.0)
    assert first.confidence == pytest.approx(0.7)
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert (second.track, second.seconds) == (2, pytest.approx(0.2))
    assert (second.first, second.last) == (0.8, pytest.approx(1.0))
    assert (timeline.frames, timeline.seconds) == (11, pytest.approx(1.1))
    assert json.loads(json.dumps(timeline.to_dict()))["tracks"][0]["seconds_by_label"][
        "happy"
    ] == pytest.approx(0.7)


def test_a_frame_counts_for_as_long_as_it_is_shown() -> None:
    timeline = Timeline(FER2013)
    for time, lasts, label in ((0.0, 0.1, "happy"), (0.1, 5.0, "sad"), (5.1, 0.1, "happy")):
        timeline.add(FrameResult(0, time, lasts, 9, 9, "fer2013", (tracked(1, label),)))
    (person,) = timeline.tracks()
    assert person.label == "sad"
    assert person.by_label["sad"] == 5.0


def test_people_travel_between_processes_and_can_be_put_into_a_set() -> None:
    timeline = Timeline(FER2013)
    timeline.add(frame(0, tracked(1, "happy"), tracked(2, "sad")))
    people = timeline.tracks()
    again = pickle.loads(pickle.dumps(people))
    assert again == people
    assert set(again) == set(people)
    assert tuple(again[0].by_label) == (*FER2013.labels, UNCERTAIN)


def test_faces_without_a_track_are_in_no_sum() -> None:
    timeline = Timeline(FER2013)
    timeline.add(frame(0, tracked(None)))
    assert timeline.tracks() == ()
    assert timeline.faces == 1


def test_what_a_timeline_holds_does_not_grow_with_the_clip() -> None:
    timeline = Timeline(FER2013)
    for k in range(4000):
        timeline.add(frame(k, tracked(1), rate=0.5))  # two hours and more
    (runs,) = [timeline._runs(sums) for sums in timeline._sums.values()]
    ((times, shares),) = runs
    assert len(times) <= 1025
    assert times[-1] == pytest.approx(8000, rel=0.02)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(shares)))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_timeline_is_a_picture(tmp_path: Path, suffix: str) -> None:
    timeline = Timeline(FER2013)
    for k in range(60):
        timeline.add(
            frame(k, tracked(1, "happy"), *([tracked(2, "sad")] if 10 < k < 20 or 40 < k < 45 else []))
        )
    path = tmp_path / f"timeline{suffix}"
    timeline.draw(path, title="clip.mp4")
    if suffix == ".png":
        picture = load_image(path)
        assert picture.shape[1] == 1200
        assert (picture == palette(["happy"])["happy"].rgb).all(axis=2).any()
    else:
        assert "person 2" in path.read_text() or path.stat().st_size > 5000


@pytest.mark.parametrize("title", ["a $b_$ c.mp4", "$\\frac$.mp4", "caf\udce9.mp4"])
def test_a_title_is_shown_as_it_is_whatever_its_letters(tmp_path: Path, title: str) -> None:
    timeline = Timeline(FER2013)
    timeline.add(frame(0, tracked(1)))
    timeline.draw(tmp_path / "timeline.png", title=title)
    assert load_image(tmp_path / "timeline.png").size


def test_a_timeline_without_tracks_is_drawn_too(tmp_path: Path) -> None:
    timeline = Timeline(FER2013)
    timeline.add(frame(0))
    timeline.draw(tmp_path / "nobody.png")
    assert load_image(tmp_path / "nobody.png").size


def test_of_many_people_those_seen_longest_are_drawn(tmp_path: Path) -> None:
    timeline = Timeline(FER2013)
    for k in range(30):
        timeline.add(frame(k, *(tracked(track) for track in range(1, 31 - k))))
    timeline.draw(tmp_path / "crowd.png")
    assert load_image(tmp_path / "crowd.png").shape[0] < 2000


# All at once


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"clip": "in.mp4"}, "would overwrite the clip itself"),
        ({"csv": "sub/../in.mp4"}, "would overwrite the clip itself"),
        ({"csv": "a.txt", "jsonl": "a.txt"}, "would overwrite another output"),
        ({"csv": "-", "jsonl": "-"}, "only one table"),
        ({"plot": "plot.xyz"}, "a timeline is written as"),
    ],
)
def test_outputs_that_would_do_harm_are_refused_first(
    tmp_path: Path, outputs: dict[str, str], message: str
) -> None:
    source = write_clip(tmp_path / "in.mp4", [numbered(0)])
    (tmp_path / "sub").mkdir()
    content = source.read_bytes()
    given = {kind: Path("-") if name == "-" else tmp_path / name for kind, name in outputs.items()}
    with pytest.raises((OutputError, VideoError), match=message):
        process_video(None, source, VideoOutputs(**given))  # type: ignore[arg-type]
    assert source.read_bytes() == content


def test_another_name_of_the_clip_is_refused_as_an_output(tmp_path: Path) -> None:
    """As where the file system ignores case, a known fault: `IMG_1.MOV -o img_1.mov` lost the clip."""
    source = write_clip(tmp_path / "IN.MP4", [numbered(0)])
    other = tmp_path / "in.mp4"
    if not other.exists():
        other.hardlink_to(source)
    with pytest.raises(OutputError, match=r"in\.mp4 would overwrite the clip itself"):
        process_video(None, source, VideoOutputs(clip=other))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"in\.mp4 would overwrite another output"):
        process_video(None, tmp_path / "a.mp4", VideoOutputs(csv=source, jsonl=other))  # type: ignore[arg-type]


def test_the_strip_of_numbers_is_wide_enough() -> None:
    assert number_in(numbered(2**BITS - 1)) == 2**BITS - 1
    assert CELL * BITS == 80
