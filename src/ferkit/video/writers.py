"""The encoder of annotated clips: pictures at their own times, with the sound of the source."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import OutputError, VideoError
from ferkit.core.extras import require
from ferkit.recognize.drawing import draw_faces
from ferkit.video.clip import beginning, open_input, pyav_errors
from ferkit.video.recognition import FrameResult

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONTAINERS = (".mp4", ".mov", ".mkv")
"""Suffixes that an annotated clip can have."""

_ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "libopenh264": {"b": "6M"},
    "mpeg4": {"b": "6M"},
}
"""The first of these that FFmpeg was built with encodes the pictures.

Without B-frames: pictures are then stored in the order of their times, and each has its own duration.
"""

_COPIED = {
    "aac",
    "mp3",
    "ac3",
    "eac3",
    "alac",
    "opus",
    "flac",
}  # what players know, where a container takes it
_JITTER = Fraction(1, 20)  # second by which times of sound may be off without meaning anything
_BT709, _LIMITED = 1, 1  # FFmpeg's AVCOL_SPC_BT709 and its like, AVCOL_RANGE_MPEG


def draw_frame(rgb: NDArray[np.uint8], frame: FrameResult) -> NDArray[np.uint8]:
    """Return a copy of a frame with the box, the track number and the label of each face."""
    # Sorted by track, not by score: labels then keep their positions from frame to frame.
    faces = sorted(frame.faces, key=lambda face: (face.track is None, face.track))
    prefixes = ["" if face.track is None else f"{face.track}  " for face in faces]
    return draw_faces(rgb, [face.face for face in faces], prefixes=prefixes, landmarks=False)


class ClipWriter:
    """Writes a clip of pictures with their own times, and the audio of the source clip.

    Used as a context manager. Leaving it, also by an error or an interrupt, completes the file, so that it
    can be played.

    Args:
        path: The new clip; its suffix is one of :data:`CONTAINERS`.
        source: The clip with the audio; None: no audio.
        start: Time of the source at which the new clip begins.
        time_base: Unit of the timestamps in seconds.
        name: Name in error messages; by default the path.

    Raises:
        OutputError: If the suffix is not one of these.
        MissingDependencyError: If the extra ``video`` is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        source: str | None = None,
        start: Fraction = Fraction(0),
        time_base: Fraction = Fraction(1, 90_000),
        name: str | os.PathLike[str] | None = None,
    ) -> None:
        av: Any = require("av", "video")
        self._name = os.fspath(path if name is None else name)
        if Path(path).suffix.lower() not in CONTAINERS:
            raise OutputError(
                f"a clip is written as {', '.join(CONTAINERS)}. "
                f"Received the suffix: {Path(path).suffix or 'none'}"
            )
        self._start = start
        self._time_base = time_base
        self._size: tuple[int, int] | None = None
        self._last = -1
        self._durations: dict[int, int] = {}
        # MP4 rounds the start of a stream to this unit, by default a millisecond.
        unit = {} if Path(path).suffix.lower() == ".mkv" else {"movie_timescale": str(time_base.denominator)}
        with self._errors():
            self._container: OutputContainer = av.open(str(Path(path).absolute()), "w", options=unit)
            encoder = next(name for name in _ENCODERS if name in av.codecs_available)
            stream: VideoStream = self._container.add_stream(encoder, rate=30, options=_ENCODERS[encoder])
            self._stream = stream
            self._sound = None if source is None else _Sound(source, self._container, start)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file."""
        try:
            with self._errors():
                if self._size is not None:
                    self._mux(self._stream.encode(None))
                    if self._sound is not None:
                        self._sound.close()
                self._container.close()
        except OutputError:
            if error is None:
                raise

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return pyav_errors(f"cannot write {self._name}", OutputError)

    def write(self, rgb: NDArray[np.uint8], time: Fraction, duration: Fraction) -> None:
        """Write a picture, and the audio until its end.

        Args:
            rgb: uint8 ``[H, W, 3]``; a picture of another size than the first is fitted into it.
            time: In seconds of the source.
            duration: In seconds.

        Raises:
            OutputError: If the file cannot be written, or the container does not accept the data.
        """
        stamp = max(self._last + 1, round((time - self._start) / self._time_base))
        self._last = stamp
        self._durations[stamp] = max(1, round(duration / self._time_base))
        with self._errors():
            if self._size is None:
                self._begin(rgb)
            frame = self._frame(rgb)
            frame.pts, frame.time_base = stamp, self._time_base
            self._mux(self._stream.encode(frame))
            if self._sound is not None:
                self._sound.write_until(time + duration)

    def finish_sound(self) -> None:
        """Write the rest of the audio after the last picture.

        Raises:
            OutputError: See :meth:`write`.
        """
        with self._errors():
            if self._sound is not None:
                self._sound.write_until(None)

    def _begin(self, rgb: NDArray[np.uint8]) -> None:
        height, width = rgb.shape[:2]
        self._size = width, height
        context = self._stream.codec_context
        # Colours have half the resolution, so both sides must be even.
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED

    def _frame(self, rgb: NDArray[np.uint8]) -> VideoFrame:
        import av
        import cv2

        assert self._size is not None
        width, height = self._size
        if rgb.shape[:2] != (height, width):
            rgb = _fitted(rgb, width, height)
        if width % 2 or height % 2:
            rgb = np.asarray(
                cv2.copyMakeBorder(rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")

    def _mux(self, packets: list[Packet[Any]]) -> None:
        for packet in packets:
            if packet.pts is not None:
                packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)


def _fitted(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return a picture scaled to fit into a size, with black bars."""
    import cv2

    scale = min(width / rgb.shape[1], height / rgb.shape[0])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    fitted = np.zeros((height, width, 3), np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted[top : top + size[1], left : left + size[0]] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return fitted


@dataclass(slots=True)
class _Route:
    """The state of one audio stream."""

    out: AudioStream  # the output stream
    copied: bool  # whether packets are copied; otherwise the audio is encoded again
    end: int | None = None  # end of the written audio, in units of the packets, or in samples
    last: int | None = None  # timestamp of the last packet
    shift: int = 0  # added to the timestamps after the clock of the source was set back, in their units
    form: tuple[str, str, int] | None = None  # format, channel layout and sample rate of the decoded audio
    resampler: AudioResampler | None = None  # from that form to the encoder's


class _Sound:
    """Transfers the audio of a clip: copied where the container and players support it, else as AAC.

    It reads the source by itself, up to the time of the last picture, so that nothing queues up.
    """

    def __init__(self, source: str, target: OutputContainer, start: Fraction) -> None:
        import av

        self._failures = av.FFmpegError
        self._invalid = av.error.InvalidDataError
        self._target = target
        self._start = start
        self._container = open_input(source)
        self._zero = beginning(self._container)
        self._routes: dict[int, _Route] = {}
        for stream in self._container.streams.audio:
            if stream.codec_context is None or not stream.codec_context.sample_rate:
                continue
            copied = _is_copied(stream, target)
            if copied:
                out = target.add_stream_from_template(stream)
            else:
                out = target.add_stream("aac", rate=_aac_rate(stream.codec_context.sample_rate))
                out.codec_context.layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            self._routes[stream.index] = _Route(out, copied)
        self._packets = self._demux()
        self._held = self._next()

    def write_until(self, time: Fraction | None) -> None:
        """Write the audio before ``time``; None: all the rest."""
        while self._held is not None:
            begins = self._begins(self._held)
            if time is not None and begins is not None and begins >= time:
                return
            if begins is None or begins >= self._start or not self._start:
                route = self._routes[self._held.stream.index]
                if route.copied:
                    self._copy(self._held, route)
                else:
                    self._encode(self._held, route)
            self._held = self._next()

    def close(self) -> None:
        """Flush the encoders and close the source."""
        for route in self._routes.values():
            if not route.copied and route.out.codec_context.is_open:
                self._target.mux(route.out.encode(None))
        self._container.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        streams = [self._container.streams[index] for index in self._routes]
        if not streams:
            return
        if self._start:
            self._container.seek(int((self._start + self._zero) * 1_000_000))
        yield from self._container.demux(streams)

    def _next(self) -> Packet[Any] | None:
        try:
            with pyav_errors("cannot read the audio"):
                return next(self._packets, None)
        except VideoError:
            return None  # the audio ends where the source is damaged; the clip's notes say so

    def _begins(self, packet: Packet[Any]) -> Fraction | None:
        stamp = packet.dts if packet.pts is None else packet.pts
        return None if stamp is None else stamp * packet.time_base - self._zero

    def _copy(self, packet: Packet[Any], route: _Route) -> None:
        if packet.dts is None or packet.pts is None:
            return
        ahead = max(0, packet.pts - packet.dts)
        stamp = packet.dts - round((self._start + self._zero) / packet.time_base) + route.shift
        if route.end is not None and stamp < route.end - round(_JITTER / packet.time_base):
            route.shift += route.end - stamp
            stamp = route.end
        stamp = stamp if route.last is None else max(stamp, route.last + 1)
        route.last = stamp
        route.end = stamp + (packet.duration or 1)
        packet.dts, packet.pts, packet.stream = stamp, stamp + ahead, route.out
        try:
            self._target.mux(packet)
        except self._invalid:
            return  # skip a damaged packet

    def _encode(self, packet: Packet[Any], route: _Route) -> None:
        try:
            frames = [
                resampled
                for frame in cast("list[AudioFrame]", packet.decode())
                for resampled in _resampled(frame, route)
            ]
        except self._failures:
            return  # skip a damaged packet
        for frame in frames:
            stamp = route.end or 0
            if frame.pts is not None and frame.time_base is not None:
                time = frame.pts * frame.time_base - self._zero - self._start
                # Samples are contiguous, however their times are rounded; only real gaps remain.
                if route.end is None or round((time - _JITTER) * frame.sample_rate) > route.end:
                    stamp = round(time * frame.sample_rate)
            route.end = stamp + frame.samples
            frame.pts, frame.time_base = stamp, Fraction(1, frame.sample_rate)
            self._target.mux(route.out.encode(frame))


def _is_copied(stream: AudioStream, target: OutputContainer) -> bool:
    """Return whether packets can be copied: whether players and the container support the codec.

    FFmpeg's list of supported codecs is not enough (MP4 takes MP3 only from 16 kHz on, MOV is listed with
    FLAC), so a trial file is begun. Its header comes first, so that damaged codec data fail here.
    """
    import av

    name = stream.codec_context.codec.canonical_name
    if name not in _COPIED or name not in target.supported_codecs:
        return False
    try:
        early = {"movflags": "empty_moov"} if target.format.name in ("mp4", "mov") else {}
        with av.open(io.BytesIO(), "w", format=target.format.name, options=early) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except av.FFmpegError:
        return False
    return True


def _aac_rate(rate: int) -> int:
    """Return the lowest sample rate of AAC that loses nothing, or else the highest."""
    import av

    rates = av.Codec("aac", "w").audio_rates or [rate]
    return min((known for known in rates if known >= rate), default=max(rates))


def _resampled(frame: AudioFrame, route: _Route) -> list[AudioFrame]:
    """Return a frame in the encoder's form; the source may change its form midway."""
    import av

    form = frame.format.name, frame.layout.name, frame.sample_rate
    if route.resampler is None or route.form != form:
        context = route.out.codec_context
        route.form, route.resampler = form, av.AudioResampler("fltp", context.layout, context.sample_rate)
    return route.resampler.resample(frame)
