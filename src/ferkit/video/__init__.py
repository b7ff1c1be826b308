"""Clips: reading, tracking, smoothing, writing and the timeline."""
