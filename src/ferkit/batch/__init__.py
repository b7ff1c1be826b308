"""Many photos: finding them, the loop over them, and annotated copies."""

from __future__ import annotations

STDIN = "-"
"""The name of standard input."""
