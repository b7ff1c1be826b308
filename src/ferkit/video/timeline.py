"""A clip summed up: who was seen when, with which expressions, as figures and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.extras import require
from ferkit.core.files import replacing
from ferkit.core.palette import palette
from ferkit.core.taxonomy import Taxonomy
from ferkit.recognize.results import UNCERTAIN, ByLabel
from ferkit.video.recognition import FrameResult

_FINEST = 1 / 16  # seconds of a step of the picture, at first
_MOST_STEPS = 1024
_MOST_ROWS = 12
_DPI = 120


@dataclass(frozen=True, slots=True)
class Person:
    """What a person showed in a clip.

    Attributes:
        track: Number of the person.
        first: When the person was first seen, in seconds.
        last: When the person was last seen.
        seconds: How long the face was in sight.
        frames: In how many frames.
        label: The label that was shown longest.
        confidence: Mean of the largest probability, over time.
        by_label: Seconds of each label, ``uncertain`` last; they add up to ``seconds``.
        probabilities: Mean probability of every label, over time.
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
    """Adds up frames as they come. Its memory goes by the number of people, not by the length of the clip.

    Every frame counts for as long as it is shown, so that a stride and a variable frame rate change nothing.

    Args:
        taxonomy: The label set of the frames.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._labels = (*taxonomy.labels, UNCERTAIN)
        self._people: dict[int, _Sums] = {}
        self._step = _FINEST
        self._origin: float | None = None
        self.frames = 0
        """Frames so far."""
        self.seconds = 0.0
        """Their duration."""
        self.faces = 0
        """Faces in them, also those that were not followed."""

    def add(self, frame: FrameResult) -> None:
        """Add the next frame."""
        self.frames += 1
        self.seconds += frame.duration
        self.faces += len(frame.faces)
        if self._origin is None:
            self._origin = frame.time
        while (frame.time - self._origin) / self._step >= _MOST_STEPS:
            self._coarsen()
        step = int(max(0.0, frame.time - self._origin) / self._step)
        for tracked in frame.faces:
            if tracked.track is None:
                continue
            sums = self._people.get(tracked.track)
            if sums is None:
                zeros = np.zeros(len(self._taxonomy.labels))
                sums = _Sums(frame.time, np.zeros(len(self._labels)), zeros)
                self._people[tracked.track] = sums
            values = np.fromiter(tracked.face.probabilities.values(), np.float64)
            sums.last = frame.time + frame.duration
            sums.seconds += frame.duration
            sums.frames += 1
            sums.confidence += tracked.confidence * frame.duration
            sums.labels[self._labels.index(tracked.label)] += frame.duration
            sums.probabilities += values * frame.duration
            if step not in sums.steps:
                sums.steps[step] = np.zeros(len(values) + 1)
            sums.steps[step] += np.append(values, 1) * max(frame.duration, 1e-9)

    def people(self) -> tuple[Person, ...]:
        """Return what each person showed, those seen longest first."""
        found = [self._person(track, sums) for track, sums in self._people.items()]
        return tuple(sorted(found, key=lambda person: (-person.seconds, person.track)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "frames": self.frames,
            "seconds": self.seconds,
            "taxonomy": self._taxonomy.id,
            "people": [person.to_dict() for person in self.people()],
        }

    def plot(self, path: str | os.PathLike[str], *, title: str = "") -> None:
        """Draw the probabilities of each person over time, one row per person, in one step.

        The twelve people who were seen longest have a row.

        Args:
            path: The picture; the format goes by its suffix: png, svg, pdf.
            title: What stands above.

        Raises:
            OutputError: If the file cannot be written.
            MissingDependencyError: If the extra ``video`` is not installed.
        """
        with replacing(path) as temporary:
            self.draw(temporary, title=title)

    def draw(self, path: Path, *, title: str = "") -> None:
        """Draw what :meth:`plot` does right into a file.

        Raises:
            OSError: If the file cannot be written.
            MissingDependencyError: If the extra ``video`` is not installed.
        """
        self._figure(title).savefig(path, dpi=_DPI)

    def _coarsen(self) -> None:
        """Make steps twice as long."""
        self._step *= 2
        for sums in self._people.values():
            halved: dict[int, NDArray[np.float64]] = {}
            for step, values in sums.steps.items():
                halved[step // 2] = halved[step // 2] + values if step // 2 in halved else values
            sums.steps = halved

    def _person(self, track: int, sums: _Sums) -> Person:
        # A clip of a single frame may have no duration at all.
        whole = sums.seconds or 1.0
        return Person(
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
        require("matplotlib", "video")
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        people = self.people()
        rows = people[:_MOST_ROWS]
        figure = Figure(figsize=(10, 1.6 + 1.1 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0]
        colours = [colour.hex for colour in palette(self._taxonomy.labels).values()]
        origin = self._origin or 0.0
        end = origin
        for axis, person in zip(axes, rows, strict=False):
            end = max(end, person.last)
            for times, shares in self._runs(self._people[person.track]):
                axis.stackplot(times, shares.T, colors=colours, linewidth=0)
            axis.set_ylim(0, 1)
            axis.set_yticks([0, 1], ["0", "1"])
            axis.set_ylabel(f"person {person.track}", rotation=0, ha="right", va="center")
        if not rows:
            axes[0].text(0.5, 0.5, "no face", transform=axes[0].transAxes, ha="center", va="center")
            axes[0].set_yticks([])
        axes[-1].set_xlim(origin, max(end, origin + self.seconds, origin + self._step))
        axes[-1].set_xlabel("seconds")
        left_out = len(people) - len(rows)
        heading = title + (f" ({left_out} more people, seen for a shorter time)" if left_out else "")
        # A file's name may hold dollars, and what no encoding has.
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
        """Return times and probabilities of each stretch in which the person was in sight."""
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
        """Return how many steps two frames in a row may lie apart: with few frames a second, several."""
        return 1 + int(np.ceil(2 * sums.seconds / sums.frames / self._step))
