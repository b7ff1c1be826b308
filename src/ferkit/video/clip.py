"""Clips read with PyAV: upright frames with exact times, and notes about what is wrong with a file."""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import FerkitError, VideoError
from ferkit.core.extras import require
from ferkit.core.images import DEFAULT_MAX_PIXELS, is_url, load_frames

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Seconds: TypeAlias = "int | float | str | Fraction"
"""A time: a number, or text like ``90``, ``1:30`` or ``0:01:30.5``."""

_MAX_ASPECT = 4  # of a pixel; files that declare more are taken to be wrong
_HD_HEIGHT = 576  # untagged colours of higher frames are BT.709, as in players
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
# FFmpeg's numbers of HDR transfer characteristics. Its swscale converts them, but takes seconds to begin and
# half a second per frame of 1080 lines; PyAV comes without the faster filter (zscale).
_HDR = {16: "PQ", 18: "HLG"}
_DEFAULT_RATE = Fraction(25)
_NUMBER = r"\d+(?:\.\d*)?|\.\d+|\d+/[1-9]\d*|\d+(?:\.\d+)?e[+-]?\d+"  # as floats and fractions print
_SEEK_BACK = 10  # seconds before the start of the range, if the last keyframe before it is too late
_RESET = 1  # seconds: a clock that goes back further was set back, and later times are shifted
_PYAV_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_PICTURES = ("jpeg_pipe", "png_pipe", "webp_pipe")  # formats that are read with Pillow
_OPTIONS = {
    "protocol_whitelist": "file",  # playlists may name URLs
    "correct_ts_overflow": "0",  # mistakes a clock that was set back for one that wrapped, 26 hours ahead
}


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What the file declares.

    Attributes:
        source: The file.
        container: FFmpeg's name of the file format.
        codec: FFmpeg's name of the video codec.
        width: In pixels, as coded: before rotation.
        height: In pixels, as coded.
        rate: Average frames per second, or None if unknown.
        duration: In seconds, or None if unknown; not verified.
        time_base: Unit of the timestamps in seconds.
        audio: Codecs of the audio streams.
    """

    source: str
    container: str
    codec: str
    width: int
    height: int
    rate: float | None
    duration: float | None
    time_base: Fraction
    audio: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClipFrame:
    """A frame of a clip.

    Attributes:
        index: Number of the frame, counted from 0 at the start of the range; a stride leaves gaps.
        time: Exact time in seconds from the beginning of the clip.
        duration: Seconds until the next frame that is read, or until the end.
        rgb: uint8 ``[H, W, 3]``, upright, with square pixels.
    """

    index: int
    time: Fraction
    duration: Fraction
    rgb: NDArray[np.uint8]


def seconds(value: Seconds) -> Fraction:
    """Return a time as an exact fraction; the float 0.1 becomes one tenth.

    >>> seconds("1:30.25")
    Fraction(361, 4)

    Raises:
        VideoError: If it is not a time, or negative.
    """
    text = str(value)
    match = re.fullmatch(rf"(?:(?:(\d+):)?([0-5]?\d):)?({_NUMBER})", text)
    if match is None or (match[2] is not None and Fraction(match[3]) >= 60):
        raise VideoError(f"a time is seconds, or [hours:]minutes:seconds. Received: {text!r}")
    return 3600 * Fraction(match[1] or 0) + 60 * Fraction(match[2] or 0) + Fraction(match[3])


class Clip:
    """A clip, or a range of it, that is read once.

    Args:
        path: The file. URLs are refused, also inside playlists: nothing is fetched from the network.
        start: Frames before this time are skipped.
        end: Frames from this time on are skipped.
        every: Read each n-th frame.
        fps: Read at most this many frames per second: the first in each interval of 1/fps seconds.
        max_pixels: Larger frames are refused.
        stop: When it is set, the clip ends at the next frame, also before the start of the range.

    Raises:
        VideoError: If the file is missing, is not a video, has no video stream, or an argument is out of
            range.
        MissingDependencyError: If the extra ``video`` is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        start: Seconds = 0,
        end: Seconds | None = None,
        every: int = 1,
        fps: float | Fraction | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        stop: threading.Event | None = None,
    ) -> None:
        if every < 1 or every % 1:
            raise VideoError(f"every is a whole number of frames from 1 on. Received: {every}")
        if fps is not None and (every != 1 or not 0 < fps < 1e6):
            raise VideoError(f"fps is above 0, and excludes every. Received: fps {fps}, every {every}")
        self._name = _checked(path)
        self._start = seconds(start)
        self._end = None if end is None else seconds(end)
        if self._end is not None and self._end <= self._start:
            raise VideoError(f"the range must end after it starts. Received: {start} to {end}")
        self._every = every
        self._fps = None if fps is None else Fraction(str(fps))
        self._max_pixels = max_pixels
        self._stop = stop
        self._closed = False
        self._notes: list[str] = []
        self._damaged = False
        self._broken = 0
        self._sound_end = Fraction(0)  # of the audio packets so far
        self._turn: tuple[int, bytes | None] | None = None
        with pyav_errors(f"cannot read {self._name}"), open_input(self._name) as container:
            stream = _video_stream(container, self._name)
            length, of_stream = _declared_length(container, stream)
            self._info = _describe(self._name, container, stream, length)
            self._zero = beginning(container)
            self._aspect = stream.sample_aspect_ratio
            read, *others = [
                f"#{one.index} ({_codec(one)}, {one.width} x {one.height})"
                for one in _video_streams(container)
            ]
            if others:
                self._notes.append(f"video stream {read} is read, not {', '.join(others)}")
            begin = _seconds(stream, stream.start_time) if of_stream else None
            delay = Fraction(0) if begin is None else begin - self._zero
            self._declared_end = None if length is None else delay + length
            self._stream_end = self._declared_end if of_stream else None
            # The length of a container is that of its longest stream, audio included, and often estimated.
            self._slack = Fraction(1, 2) if of_stream else max(Fraction(1), (length or 0) / Fraction(50))
        self._check_size(self._info.width, self._info.height)

    @property
    def info(self) -> ClipInfo:
        """What the file declares."""
        return self._info

    @property
    def start(self) -> Fraction:
        """Start of the range in seconds."""
        return self._start

    @property
    def end(self) -> Fraction | None:
        """End of the range, or the declared end of the clip if that is earlier; None if both are unknown."""
        return min((end for end in (self._end, self._declared_end) if end is not None), default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Defects of the part that was read: damage, missing times, changes of size, HDR."""
        return tuple(self._notes)

    @property
    def damaged(self) -> bool:
        """Whether a part of the clip could not be read so far."""
        return self._damaged

    @property
    def stopped(self) -> bool:
        """Whether :meth:`close` was called or ``stop`` is set."""
        return self._closed or (self._stop is not None and self._stop.is_set())

    def close(self) -> None:
        """End the clip at the next frame; may be called from another thread."""
        self._closed = True

    def frames(self) -> Iterator[ClipFrame]:
        """Yield the frames in display order, the last one included.

        Raises:
            VideoError: If no frame can be decoded or none lies in the range, unless the clip was stopped.
            ImageError: If the file is a picture that cannot be decoded.
        """
        with pyav_errors(f"cannot read {self._name}"):
            yield from self._frames()

    def _frames(self) -> Iterator[ClipFrame]:
        held: ClipFrame | None = None  # until its duration is known
        size: tuple[int, int] | None = None
        changed = False
        tick = -1
        after = self._start
        for index, (time, after, frame) in enumerate(self._in_range()):  # noqa: B007
            wanted = index % self._every == 0
            if self._fps is not None:
                now = int((time - self._start) * self._fps)
                wanted, tick = now != tick, now
            if wanted:
                if held is not None:
                    yield replace(held, duration=time - held.time)
                self._note_hdr(frame)
                held = ClipFrame(index, time, Fraction(0), self._upright(frame))
                height, width = held.rgb.shape[:2]
                size = size or (width, height)
                if size != (width, height) and not changed:
                    changed = True
                    self._notes.append(
                        f"frames change from {size[0]} x {size[1]} to {width} x {height} pixels "
                        f"at {float(time):.3f} s"
                    )
            if self.stopped:
                break
        if self._broken:
            self._note_damage(f"{self._broken} frames are damaged")
        if held is not None:
            yield replace(held, duration=max(Fraction(0), after - held.time))

    def _in_range(self) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """Yield the frames of the range with their start and end times."""
        found = False
        last: Fraction | None = None
        for time, after, frame in self._timed():
            if self._end is not None and time >= self._end:
                break
            last = after
            if time >= self._start:
                found = True
                self._broken += frame.is_corrupt
                yield time, after if self._end is None else min(after, self._end), frame
        if self.stopped:
            return
        if last is None:
            raise VideoError(f"no frame of {self._name} could be decoded: it is damaged or cut off")
        if not found:
            to = "on" if self._end is None else f"to {float(self._end):g} s"
            raise VideoError(
                f"{self._name} has no frame from {float(self._start):g} s {to}; "
                f"the last one before ends at {float(last):g} s"
            )

    def _timed(self) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """Yield frames, from the start of the range or a little earlier, with start and end times."""
        time: Fraction | None = None
        step = 1 / (Fraction(self._info.rate) if self._info.rate else _DEFAULT_RATE)
        offset = -self._zero
        counted = backward = 0
        after = Fraction(0)
        for frame in self._decoded():
            previous = time
            unit = frame.time_base or self._info.time_base
            step = frame.duration * unit if frame.duration > 0 else step
            stamp = frame.dts if frame.pts is None else frame.pts
            if stamp is None:
                counted += 1
                time = Fraction(0) if previous is None else previous + step
            else:
                time = stamp * unit + offset
                if previous is not None and time <= previous:
                    backward += 1
                    if time < previous - _RESET:
                        offset += previous + step - time
                    time = previous + step
                elif previous is not None and frame.duration <= 0:
                    step = time - previous
            after = time + step
            if self._stream_end is not None and time < self._stream_end:
                after = min(after, self._stream_end)
            yield time, after, frame
        if counted:
            self._notes.append(
                f"{counted} frames have no timestamp; their times assume {float(1 / step):g} frames/s"
            )
        if backward:
            self._notes.append(
                f"{backward} frames have a timestamp not after the one before; their times are estimated"
            )
        if not self.stopped:
            self._check_end(after)

    def _check_end(self, after: Fraction) -> None:
        """Note if the frames end, at ``after`` seconds, before the declared end of the clip."""
        if self._declared_end is None or after >= self._declared_end - self._slack:
            return
        declared = f"{float(self._declared_end):.2f} s"
        if self._stream_end is None and self._sound_end >= self._declared_end - self._slack:
            self._notes.append(f"the pictures end after {float(after):.2f} s, the clip after {declared}")
        else:
            self._note_damage(
                f"the clip declares {declared} and ends after {float(after):.2f} s: it is cut off or damaged"
            )

    def _decoded(self) -> Iterator[VideoFrame]:
        """Yield decoded frames, from the start of the range or a little earlier."""
        places = (self._start, self._start - _SEEK_BACK, None) if self._start else (None,)
        for place in places:
            found = False
            for frame in self._decoded_from(place):
                found = True
                yield frame
            if found or self.stopped:
                return

    def _decoded_from(self, place: Fraction | None) -> Iterator[VideoFrame]:
        """Yield decoded frames from the last keyframe before ``place``, or from the beginning.

        No frame is yielded if seeking fails or leads to a keyframe after the start of the range.
        """
        import av

        with open_input(self._name) as container:
            if container.format.name in _PICTURES:
                yield from _pictures(self._name, self._max_pixels)
                return
            stream = _video_stream(container, self._name)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            if place is not None and stream.time_base:
                if container.format.name == "mpeg":
                    return  # after seeking in a program stream, times are wrong until the next timestamp
                try:
                    container.seek(int((place + self._zero) / stream.time_base), stream=stream)
                except av.FFmpegError:
                    return
            found = place is None
            last = -1 if place is None else None
            for packet in self._packets(container, stream):
                if self.stopped:
                    return
                try:
                    frames = stream.decode(packet)
                except av.FFmpegError:
                    self._broken += found
                    continue
                for frame in frames:
                    if container.format.name == "avi":
                        # AVI has decoding times only, one per frame: a decoder that reorders frames outputs
                        # each one with the packet that is so many frames later, and the last ones with none.
                        if frame.dts is not None:
                            last = frame.dts - stream.codec_context.reorder_depth
                        elif last is not None:
                            last += 1
                        frame.pts = last
                    if not found:
                        # Frames before the first keyframe refer to frames that were not decoded.
                        time = _seconds(stream, frame.pts)
                        if time is None or time - self._zero > self._start:
                            return
                        if not frame.key_frame:
                            continue
                        found = True
                    yield frame

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[Packet[VideoStream] | None]:
        """Yield the packets of a stream; after a read error None, which flushes the decoder."""
        import av

        try:
            for packet in container.demux(stream, *container.streams.audio):
                if packet.stream.type == "video":
                    yield cast("Packet[VideoStream]", packet)
                elif (end := _seconds(packet.stream, packet.pts or packet.dts)) is not None:
                    self._sound_end = max(self._sound_end, end - self._zero)
        except av.FFmpegError as error:
            self._note_damage(f"the clip cannot be read to its end: {error.strerror}")
            yield None

    def _note_damage(self, note: str) -> None:
        self._damaged = True
        self._notes.append(note)

    def _note_hdr(self, frame: VideoFrame) -> None:
        kind = _HDR.get(frame.color_trc)
        note = (
            f"frames are HDR ({kind}) and were read as SDR, with less contrast than in players; "
            "convert the clip to SDR for comparable results"
        )
        if kind and note not in self._notes:
            self._notes.append(note)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise VideoError(
                f"{self._name} has frames of {width} x {height} pixels, more than the limit of "
                f"{self._max_pixels / 1e6:.3g} million; "
                "shrink them, or raise the limit (max_pixels, --max-pixels; of a server --pixels)"
            )

    def _upright(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return the RGB picture as players show it: converted colours, square pixels, rotated."""
        self._check_size(frame.width, frame.height)
        width, height = _square_pixels(frame.width, frame.height, self._aspect)
        untagged = frame.colorspace == _UNSPECIFIED and frame.height > _HD_HEIGHT
        picture = frame.reformat(
            width=width,
            height=height,
            format="rgb24",
            src_colorspace="ITU709" if untagged else None,
        ).to_ndarray()
        if self._turn is None or self._turn[0] != frame.rotation:
            # Only on a change: reading its side data puts PyAV's frame into a reference cycle, so that it
            # stays in memory until the garbage collector runs.
            self._turn = frame.rotation, _display_matrix(frame)
        rgb = np.asarray(picture, np.uint8)
        return rgb if self._turn[1] is None else turned(rgb, self._turn[1])


def _pictures(path: str, max_pixels: int) -> Iterator[VideoFrame]:
    """Yield the frames of a picture, read with Pillow: unlike FFmpeg it decodes animated WebP."""
    import av

    stamp = 0
    for rgb, duration in load_frames(path, max_pixels=max_pixels):
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.time_base, frame.pts, frame.duration = Fraction(1, 1000), stamp, duration
        stamp += duration
        yield frame


def _display_matrix(frame: VideoFrame) -> bytes | None:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know a kind of side data, such as EXIF; the angle is still there
        cos, sin = (round(65536 * part(math.radians(frame.rotation))) for part in (math.cos, math.sin))
        return struct.pack("=9i", cos, -sin, 0, sin, cos, 0, 0, 0, 1 << 30)
    return None if matrix is None else bytes(cast(Any, matrix))


def turned(rgb: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Return the picture rotated by quarter turns and mirrored as a display matrix says.

    Args:
        rgb: uint8 ``[H, W, 3]``.
        matrix: Nine int32: a b u, c d v, x y w. The pixel at x, y is shown at a x + c y, b x + d y. Other
            angles are rounded to the nearest quarter turn.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    if abs(b) > abs(a):
        rgb, across, down = rgb.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    if across < 0:
        rgb = rgb[:, ::-1]
    if down < 0:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


@contextlib.contextmanager
def pyav_errors(action: str, kind: type[FerkitError] = VideoError) -> Iterator[None]:
    """Turn each exception of PyAV within the block into a one-line error.

    PyAV raises FFmpegError where FFmpeg fails, and errors of Python for values that it does not know.

    ``action`` is what failed, such as ``cannot read FILE``; ``kind`` is the class of the error.
    """
    av: Any = require("av", "video")
    try:
        yield
    except (av.FFmpegError, *_PYAV_ERRORS) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__} in PyAV: {error}"
        raise kind(f"{action}: {reason}") from error


def open_input(path: str) -> InputContainer:
    """Open a file with PyAV.

    Raises:
        VideoError: If FFmpeg cannot read it.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    av: Any = require("av", "video")
    try:
        container: InputContainer = av.open(path, options=dict(_OPTIONS), metadata_errors="replace")
    except av.FFmpegError as error:
        with Path(path).open("rb") as file:
            head = file.read(12)
        reason = "it is not a video, or damaged"
        if not head:
            reason = "it is empty"
        elif head[4:8] == b"ftyp":
            reason = "its index is missing: it was cut off, or is still being written"
        raise VideoError(f"cannot read {path}: {reason} ({error.strerror})") from error
    return container


def _checked(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of an existing file."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise VideoError(f"a clip is given by its path. Received: {type(name).__name__}")
    if is_url(name):
        name = re.sub("^([a-z]+):/+", r"\1://", name)  # a Path drops one /
        raise VideoError(f"{name} is a URL, and nothing is fetched from the network; download it first")
    try:
        if Path(name).is_dir():
            raise VideoError(f"{name} is a folder, not a clip")
        if not Path(name).is_file():
            raise VideoError(f"no file {name}")
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    # FFmpeg takes "name:" at the beginning of a relative path for a protocol.
    return str(Path(name).absolute())


def _video_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams without cover pictures: the default one first, then by size and bit rate."""
    from av.stream import Disposition

    def rank(stream: VideoStream) -> tuple[bool, int, int]:
        is_default = bool(stream.disposition & Disposition.default)
        return is_default, stream.width * stream.height, stream.bit_rate or 0

    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None
    ]
    return sorted(streams, key=rank, reverse=True)


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """Return the video stream to read."""
    streams = _video_streams(container)
    if streams:
        return streams[0]
    others = ", ".join(f"{stream.type} ({_codec(stream)})" for stream in container.streams) or "nothing"
    raise VideoError(f"{name} has no video stream; it holds: {others}")


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return "unknown" if context is None else str(context.name)


def _describe(name: str, container: InputContainer, stream: VideoStream, length: Fraction | None) -> ClipInfo:
    rate = stream.average_rate or stream.guessed_rate
    return ClipInfo(
        source=name,
        container=container.format.name,
        codec=_codec(stream),
        width=stream.width,
        height=stream.height,
        rate=float(rate) if rate else None,
        duration=float(length) if length is not None and length > 0 else None,
        time_base=stream.time_base or Fraction(1, 90_000),
        audio=tuple(_codec(audio) for audio in container.streams.audio),
    )


def beginning(container: InputContainer) -> Fraction:
    """Return the timestamp in seconds at which a clip begins; that of broadcasts is not 0."""
    streams = (*container.streams.video, *container.streams.audio)
    times = (_seconds(stream, stream.start_time) for stream in streams)
    return min((time for time in times if time is not None), default=Fraction(0))


def _seconds(stream: Any, stamp: int | None) -> Fraction | None:
    """Return a timestamp, or a duration, of a stream in seconds."""
    return None if stamp is None or stream.time_base is None else stamp * stream.time_base


def _declared_length(container: InputContainer, stream: VideoStream) -> tuple[Fraction | None, bool]:
    """Return the declared length in seconds, and whether it is that of the video stream itself."""
    length = _seconds(stream, stream.duration)
    if length is None and container.duration is not None:
        return Fraction(container.duration, 1_000_000), False
    return length, length is not None


def _square_pixels(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return the enlarged size at which pixels are square."""
    if not aspect or aspect == 1 or not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
