"""Architectures by name: one file each, one line each in the registry below."""

from __future__ import annotations

from ferkit.models.build import (
    ARCHITECTURES,
    Architecture,
    build_model,
    count_macs,
    get_architecture,
    list_architectures,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "build_model",
    "count_macs",
    "get_architecture",
    "list_architectures",
]
