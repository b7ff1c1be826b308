"""The processor, the precision that it trains fastest in, and whether oneDNN pays on it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from pathlib import Path

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
"""The environment variable that TensorFlow reads, when it is imported, to use oneDNN."""

_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Flags of processors that compute in bfloat16; others emulate it, several times slower than float32."""


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of ``/proc/cpuinfo``; empty where there is no such file."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


def processor_name() -> str:
    """Return the processor's name as the system reports it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of the processor; empty where the system does not list them."""
    return frozenset(_cpuinfo().get("flags", "").split())


def onednn_pays() -> bool:
    """Tell whether oneDNN trains faster here and TensorFlow leaves it off: x86-64 without AVX-512.

    Measured on an AMD EPYC with AVX2, recipe ``best-single`` in float32: 78 against 36 images/s.
    """
    return "avx2" in processor_flags() and "avx512f" not in processor_flags()


def use_onednn() -> None:
    """Switch oneDNN on where it pays, unless the user has set the variable or TensorFlow is imported."""
    if onednn_pays() and "tensorflow" not in sys.modules:
        os.environ.setdefault(ONEDNN, "1")


def onednn_setting() -> str:
    """Return ``on`` or ``off``, as the environment sets it, or ``default`` where TensorFlow chooses."""
    value = os.environ.get(ONEDNN)
    return "default" if value is None else "on" if value == "1" else "off"


def choose_precision(wanted: str, accelerator: tuple[str, float] | None = None) -> tuple[str, str]:
    """Return the value of ``mixed_precision`` that a run uses, and the reason.

    Args:
        wanted: The recipe's: ``off``, ``bfloat16``, ``float16``, or ``auto`` for the fastest here.
        accelerator: Kind (``gpu``, ``tpu``) and, of an NVIDIA GPU, compute capability; None for the CPU.
    """
    if wanted != "auto":
        return wanted, "set by the recipe"
    if accelerator is not None:
        kind, capability = accelerator
        if kind == "gpu" and capability < 8:
            return ("float16" if capability >= 7 else "off"), f"compute capability {capability:g}"
        return "bfloat16", f"on a {kind.upper()}"
    for flag in _BFLOAT16:
        if flag in processor_flags():
            return "bfloat16", f"the processor has {flag}"
    if not processor_flags():
        return "off", "the system does not list the processor's instruction sets"
    return "off", f"the processor has neither {' nor '.join(_BFLOAT16)}"
