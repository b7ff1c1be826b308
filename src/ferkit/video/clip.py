"""Reading clips with PyAV: upright frames, their exact times, and a word about what is wrong."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import VideoError
from ferkit.core.extras import require
from ferkit.core.images import DEFAULT_MAX_PIXELS, is_url

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Seconds: TypeAlias = "int | float | str | Fraction"
"""A time: a number, or text like ``90``, ``1:30`` or ``0:01:30.5``."""

_WIDEST_PIXEL = 4  # times as wide as high, or the other way round; beyond it the file is taken to be wrong
_HD_HEIGHT = 576  # above it, colours without a tag are taken for BT.709, as players do
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
# Transfer characteristics of high dynamic range by FFmpeg's numbers. Its swscale can convert them, but takes
# many seconds to begin and half a one per frame of 1080 lines; PyAV comes without faster filters (zscale).
_HDR = {16: "PQ", 18: "HLG"}
_DEFAULT_RATE = Fraction(25)
# A number, also as floats and fractions print themselves.
_NUMBER = r"\d+(?:\.\d*)?|\.\d+|\d+/[1-9]\d*|\d+(?:\.\d+)?e[+-]?\d+"
_SET_BACK = 1  # second by which the clock of a clip must go back to have been set, and not to be wrong once
_OPTIONS = {
    "protocol_whitelist": "file",  # a playlist may name anything
    "correct_ts_overflow": "0",  # it takes a clock that was set back for one that ran over, 26 hours ahead
}


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a clip says about itself.

    Attributes:
        source: The file.
        codec: Of the video, by FFmpeg's name.
        width: In pixels, as coded: not turned yet.
        height: In pixels, as coded.
        rate: Frames per second on average, or None if it is not known.
        duration: In seconds, or None if it is not known; what the file declares, true or not.
        time_base: The unit of the clip's timestamps in seconds.
        audio: Codecs of the audio streams.
    """

    source: str
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
        index: Its number among the frames from the start of the range on, from 0, with those that a stride
            leaves out.
        time: Its time in seconds from the beginning of the clip, exact.
        duration: Seconds until the next frame that is taken, or until the end.
        rgb: uint8 ``[H, W, 3]``, upright, with square pixels.
    """

    index: int
    time: Fraction
    duration: Fraction
    rgb: NDArray[np.uint8]


def seconds(value: Seconds) -> Fraction:
    """Return a time exactly: the float 0.1 is meant as one tenth.

    >>> seconds("1:30.25")
    Fraction(361, 4)

    Raises:
        VideoError: If it is no time, or negative.
    """
    text = str(value)
    match = re.fullmatch(rf"(?:(?:(\d+):)?([0-5]?\d):)?({_NUMBER})", text)
    if match is None or (match[2] is not None and Fraction(match[3]) >= 60):
        raise VideoError(f"a time is seconds, or [hours:]minutes:seconds. Received: {text!r}")
    return 3600 * Fraction(match[1] or 0) + 60 * Fraction(match[2] or 0) + Fraction(match[3])


class Clip:
    """A clip that is read from beginning to end, or in a range, once.

    Args:
        path: The file. URLs are refused, also inside playlists: nothing is fetched from the network.
        start: Frames before this time are left out.
        end: Frames from this time on are left out.
        every: Take each n-th frame.
        fps: Take at most so many frames a second: the first in each of the equal steps of time.
        max_pixels: Larger frames are refused.
        stop: When it is set, the clip ends at the next frame, also before the start of the range.

    Raises:
        VideoError: If there is no such file, it is no video or has no video stream, or an argument is out of
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
        if every < 1:
            raise VideoError(f"a stride is 1 frame or more. Received: {every}")
        if fps is not None and (every != 1 or not 0 < fps < 1e6):
            raise VideoError(f"fps is above 0, and takes the place of a stride. Received: {fps}")
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
        self._changed = self._damaged = self._hdr = False
        self._broken = 0
        self._turn: tuple[int, bytes | None] | None = None
        with open_input(self._name) as container:
            stream = _video_stream(container, self._name)
            self._info = _describe(self._name, container, stream)
            self._zero = beginning(container)
            self._aspect = stream.sample_aspect_ratio
            self._exact_end = _stream_end(stream, self._zero)
            self._declared_end, self._slack = _declared_end(container, self._exact_end)
        self._check_size(self._info.width, self._info.height)

    @property
    def info(self) -> ClipInfo:
        """What the clip says about itself."""
        return self._info

    @property
    def start(self) -> Fraction:
        """Where the range starts."""
        return self._start

    @property
    def end(self) -> Fraction | None:
        """Where the range ends, or the clip by its own word if that is earlier; None if neither is known."""
        known = [end for end in (self._end, self._declared_end) if end is not None]
        return min(known, default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about the clip, as far as it has been read: damage, missing times, changes, HDR."""
        return tuple(self._notes)

    @property
    def damaged(self) -> bool:
        """Whether a part of the clip could not be read, as far as it has been."""
        return self._damaged

    @property
    def stopped(self) -> bool:
        """Whether the clip was told to end."""
        return self._closed or (self._stop is not None and self._stop.is_set())

    def close(self) -> None:
        """End the clip at the next frame; another thread may be reading it."""
        self._closed = True

    def frames(self) -> Iterator[ClipFrame]:
        """Yield the frames in the order in which they are shown; the last one as well.

        Raises:
            VideoError: If no frame can be decoded, or none lies in the range, unless it was told to end.
        """
        held: ClipFrame | None = None
        size: tuple[int, int] | None = None
        tick = -1
        after = self._start
        for index, (time, end, frame) in enumerate(self._in_range()):
            after = end
            wanted = index % self._every == 0
            if self._fps is not None:
                now = int((time - self._start) * self._fps)
                wanted, tick = now != tick, now
            if wanted:
                if held is not None:
                    yield _lasting(held, time)
                self._remark_hdr(frame)
                held = ClipFrame(index, time, Fraction(0), self._upright(frame))
                height, width = held.rgb.shape[:2]
                if size is None:
                    size = width, height
                elif size != (width, height) and not self._changed:
                    self._changed = True
                    self._notes.append(
                        f"frames change from {size[0]} x {size[1]} to {width} x {height} pixels "
                        f"at {float(time):.3f} s"
                    )
            if self.stopped:
                break
        if self._broken:
            self._damage(f"{self._broken} frames are damaged")
        if held is not None:
            yield _lasting(held, after)

    def _in_range(self) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """Yield the frames of the range with their time, and the time when they end."""
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
        """Yield frames from the start of the range, or somewhat before, with time and end."""
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
                    if time < previous - _SET_BACK:
                        offset += previous + step - time
                    time = previous + step
                elif previous is not None and frame.duration <= 0:
                    step = time - previous
            after = time + step
            if self._exact_end is not None and time < self._exact_end:
                after = min(after, self._exact_end)
            yield time, after, frame
        if counted:
            self._notes.append(
                f"{counted} frames carry no time; they were counted at {float(1 / step):g} a second"
            )
        if backward:
            self._notes.append(
                f"{backward} frames carry no later time than the one before; they were counted on"
            )
        if self._declared_end is not None and after < self._declared_end - self._slack and not self.stopped:
            if self._exact_end is None and self._goes_on_until(after) >= self._declared_end - self._slack:
                self._notes.append(
                    f"the pictures end after {float(after):.2f} s, the clip after "
                    f"{float(self._declared_end):.2f} s"
                )
                return
            self._damage(
                f"the clip declares {float(self._declared_end):.2f} s and ends after {float(after):.2f} s: "
                "it is cut off or damaged"
            )

    def _goes_on_until(self, place: Fraction) -> Fraction:
        """Return when the last packet of sound after ``place`` ends."""
        import av

        last = place
        with open_input(self._name) as container:
            with contextlib.suppress(av.FFmpegError):  # What cannot be sought is read from its beginning.
                container.seek(int((place + self._zero) * 1_000_000))
            with contextlib.suppress(av.FFmpegError):
                for packet in container.demux():
                    if self.stopped:
                        break
                    stamp = packet.dts if packet.pts is None else packet.pts
                    if stamp is not None and packet.stream.type == "audio":
                        end = (stamp + (packet.duration or 0)) * packet.time_base - self._zero
                        last = max(last, end)
        return last

    def _decoded(self) -> Iterator[VideoFrame]:
        """Yield decoded frames, from a little before the start of the range."""
        if self._start:
            found = False
            for frame in self._decoded_from(self._start):
                if not found:
                    stamp = frame.pts
                    if stamp is None or stamp * (frame.time_base or 0) - self._zero > self._start:
                        break  # the container led past the place: all is read from the beginning
                    found = True
                yield frame
            if found:
                return
        yield from self._decoded_from(None)

    def _decoded_from(self, place: Fraction | None) -> Iterator[VideoFrame]:
        import av

        with open_input(self._name) as container:
            stream = _video_stream(container, self._name)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            if place is not None and stream.time_base:
                try:
                    container.seek(int((place + self._zero) / stream.time_base), stream=stream)
                except av.FFmpegError:
                    return
            # AVI has no times of its own: packets have one each, in the order in which they are decoded, and
            # the frames have the same ones in the order in which they are shown.
            avi = container.format.name == "avi"
            stamps: list[int] = []
            for packet in self._packets(container, stream):
                if self.stopped:
                    return
                try:
                    frames = stream.decode(packet)
                except av.FFmpegError:
                    self._broken += 1
                    continue
                if avi and packet is not None and packet.dts is not None:
                    heapq.heappush(stamps, packet.dts)
                for frame in frames:
                    if stamps:
                        frame.pts = heapq.heappop(stamps)
                    yield frame

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[Packet[VideoStream] | None]:
        """Yield the packets of a stream; where it cannot be read on, None, which empties the decoder."""
        import av

        try:
            yield from container.demux(stream)
        except av.FFmpegError as error:
            self._damage(f"the clip cannot be read to its end: {error.strerror}")
            yield None

    def _damage(self, note: str) -> None:
        self._damaged = True
        self._notes.append(note)

    def _remark_hdr(self, frame: VideoFrame) -> None:
        """Say once that a frame of high dynamic range is read as if it were none."""
        kind = _HDR.get(frame.color_trc)
        if kind and not self._hdr:
            self._hdr = True
            self._notes.append(
                f"frames are HDR ({kind}) and were read as if they were not: with less contrast than players "
                "show; convert the clip to SDR for results like those of other clips"
            )

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise VideoError(
                f"{self._name} has frames of {width} x {height} pixels, more than the limit of "
                f"{self._max_pixels / 1e6:.3g} million; "
                "shrink them, or allow more by max_pixels (--max-pixels of `ferkit video`)"
            )

    def _upright(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return the picture as players show it: colours, square pixels, turned."""
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
            # Only now and then: PyAV ties a frame whose side data were looked at into a cycle, so that it
            # would stay until the garbage collector comes.
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self._turn = frame.rotation, None if matrix is None else bytes(cast(Any, matrix))
        rgb = np.asarray(picture, np.uint8)
        return rgb if self._turn[1] is None else turned(rgb, self._turn[1])


def turned(rgb: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Return the picture after a display matrix: turned by quarters and mirrored.

    Args:
        rgb: uint8 ``[H, W, 3]``.
        matrix: Nine int32: a b u, c d v, x y w. The pixel at x, y is shown at a x + c y, b x + d y. Angles
            between the quarters are rounded to the nearest.
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


def open_input(path: str) -> InputContainer:
    """Open a file with PyAV.

    Raises:
        VideoError: If it is none that FFmpeg can read.
        MissingDependencyError: If the extra ``video`` is not installed.
    """
    av: Any = require("av", "video")
    try:
        container: InputContainer = av.open(path, options=dict(_OPTIONS), metadata_errors="replace")
    except av.FFmpegError as error:
        with Path(path).open("rb") as file:
            begins = file.read(12)
        hint = "it is no video, or damaged"
        if not begins:
            hint = "it is empty"
        elif begins[4:8] == b"ftyp":
            hint = "its index is missing: it was cut off, or is still being written"
        raise VideoError(f"cannot read {path}: {hint} ({error.strerror})") from error
    return container


def _checked(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not isinstance(name, str):
        raise VideoError(f"a clip is given by its path. Received: {type(name).__name__}")
    if is_url(name):
        raise VideoError(f"{name} is a URL, and nothing is fetched from the network; download it first")
    try:
        if Path(name).is_dir():
            raise VideoError(f"{name} is a folder, not a clip")
        if not Path(name).is_file():
            raise VideoError(f"no file {name}")
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    # With a folder before it, FFmpeg takes no part of a name for a protocol.
    return str(Path(name).absolute())


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """Return the video stream; a cover picture in a music file is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    others = ", ".join(f"{stream.type} ({_codec(stream)})" for stream in container.streams) or "nothing"
    raise VideoError(f"{name} has no video stream; it holds: {others}")


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return "unknown" if context is None else str(context.name)


def _describe(name: str, container: InputContainer, stream: VideoStream) -> ClipInfo:
    rate = stream.average_rate or stream.guessed_rate
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / 1e6
    return ClipInfo(
        source=name,
        codec=_codec(stream),
        width=stream.width,
        height=stream.height,
        rate=float(rate) if rate else None,
        duration=duration if duration is not None and duration > 0 else None,
        time_base=stream.time_base or Fraction(1, 90_000),
        audio=tuple(_codec(audio) for audio in container.streams.audio),
    )


def beginning(container: InputContainer) -> Fraction:
    """Return the time where the clip begins, in its own clock: that of broadcasts does not start at 0."""
    times = [
        stream.start_time * stream.time_base
        for stream in (*container.streams.video, *container.streams.audio)
        if stream.start_time is not None and stream.time_base is not None
    ]
    return min(times, default=Fraction(0))


def _stream_end(stream: VideoStream, zero: Fraction) -> Fraction | None:
    """Return when the video stream says that it ends."""
    if stream.duration is None or stream.time_base is None:
        return None
    begin = Fraction(0) if stream.start_time is None else stream.start_time * stream.time_base - zero
    return begin + stream.duration * stream.time_base


def _declared_end(container: InputContainer, stream_end: Fraction | None) -> tuple[Fraction | None, Fraction]:
    """Return when the clip says that it ends, and how much earlier it may end without a word."""
    if stream_end is not None:
        return stream_end, Fraction(1, 2)
    if container.duration is not None:
        # Of the longest stream, sound as well, and often an estimate.
        length = Fraction(container.duration, 1_000_000)
        return length, max(Fraction(1), length / 50)
    return None, Fraction(0)


def _square_pixels(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return the size at which pixels are as wide as high; nothing is made smaller."""
    if not aspect or aspect == 1 or not Fraction(1, _WIDEST_PIXEL) <= aspect <= _WIDEST_PIXEL:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _lasting(frame: ClipFrame, until: Fraction) -> ClipFrame:
    return ClipFrame(frame.index, frame.time, max(Fraction(0), until - frame.time), frame.rgb)
