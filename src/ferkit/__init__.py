"""Facial expression recognition: train, measure and ship small networks, and read expressions from photos."""

from __future__ import annotations

__version__ = "0.1.0"
