"""The service's figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters, gauges and histograms in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "ferkit_requests", "Requests.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "ferkit_request_seconds",
            "Seconds per request.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute = Histogram(
            "ferkit_compute_seconds",
            "Seconds that a thread computed, per request or frame.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.faces = Counter("ferkit_faces", "Faces found.", ["route"], registry=registry)
        self.frames = Counter("ferkit_stream_frames", "Frames of streams.", ["outcome"], registry=registry)
        self.refusals = Counter("ferkit_refusals", "Refused requests.", ["reason"], registry=registry)
        self.computing = Gauge("ferkit_computing", "Threads at work.", registry=registry)
        self.waiting = Gauge("ferkit_waiting", "Requests that wait for a thread.", registry=registry)
        self.streams = Gauge("ferkit_streams", "Open streams.", registry=registry)
        self.jobs = Gauge("ferkit_jobs", "Jobs by state.", ["state"], registry=registry)

    def render(self) -> bytes:
        """Return the figures in the text format of Prometheus."""
        return generate_latest(self._registry)
