"""The timeline of a clip: for each track the expressions over time, as numbers and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.extras import require
from ferkit.core.palette import palette
from ferkit.core.taxonomy import Taxonomy
from ferkit.recognize.results import UNCERTAIN, ByLabel
from ferkit.video.recognition import FrameResult

_FIRST_STEP = 1 / 16  # seconds of a step of the plot; doubled when there are too many steps
_MAX_STEPS = 1024
_MAX_ROWS = 12
_DPI = 120


@dataclass(frozen=True, slots=True)
class TrackSummary:
    """The expressions of one track.

    Attributes:
        track: Number of the track.
        first: Time of its first frame in seconds.
        last: End of its last frame.
        seconds: Total duration of its frames.
        frames: Number of its frames.
        label: The label with the longest duration.
        confidence: Mean of the largest probability, weighted by duration.
        by_label: Seconds of each label, ``uncertain`` last; they add up to ``seconds``.
        probabilities: Mean probability of each label, weighted by duration.
    """

    track: int
    first: float
    last: float
    seconds: float
    frames: int
    label: str
    confidence: float
    by_label: Mapping[str, float]
    probabilities: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "track": self.track,
            "first": self.first,
            "last": self.last,
            "seconds": self.seconds,
            "frames": self.frames,
            "label": self.label,
            "confidence": self.confidence,
            "seconds_by_label": dict(self.by_label),
            "probabilities": dict(self.probabilities),
        }


@dataclass(slots=True)
class _Sums:
    first: float
    labels: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    last: float = 0.0
    seconds: float = 0.0
    frames: int = 0
    confidence: float = 0.0
    steps: dict[int, NDArray[np.float64]] = field(default_factory=dict)


class Timeline:
    """Sums up frames as they come. Memory grows with the number of tracks, not with the length of the clip.

    Frames are weighted by their duration, so a stride or a variable frame rate does not bias the result.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._labels = (*taxonomy.labels, UNCERTAIN)
        self._sums: dict[int, _Sums] = {}
        self._step = _FIRST_STEP
        self._origin: float | None = None
        self.frames = 0
        """Number of frames so far."""
        self.seconds = 0.0
        """Their total duration."""
        self.faces = 0
        """Number of faces in them, including those without a track."""

    def add(self, frame: FrameResult) -> None:
        """Add the next frame."""
        self.frames += 1
        self.seconds += frame.duration
        self.faces += len(frame.faces)
        if self._origin is None:
            self._origin = frame.time
        while (frame.time - self._origin) / self._step >= _MAX_STEPS:
            self._double_step()
        step = int(max(0.0, frame.time - self._origin) / self._step)
        for tracked in frame.faces:
            if tracked.track is None:
                continue
            zeros = np.zeros(len(self._labels))
            sums = self._sums.setdefault(tracked.track, _Sums(frame.time, zeros, zeros[1:].copy()))
            values = np.fromiter(tracked.face.probabilities.values(), np.float64)
            sums.last = frame.time + frame.duration
            sums.seconds += frame.duration
            sums.frames += 1
            sums.confidence += tracked.confidence * frame.duration
            sums.labels[self._labels.index(tracked.label)] += frame.duration
            sums.probabilities += values * frame.duration
            weighted = np.append(values, 1) * max(frame.duration, 1e-9)
            sums.steps[step] = sums.steps.get(step, 0) + weighted

    def tracks(self) -> tuple[TrackSummary, ...]:
        """Return a summary of each track, the longest first."""
        found = [self._summary(track, sums) for track, sums in self._sums.items()]
        return tuple(sorted(found, key=lambda summary: (-summary.seconds, summary.track)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "frames": self.frames,
            "seconds": self.seconds,
            "taxonomy": self._taxonomy.id,
            "tracks": [summary.to_dict() for summary in self.tracks()],
        }

    def draw(self, path: Path, *, title: str = "") -> None:
        """Plot the twelve longest tracks over time into a file, whose suffix sets the format: png, svg, pdf.

        Raises:
            OSError: If the file cannot be written.
            MissingDependencyError: If Matplotlib is not installed.
        """
        self._figure(title).savefig(path, dpi=_DPI)

    def _double_step(self) -> None:
        self._step *= 2
        for sums in self._sums.values():
            doubled: dict[int, NDArray[np.float64]] = {}
            for step, values in sums.steps.items():
                doubled[step // 2] = doubled.get(step // 2, 0) + values
            sums.steps = doubled

    def _summary(self, track: int, sums: _Sums) -> TrackSummary:
        # The duration of a clip of a single frame may be 0.
        whole = sums.seconds or 1.0
        return TrackSummary(
            track=track,
            first=sums.first,
            last=sums.last,
            seconds=sums.seconds,
            frames=sums.frames,
            label=self._labels[int(np.argmax(sums.labels))],
            confidence=sums.confidence / whole,
            by_label=ByLabel(dict(zip(self._labels, sums.labels.tolist(), strict=True))),
            probabilities=ByLabel(
                dict(zip(self._taxonomy.labels, (sums.probabilities / whole).tolist(), strict=True))
            ),
        )

    def _figure(self, title: str) -> Any:
        require("matplotlib", "plot")
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        tracks = self.tracks()
        rows = tracks[:_MAX_ROWS]
        figure = Figure(figsize=(10, 1.6 + 1.1 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0]
        colours = [colour.hex for colour in palette(self._taxonomy.labels).values()]
        origin = self._origin or 0.0
        end = origin
        for axis, summary in zip(axes, rows, strict=False):
            end = max(end, summary.last)
            for times, shares in self._runs(self._sums[summary.track]):
                axis.stackplot(times, shares.T, colors=colours, linewidth=0)
            axis.set_ylim(0, 1)
            axis.set_yticks([0, 1], ["0", "1"])
            axis.set_ylabel(f"track {summary.track}", rotation=0, ha="right", va="center")
        if not rows:
            axes[0].text(0.5, 0.5, "no face", transform=axes[0].transAxes, ha="center", va="center")
            axes[0].set_yticks([])
        axes[-1].set_xlim(origin, max(end, origin + self.seconds, origin + self._step))
        axes[-1].set_xlabel("seconds")
        left_out = len(tracks) - len(rows)
        heading = title + (f" ({left_out} shorter tracks left out)" if left_out else "")
        # File names may contain dollars (mathematics to Matplotlib) and surrogates.
        figure.suptitle(heading.encode(errors="backslashreplace").decode(), parse_math=False)
        figure.legend(
            handles=[
                Patch(color=c, label=name) for c, name in zip(colours, self._taxonomy.labels, strict=True)
            ],
            loc="outside lower center",
            ncols=len(colours),
            frameon=False,
        )
        return figure

    def _runs(self, sums: _Sums) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return times and probabilities of each stretch without a gap."""
        steps = np.array(sorted(sums.steps))
        stretches = np.split(steps, np.flatnonzero(np.diff(steps) > self._gap(sums)) + 1)
        runs = []
        for stretch in stretches:
            totals = np.stack([sums.steps[step] for step in stretch.tolist()])
            shares = totals[:, :-1] / totals[:, -1:]
            times = (self._origin or 0.0) + np.append(stretch, stretch[-1] + 1) * self._step
            runs.append((times, np.concatenate([shares, shares[-1:]])))
        return runs

    def _gap(self, sums: _Sums) -> int:
        """Return how many steps apart two successive frames may be: several at a low frame rate."""
        return 1 + int(np.ceil(2 * sums.seconds / sums.frames / self._step))
