"""Reading clips: every frame, at its exact time, upright; and notes about defects."""

from __future__ import annotations

import io
import itertools
import re
import struct
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from clips import SIZE, number_in, numbered, write_clip
from ferkit.core.errors import ImageError, VideoError
from ferkit.core.images import load_image
from ferkit.video.clip import Clip, seconds, turned

FRAMES = 20


def pictures(count: int = FRAMES, **options: Any) -> list[Any]:
    return [numbered(k, **options) for k in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """Twenty frames at 30 a second, with B-frames, one keyframe, and sound."""
    return write_clip(folder / "plain.mp4", pictures(), sound="aac")


CONTAINERS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "b.mkv": {},
    "c.ts": {},
    "d.avi": {"codec": "mpeg4"},
    "e.avi": {},  # with B-frames; its packets have only decoding times
    "f.webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "g.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "h.mkv": {"codec": "ffv1"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_frame_is_yielded_once_in_order_including_the_last(folder: Path, name: str) -> None:
    """A known fault: frames that the decoder still holds are lost at the end."""
    clip = Clip(write_clip(folder / name, pictures(), **CONTAINERS[name]))
    frames = list(clip.frames())
    assert [number_in(frame.rgb) for frame in frames] == list(range(FRAMES))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    # Matroska counts in milliseconds.
    assert [float(frame.time) for frame in frames] == pytest.approx([k / 30 for k in range(FRAMES)], abs=6e-4)
    assert clip.notes == ()
    assert not clip.damaged


def test_times_are_exact_fractions(folder: Path) -> None:
    times = [1001 * k for k in range(FRAMES)]
    path = write_clip(folder / "ntsc.mp4", pictures(), times=times, time_base=Fraction(1, 24_000))
    clip = Clip(path)
    assert [frame.time for frame in clip.frames()] == [Fraction(1001 * k, 24_000) for k in range(FRAMES)]
    assert clip.info.rate == pytest.approx(24, rel=0.02)
    assert clip.info.time_base == Fraction(1, 24_000)


UNEVEN = [0, 10, 20, 500, 510, 511, 900, 2000]


def test_a_variable_frame_rate_keeps_its_times_and_durations_fill_the_clip(folder: Path) -> None:
    path = write_clip(folder / "vfr.mp4", pictures(8), times=UNEVEN, time_base=Fraction(1, 1000))
    frames = list(Clip(path).frames())
    assert [frame.time for frame in frames] == [Fraction(t, 1000) for t in UNEVEN]
    for frame, after in itertools.pairwise(frames):
        assert frame.time + frame.duration == after.time
    assert frames[-1].duration > 0


def test_times_count_from_the_first_timestamp(folder: Path) -> None:
    times = [90_000 * 3600 + 3000 * k for k in range(FRAMES)]
    path = write_clip(folder / "late.ts", pictures(), times=times, time_base=Fraction(1, 90_000))
    frames = list(Clip(path).frames())
    assert [frame.time for frame in frames] == [Fraction(k, 30) for k in range(FRAMES)]
    (late,) = (frame for frame in Clip(path, start="1/2", end=Fraction(16, 30)).frames())
    assert number_in(late.rgb) == 15


@pytest.mark.parametrize("every", [2, 3, 7, 100])
def test_a_stride_keeps_times_and_total_duration(plain: Path, every: int) -> None:
    """A known fault: a stride that loses timestamps."""
    frames = list(Clip(plain, every=every).frames())
    assert [frame.index for frame in frames] == list(range(0, FRAMES, every))
    assert [number_in(frame.rgb) for frame in frames] == [frame.index for frame in frames]
    assert [frame.time for frame in frames] == [Fraction(k, 30) for k in range(0, FRAMES, every)]
    assert sum(frame.duration for frame in frames) == Fraction(FRAMES, 30)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (10, [0, 3, 6, 9, 12, 15, 18]),
        (7.5, [0, 4, 8, 12, 16]),
        (30, list(range(FRAMES))),
        (1000, list(range(FRAMES))),
        (20, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]),
        (0.5, [0]),
    ],
)
def test_fps_reads_the_first_frame_of_each_interval(plain: Path, fps: float, expected: list[int]) -> None:
    frames = list(Clip(plain, fps=fps).frames())
    assert [frame.index for frame in frames] == expected
    assert [frame.time for frame in frames] == [Fraction(k, 30) for k in expected]
    assert sum(frame.duration for frame in frames) == Fraction(FRAMES, 30)


def test_fps_with_a_variable_frame_rate_depends_on_time(folder: Path) -> None:
    path = write_clip(folder / "vfr2.mp4", pictures(8), times=UNEVEN, time_base=Fraction(1, 1000))
    frames = list(Clip(path, fps=2).frames())
    assert [int(frame.time * 1000) for frame in frames] == [0, 500, 2000]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, list(range(20))),
        ("0.1", None, list(range(3, 20))),
        (0.1, 0.2, [3, 4, 5]),  # the float 0.1 is slightly above one tenth and stands for it
        ("0:00.51", "0:00:00.6", [16, 17]),
        (Fraction(19, 30), None, [19]),
        (0, 1000, list(range(20))),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi"])
def test_a_range_includes_its_start_and_excludes_its_end(
    folder: Path, suffix: str, start: Any, end: Any, expected: list[int]
) -> None:
    path = folder / f"range{suffix}"
    if not path.exists():
        write_clip(path, pictures(), options={"g": "6"})
    frames = list(Clip(path, start=start, end=end).frames())
    assert [number_in(frame.rgb) for frame in frames] == expected
    assert [frame.index for frame in frames] == list(range(len(expected)))
    assert [frame.time for frame in frames] == [Fraction(k, 30) for k in expected]


def test_a_range_has_the_same_pixels_as_the_whole_clip(plain: Path) -> None:
    whole = list(Clip(plain).frames())
    part = list(Clip(plain, start="0.4").frames())
    assert len(part) == 8
    for a, b in zip(whole[12:], part, strict=True):
        assert np.array_equal(a.rgb, b.rgb)


X264 = {"codec": "libx264", "options": {"x264-params": "keyint=6:bframes=2:b-adapt=0:open-gop=1"}}
CODECS: dict[str, dict[str, Any]] = {
    "h264": X264,
    "h264-intra-refresh": {"codec": "libx264", "options": {"x264-params": "keyint=6:intra-refresh=1"}},
    "hevc": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=6:bframes=2:open-gop=1:pools=1"},
    },
    "mpeg4": {"codec": "mpeg4", "options": {"g": "6", "bf": "2", "q": "3"}},  # as Xvid and DivX
    "mpeg4-without-b": {"codec": "mpeg4", "options": {"g": "6", "q": "3"}},
    "mpeg2": {"codec": "mpeg2video", "options": {"g": "6", "bf": "2", "q": "3"}},
    "mpeg1": {"codec": "mpeg1video", "options": {"g": "6", "bf": "2", "q": "3"}},
    "wmv2": {"codec": "wmv2", "options": {"g": "6"}},
    "flv": {"codec": "flv", "options": {"g": "6"}},
    "vp8": {"codec": "libvpx", "options": {"deadline": "realtime", "g": "6"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "g": "6", "cpu-used": "8"}},
    "mjpeg": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "ffv1": {"codec": "ffv1"},
    "gif": {"codec": "gif", "pixels": "rgb8"},
}
CODECS_OF = {
    "mp4": "h264 h264-intra-refresh hevc mpeg4 mpeg4-without-b mpeg2 vp9 mjpeg",
    "mov": "h264 hevc mpeg4 mpeg2 mjpeg gif",
    "matroska": "h264 h264-intra-refresh hevc mpeg4 mpeg4-without-b mpeg2 mpeg1 vp8 vp9 mjpeg ffv1",
    "webm": "vp8 vp9",
    "avi": "h264 h264-intra-refresh mpeg4 mpeg4-without-b mpeg2 mpeg1 wmv2 flv vp8 mjpeg ffv1",
    "mpegts": "h264 h264-intra-refresh hevc mpeg4 mpeg4-without-b mpeg2 mpeg1",
    "mpeg": "h264 hevc mpeg4 mpeg4-without-b mpeg2 mpeg1",
    "flv": "h264 hevc flv vp9",
    "gif": "gif",
}


@pytest.mark.parametrize(
    ("container", "codec"),
    [(container, codec) for container, codecs in CODECS_OF.items() for codec in codecs.split()],
)
def test_a_range_has_the_pictures_and_times_of_the_whole_clip(
    folder: Path, container: str, codec: str
) -> None:
    """A known fault: after seeking in AVI with B-frames, pictures were up to three frames off."""

    def shown(clip: Clip) -> list[tuple[int, Fraction]]:
        return [(number_in(frame.rgb), frame.time) for frame in clip.frames()]

    path = folder / f"{codec}.{container}"
    write_clip(path, pictures(30, size=(160, 96)), container=container, **CODECS[codec])
    clip = Clip(path)
    whole = shown(clip)
    assert [number for number, _ in whole] == list(range(30))
    exact = [abs(float(time) * 30 - number) < 0.2 for number, time in whole]  # GIF has centiseconds
    assert all(exact) or any("timestamp" in note for note in clip.notes)
    for number in (1, 5, 6, 7, 11, 14, 23, 29):
        part = Clip(path, start=whole[number][1])
        assert shown(part) == whole[number:]
        assert not part.damaged


def test_times_in_avi_are_exact_where_frames_are_missing(folder: Path) -> None:
    """A frame that was dropped while recording is an empty chunk."""
    content = write_clip(folder / "full.avi", pictures(30), **CODECS["mpeg4-without-b"]).read_bytes()
    begin, chunks = content.index(b"movi") + 4, []
    place = begin
    while content[place : place + 4] == b"00dc":
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        chunks.append(content[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    chunks[5] = chunks[14] = b""
    body = index = b""
    for number, chunk in enumerate(chunks):
        key = 0x10 if number % 6 == 0 else 0
        index += b"00dc" + struct.pack("<3I", key, 4 + len(body), len(chunk))
        body += b"00dc" + struct.pack("<I", len(chunk)) + chunk + b"\0" * (len(chunk) % 2)
    body = struct.pack("<I", 4 + len(body)) + b"movi" + body + b"idx1" + struct.pack("<I", len(index)) + index
    path = folder / "dropped.avi"
    path.write_bytes(content[: begin - 8] + body)
    for start in (0, "0.4"):
        frames = list(Clip(path, start=start).frames())
        missing = {5, 14}
        assert [int(frame.time * 30) for frame in frames] == sorted(
            set(range(12 if start else 0, 30)) - missing
        )
        for frame in frames:
            if frame.time * 30 % 6 < 2:  # before a missing frame leaves its traces
                assert number_in(frame.rgb) == frame.time * 30


def test_a_range_after_the_end_is_an_error(plain: Path) -> None:
    with pytest.raises(VideoError, match=r"no frame from 5 s on; the last one before ends at 0\.66"):
        list(Clip(plain, start=5).frames())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", Fraction(90)),
        ("1:30", Fraction(90)),
        ("1:02:03.25", Fraction(372_325, 100)),
        (".5", Fraction(1, 2)),
        (0.1, Fraction(1, 10)),
        (1e-5, Fraction(1, 100_000)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_times_are_parsed_exactly(text: Any, value: Fraction) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", -1, "1:60", "1:2:3:4", "ten", "nan", float("inf"), "1/0", "1:1e9"]
)
def test_invalid_times_are_refused(text: Any) -> None:
    with pytest.raises(VideoError, match="a time is"):
        seconds(text)


def corners(rgb: Any) -> str:
    """The colours of the corners, clockwise from the upper left."""
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W", (0, 0, 0): "K"}
    places = [(2, 2), (2, -3), (-3, -3), (-3, 2)]
    return "".join(names[tuple(int(v > 128) for v in rgb[y, x])] for y, x in places)


def four_corners(width: int = 64, height: int = 48) -> Any:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, width // 2 :, 2] = 255
    return picture


@pytest.mark.parametrize(
    ("rotation", "expected", "shape"),
    [(0, "RGBK", (48, 64)), (90, "GBKR", (64, 48)), (180, "BKRG", (48, 64)), (-90, "KRGB", (64, 48))],
)
def test_a_rotated_recording_gives_upright_pictures(
    folder: Path, rotation: float, expected: str, shape: tuple[int, int]
) -> None:
    """Rotation is counterclockwise, as in FFmpeg and PyAV."""
    path = write_clip(folder / f"turned{rotation}.mp4", [four_corners()] * 3, rotation=rotation)
    frames = list(Clip(path).frames())
    assert len(frames) == 3
    for frame in frames:
        assert frame.rgb.shape[:2] == shape
        assert corners(frame.rgb) == expected


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), "RGBK"),
        ((-1, 0, 0, 1), "GRKB"),  # mirrored
        ((1, 0, 0, -1), "KBGR"),  # upside down and mirrored
        ((-1, 0, 0, -1), "BKRG"),
        ((0, 1, -1, 0), "KRGB"),
        ((0, -1, 1, 0), "GBKR"),
        ((0, 1, 1, 0), "RKBG"),  # mirrored along the diagonal
        ((0, -1, -1, 0), "BGRK"),
    ],
)
def test_each_display_matrix_is_applied(matrix: tuple[int, int, int, int], expected: str) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    packed = struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    shown = turned(four_corners(), packed)
    assert corners(shown) == expected
    assert shown.flags.c_contiguous


def test_pixels_become_square(folder: Path) -> None:
    path = write_clip(folder / "wide.mp4", [four_corners(60, 48)] * 2, aspect=Fraction(16, 15))
    assert next(Clip(path).frames()).rgb.shape == (48, 64, 3)
    path = write_clip(folder / "high.mp4", [four_corners(64, 48)] * 2, aspect=Fraction(1, 2))
    assert next(Clip(path).frames()).rgb.shape == (96, 64, 3)


@pytest.mark.parametrize(
    "colour", [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128), (250, 250, 250)]
)
def test_channels_are_in_the_order_red_green_blue(folder: Path, colour: tuple[int, int, int]) -> None:
    """A known fault: BGR fed to an RGB network."""
    path = write_clip(folder / "colour.mp4", [np.full((48, 64, 3), colour, np.uint8)] * 2)
    assert next(Clip(path).frames()).rgb[10, 10].tolist() == pytest.approx(colour, abs=4)


@pytest.mark.parametrize(("transfer", "kind"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_noted_once(folder: Path, transfer: str, kind: str) -> None:
    """A known fault: such frames were read as SDR without a note."""
    path = write_clip(folder / f"{kind}.mp4", pictures(4), options={"color_trc": transfer})
    clip = Clip(path)
    assert [number_in(frame.rgb) for frame in clip.frames()] == [0, 1, 2, 3]
    (note,) = clip.notes
    assert f"HDR ({kind})" in note
    assert not clip.damaged  # all of it was read


def test_sdr_has_no_notes(folder: Path, plain: Path) -> None:
    tagged = write_clip(folder / "bt709.mp4", pictures(4), options={"color_trc": "bt709"})
    for path in (plain, tagged):
        clip = Clip(path)
        assert list(clip.frames())
        assert clip.notes == ()


def test_info_is_what_the_file_declares(plain: Path) -> None:
    info = Clip(plain).info
    assert (info.codec, info.width, info.height, info.rate, info.audio) == ("h264", *SIZE, 30.0, ("aac",))
    assert info.duration == pytest.approx(FRAMES / 30)
    assert info.source == str(plain)


def test_a_stopped_clip_ends_at_the_next_frame(plain: Path) -> None:
    stop = threading.Event()
    clip = Clip(plain, stop=stop)
    frames = []
    for frame in clip.frames():
        frames.append(frame)
        if frame.index == 4:
            stop.set()
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert sum(frame.duration for frame in frames) == Fraction(6, 30)
    assert clip.notes == ()


@pytest.mark.parametrize("start", [0, "0.6", 5])
@pytest.mark.parametrize("suffix", [".mp4", ".h264"])
def test_a_clip_can_be_stopped_before_the_start_of_its_range(folder: Path, suffix: str, start: Any) -> None:
    """Without seeking, all frames before the range are decoded, which may take long."""
    path = folder / f"stopped{suffix}"
    if not path.exists():
        write_clip(path, pictures())
    stop = threading.Event()
    stopped, closed = Clip(path, start=start, stop=stop), Clip(path, start=start)
    stop.set()
    closed.close()
    for clip in (stopped, closed):
        assert list(clip.frames()) == []
        assert (clip.notes, clip.damaged, clip.stopped) == ((), False, True)


def write_streams(path: Path, sizes: Sequence[tuple[int, int]], dispositions: Sequence[Any] = ()) -> Path:
    """Write a clip with several video streams; the pictures of stream n count from 100 n."""
    with av.open(str(path), "w") as target:
        streams: list[Any] = []
        for number, (width, height) in enumerate(sizes):
            stream: Any = target.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if dispositions:
                stream.disposition = dispositions[number]
            streams.append(stream)
        for k in range(5):
            for number, stream in enumerate(streams):
                picture = numbered(100 * number + k, size=(stream.width, stream.height))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 30)
                target.mux(stream.encode(frame))
        for stream in streams:
            target.mux(stream.encode(None))
    return path


SMALL, LARGE, NONE = (80, 48), (160, 96), Disposition(0)


@pytest.mark.parametrize(
    ("name", "sizes", "dispositions", "expected"),
    [
        ("preview-first.mkv", [SMALL, LARGE], [NONE, NONE], 1),
        ("preview-last.mkv", [LARGE, SMALL], [NONE, NONE], 0),
        ("default.mkv", [SMALL, LARGE], [Disposition.default, NONE], 0),
        ("three.ts", [SMALL, LARGE, LARGE], [], 1),
    ],
)
def test_the_default_or_else_the_largest_of_several_video_streams_is_read(
    folder: Path, name: str, sizes: Any, dispositions: Any, expected: int
) -> None:
    """A known fault: it was the first, also if that is a preview."""
    clip = Clip(write_streams(folder / name, sizes, dispositions))
    assert [number_in(frame.rgb) for frame in clip.frames()] == [100 * expected + k for k in range(5)]
    assert (clip.info.width, clip.info.height) == sizes[expected]
    (note,) = clip.notes
    assert f"#{expected} (h264" in note
    assert not clip.damaged


def test_a_cover_picture_is_never_read(folder: Path) -> None:
    path = folder / "cover.mp4"
    with av.open(str(path), "w") as target:
        cover: Any = target.add_stream("mjpeg", rate=30)
        cover.width, cover.height, cover.pix_fmt = *LARGE, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream: Any = target.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SMALL, "yuv420p"
        target.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(99, size=LARGE), format="rgb24")))
        for picture in pictures(5):
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode(None))
    with av.open(str(path)) as source:
        assert any(one.disposition & Disposition.attached_pic for one in source.streams.video)
    clip = Clip(path)
    assert [number_in(frame.rgb) for frame in clip.frames()] == list(range(5))
    assert clip.notes == ()


def test_the_best_variant_of_a_playlist_is_read(folder: Path) -> None:
    variants = ["#EXTM3U"]
    for number, size in enumerate((SMALL, LARGE)):
        write_streams(folder / f"segment{number}.ts", [size])
        (folder / f"variant{number}.m3u8").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.167,\nsegment{number}.ts\n#EXT-X-ENDLIST\n"
        )
        variants += [f"#EXT-X-STREAM-INF:BANDWIDTH={1 + number}00000", f"variant{number}.m3u8"]
    path = folder / "master.m3u8"
    path.write_text("\n".join(variants))
    clip = Clip(path)
    assert {frame.rgb.shape[:2] for frame in clip.frames()} == {(96, 160)}
    assert len(clip.notes) == 1


# Defective files


def test_an_error_for_a_clip_without_video_lists_its_streams(folder: Path) -> None:
    path = folder / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as target:
        stream: Any = target.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        stream.codec_context.layout = "mono"
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.m4a has no video stream; it holds: audio \(aac\)"):
        Clip(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"This is a text, and no clip.\n" * 40, "it is not a video, or damaged"),
        (bytes(4096), "it is not a video, or damaged"),
    ],
)
def test_a_file_that_is_not_a_clip_is_refused(folder: Path, content: bytes, message: str) -> None:
    path = folder / "other.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        Clip(path)


def test_a_clip_cut_off_before_its_index_is_refused_with_the_reason(folder: Path, plain: Path) -> None:
    path = folder / "cut.mp4"
    path.write_bytes(plain.read_bytes()[:-600])
    with pytest.raises(VideoError, match="its index is missing: it was cut off"):
        Clip(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.mp4", "no file"),
        (".", "is a folder"),
        ("https://example.org/clip.mp4", "is a URL"),
        ("rtsp://camera/1", "is a URL"),
        ("bad\0name.mp4", "cannot read|no file"),
    ],
)
def test_a_path_that_is_not_a_file_is_refused(given: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        Clip(given)


def test_a_number_is_not_a_clip() -> None:
    with pytest.raises(TypeError):
        Clip(0)  # type: ignore[arg-type]


def test_a_playlist_fetches_nothing(folder: Path) -> None:
    path = folder / "list.m3u8"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(VideoError):
        list(Clip(path).frames())


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_a_truncated_clip_is_read_as_far_as_possible_and_noted(folder: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(90)]
    whole = write_clip(folder / f"whole{suffix}", noise, options={"g": "10", "bf": "0"})
    path = folder / f"half{suffix}"
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clip = Clip(path)
    frames = list(clip.frames())
    assert 30 < len(frames) < 60
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    if suffix != ".ts":  # a transport stream declares no length
        assert clip.damaged
    if suffix == ".mkv":
        assert any("the clip declares 3.00 s and ends after 1." in note for note in clip.notes)


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".flv", "flv"), (".webm", "libvpx")])
def test_a_clip_with_audio_after_its_last_picture_is_not_damaged(
    folder: Path, suffix: str, codec: str
) -> None:
    """A known fault: if only the container declares a length, it was called cut off."""
    sound = "opus" if suffix == ".webm" else "aac"
    rate = 48_000 if suffix == ".webm" else 44_100
    path = write_clip(
        folder / f"outlasted{suffix}",
        pictures(60),
        codec=codec,
        sound=sound,
        sound_seconds=5,
        sound_rate=rate,
    )
    clip = Clip(path)
    assert len(list(clip.frames())) == 60
    (note,) = clip.notes
    assert re.fullmatch(r"the pictures end after 2\.\d\d s, the clip after 5\.\d\d s", note)
    assert not clip.damaged


def test_a_truncated_clip_with_audio_is_damaged_too(folder: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(90)]
    whole = write_clip(folder / "sounding.mkv", noise, options={"g": "10"}, sound="aac", sound_seconds=3)
    path = folder / "half-sounding.mkv"
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clip = Clip(path)
    list(clip.frames())
    assert clip.damaged
    assert any("it is cut off or damaged" in note for note in clip.notes)


def test_a_truncated_clip_with_its_index_in_front_is_read_as_far_as_possible(folder: Path) -> None:
    whole = write_clip(
        folder / "front.mp4", pictures(60), options={"g": "10", "bf": "0"}, index_in_front=True
    )
    content = whole.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    path = folder / "front-half.mp4"
    path.write_bytes(content[: len(content) * 7 // 10])
    clip = Clip(path)
    shown = [number_in(frame.rgb) for frame in clip.frames()]
    assert shown == list(range(len(shown)))
    assert 15 < len(shown) < 60
    assert clip.damaged


def test_frames_held_by_the_decoder_are_not_lost_at_a_read_error(folder: Path, plain: Path) -> None:
    """A playlist whose second part is missing: reading ends with an error."""
    path = folder / "parts.ffconcat"
    path.write_text(f"ffconcat version 1.0\nfile {plain.name}\nfile missing.mp4\n")
    clip = Clip(path)
    assert [number_in(frame.rgb) for frame in clip.frames()] == list(range(FRAMES))
    assert clip.damaged
    assert "the clip cannot be read to its end: No such file or directory" in clip.notes


def test_damage_in_the_middle_is_noted_and_the_rest_is_read(folder: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 80, 3), np.uint8) for _ in range(60)]
    path = write_clip(folder / "scratched.mp4", noise, options={"g": "10"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = rng.bytes(3000)
    path.write_bytes(content)
    clip = Clip(path)
    frames = list(clip.frames())
    assert frames[0].time == 0
    assert frames[-1].time == Fraction(59, 30)
    assert clip.damaged
    assert any("damaged" in note for note in clip.notes)


def test_frames_that_change_size_keep_their_own_size(folder: Path) -> None:
    first = write_clip(
        folder / "small.ts", pictures(5), times=range(0, 15_000, 3000), time_base=Fraction(1, 90_000)
    )
    second = write_clip(
        folder / "large.ts",
        pictures(5, size=(160, 96)),
        times=range(15_000, 30_000, 3000),
        time_base=Fraction(1, 90_000),
    )
    path = folder / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    clip = Clip(path)
    frames = list(clip.frames())
    assert [frame.rgb.shape[:2] for frame in frames] == [(48, 80)] * 5 + [(96, 160)] * 5
    assert [number_in(frame.rgb) for frame in frames] == [0, 1, 2, 3, 4] * 2
    assert "frames change from 80 x 48 to 160 x 96 pixels at 0.167 s" in clip.notes


def test_times_continue_after_the_clock_is_set_back(folder: Path) -> None:
    """Two recordings in one file, each with its own clock."""
    parts = [
        write_clip(
            folder / f"part{k}.ts",
            pictures(40),
            times=[90_000 * 100 * (2 - k) + 3000 * n for n in range(40)],
            time_base=Fraction(1, 90_000),
        )
        for k in range(2)
    ]
    path = folder / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = Clip(path)
    times = [frame.time for frame in clip.frames()]
    assert len(times) == 80
    assert times == sorted(set(times))
    assert any("timestamp" in note for note in clip.notes)


def test_times_of_frames_without_timestamps_follow_from_the_rate(folder: Path) -> None:
    clip = Clip(write_clip(folder / "raw.h264", pictures()))
    frames = list(clip.frames())
    assert [frame.time for frame in frames] == [Fraction(k, 30) for k in range(FRAMES)]
    assert clip.notes == ("20 frames have no timestamp; their times assume 30 frames/s",)


def test_frames_above_max_pixels_are_refused(plain: Path) -> None:
    with pytest.raises(VideoError, match="80 x 48 pixels, more than the limit"):
        Clip(plain, max_pixels=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is a whole number"),
        ({"every": 2.5}, "every is a whole number"),  # a known fault: it meant 5
        ({"fps": 0}, "fps is above 0"),
        ({"fps": -1}, "fps is above 0"),
        ({"fps": float("nan")}, "fps is above 0"),
        ({"fps": 5, "every": 2}, "excludes every"),
        ({"start": 2, "end": 1}, "must end after it starts"),
        ({"start": 1, "end": 1}, "must end after it starts"),
    ],
)
def test_invalid_arguments_are_refused(plain: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        Clip(plain, **options)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6])
def test_a_photo_is_a_clip_of_one_frame_with_the_pixels_of_the_photo(
    folder: Path, suffix: str, orientation: int
) -> None:
    """A known fault: EXIF is side data that PyAV does not know, and ended in a traceback."""
    path = folder / f"photo{orientation}{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(numbered(5, size=(96, 64))).save(path, exif=exif)
    (frame,) = Clip(path).frames()
    assert np.array_equal(frame.rgb, load_image(path))
    assert (number_in(frame.rgb) == 5) == (orientation == 1)


@pytest.mark.parametrize(("orientation", "shown"), [(1, "RGBK"), (3, "BKRG"), (6, "KRGB"), (8, "GBKR")])
def test_exif_rotation_in_a_clip_is_applied(folder: Path, orientation: int, shown: str) -> None:
    """Motion JPEG of a camera that writes EXIF into each picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(four_corners()).save(content, "JPEG", exif=exif, quality=95)
    path = folder / f"exif{orientation}.mov"
    with av.open(str(path), "w") as target:
        stream: Any = target.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for k in range(3):
            packet = av.Packet(content.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 30), k, k
            target.mux(packet)
    frames = list(Clip(path).frames())
    assert [corners(frame.rgb) for frame in frames] == [shown] * 3


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_an_animation_is_a_clip(folder: Path, suffix: str) -> None:
    """A known fault: FFmpeg does not decode animated WebP, and the clip was called damaged."""
    path = folder / f"animation{suffix}"
    first, *others = [Image.fromarray(numbered(k, size=(96, 64))) for k in range(5)]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 100, 400, 100], **lossless)
    clip = Clip(path)
    frames = list(clip.frames())
    assert [number_in(frame.rgb) for frame in frames] == list(range(5))
    assert [frame.time for frame in frames] == [Fraction(k, 10) for k in (0, 1, 3, 4, 8)]
    assert [frame.duration for frame in frames][:4] == [Fraction(k, 10) for k in (1, 2, 1, 4)]
    assert clip.notes == ()
    assert [number_in(frame.rgb) for frame in Clip(path, start="0.3", end="0.8").frames()] == [2, 3]


@pytest.mark.parametrize("change", ["canvas", "frame"])
def test_a_damaged_animation_is_an_error_of_one_line(folder: Path, change: str) -> None:
    """Found by the fuzzer: Pillow's DecompressionBombError left ferkit."""
    content = io.BytesIO()
    first, *others = [Image.fromarray(numbered(k, size=(96, 64))) for k in range(3)]
    first.save(content, "WEBP", save_all=True, append_images=others)
    damaged = bytearray(content.getvalue())
    if change == "canvas":
        damaged[24:30] = b"\xff" * 6  # width and height of the chunk VP8X, less one
    else:
        del damaged[-200:]
    path = folder / f"damaged-{change}.webp"
    path.write_bytes(damaged)
    with pytest.raises(ImageError, match=r"damaged-\w+\.webp") as error:
        list(Clip(path).frames())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [ValueError("31 is not a valid Type"), KeyError("x"), MemoryError()])
def test_an_exception_of_pyav_is_an_error_of_one_line(
    plain: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise failure

    clip = Clip(plain)
    monkeypatch.setattr(av, "open", broken)
    for use in (lambda: Clip(plain), lambda: list(clip.frames())):
        with pytest.raises(VideoError, match=rf"cannot read .*plain\.mp4: {type(failure).__name__}") as error:
            use()
        assert error.value.__cause__ is failure
