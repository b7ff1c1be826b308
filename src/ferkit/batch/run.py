"""A batch: rows from an engine into an output, with counts, a metrics file, and what is left to do."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ferkit import __version__
from ferkit.batch.output import Output
from ferkit.batch.tables import NO_FACE, OK, UNREADABLE, Chunk
from ferkit.core.files import write_text
from ferkit.core.modelfile import resolve_model

if TYPE_CHECKING:
    from ferkit.recognize import Recognizer

FORMAT = 1
"""Version of the tables' columns and units."""

# Settings that change no number, or are described by what they make.
_NO_FACTS = ("model", "detector", "taxonomy", "providers", "threads", "batch_size")
_METRICS_SECONDS = 5.0


@dataclass(slots=True)
class Counts:
    """How far a batch is."""

    before: int = 0  # photos that the output had at the start
    total: int | None = None  # photos of all inputs, with those; None while it is unknown
    # Photos of this run by status.
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys((OK, NO_FACE, UNREADABLE), 0))
    faces: int = 0  # faces of this run
    # When the run began, in seconds of a monotonic clock.
    started: float = field(default_factory=time.monotonic)

    @property
    def photos(self) -> int:
        """Photos of this run."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Photos of this run that could not be read."""
        return self.statuses[UNREADABLE]

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def add(self, chunk: Chunk) -> None:
        """Count the rows of a chunk."""
        for pair in pc.value_counts(chunk.photos["status"]).to_pylist():
            self.statuses[pair["values"]] += pair["counts"]
        self.faces += len(chunk.faces)

    def metrics(self, *, complete: bool) -> str:
        """Return the counts in the text format of Prometheus."""
        spent = self.seconds
        lines = []
        for name, kind, text, value in (
            ("faces_total", "counter", "Faces of this run.", self.faces),
            ("seconds", "gauge", "Seconds since the start of this run.", spent),
            ("photos_per_second", "gauge", "Photos of this run per second.", self.photos / spent),
            ("faces_per_second", "gauge", "Faces of this run per second.", self.faces / spent),
            ("photos_before", "gauge", "Photos that the output had at the start.", self.before),
            ("photos_expected", "gauge", "Photos of all inputs; NaN if unknown.", self.total),
            ("complete", "gauge", "1 if all inputs are done.", int(complete)),
        ):
            shown = "NaN" if value is None else f"{value:.10g}"
            lines += [f"# HELP ferkit_batch_{name} {text}", f"# TYPE ferkit_batch_{name} {kind}"]
            lines.append(f"ferkit_batch_{name} {shown}")
        lines += [
            "# HELP ferkit_batch_photos_total Photos of this run by status.",
            "# TYPE ferkit_batch_photos_total counter",
            *(f'ferkit_batch_photos_total{{status="{s}"}} {n}' for s, n in self.statuses.items()),
        ]
        return "\n".join(lines) + "\n"


def describe(recognizer: Recognizer, settings: Mapping[str, Any], *, fps: float | None) -> dict[str, Any]:
    """Return what decides the numbers in the tables, for their metadata."""
    info, model = recognizer.info, settings["model"]
    prior = recognizer.pipeline.adjustment.prior
    content = model if isinstance(model, bytes) else resolve_model(model).read_bytes()
    return {
        **{"ferkit": __version__, "format": FORMAT, "model": info.name, "model_version": info.version},
        **{"model_sha256": hashlib.sha256(content).hexdigest(), "detector": recognizer.detector.name},
        **{"taxonomy": recognizer.taxonomy.id, "labels": list(recognizer.taxonomy.labels), "fps": fps},
        **{name: value for name, value in settings.items() if name not in _NO_FACTS},
        "min_confidence": recognizer.pipeline.min_confidence,
        "prior": None if prior is None else list(prior),
    }


def write_batch(
    chunks: Iterator[Chunk],
    output: Output,
    counts: Counts,
    *,
    stop: threading.Event,
    metrics: str | os.PathLike[str] | None = None,
    on_chunk: Callable[[], None] = lambda: None,
) -> None:
    """Write the rows of an engine into an output, also those that are there when an error ends the engine.

    ``counts`` are counted on. ``metrics`` is a file for Prometheus' node exporter (its textfile collector),
    rewritten every five seconds. The output is closed.

    Raises:
        OutputError: If the output or the metrics cannot be written.
    """
    ended = False
    written = -_METRICS_SECONDS
    try:
        for chunk in chunks:
            output.write(chunk)
            counts.add(chunk)
            on_chunk()
            if metrics is not None and counts.seconds - written >= _METRICS_SECONDS:
                written = counts.seconds
                write_text(metrics, counts.metrics(complete=False))
        ended = not stop.is_set()
    finally:
        output.close(ended=ended, failed=bool(counts.failed))
        if metrics is not None:
            write_text(metrics, counts.metrics(complete=ended))
