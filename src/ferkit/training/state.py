"""Weights and optimiser state as plain NumPy archives: nothing is pickled, files are replaced atomically."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import TrainingError
from ferkit.core.files import replacing

_META = "meta"


def write_archive(path: str | Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write arrays and JSON metadata to an ``.npz``, atomically.

    Raises:
        OutputError: If the file cannot be written; a file that was at ``path`` stays.
    """
    text = np.frombuffer(json.dumps(meta, allow_nan=False).encode(), np.uint8)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{_META: text, **arrays})


def read_archive(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file of :func:`write_archive`.

    Raises:
        TrainingError: If the file is missing, damaged or of another kind.
    """
    try:
        # Opened here, since NumPy does not close a file that it opened and could not read.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except FileNotFoundError:
        raise TrainingError(f"there is no {path}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path} is damaged or no archive of ferkit: {error}") from error
    return arrays, meta


def network_arrays(network: Any, heads: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return a network's weights by stable names: ``body/0000`` in the graph's order, ``head/<id>/0``.

    Keras' own names count layers over the whole process, so they differ between two builds.
    """
    return {name: _to_numpy(variable) for name, variable in _named_variables(network, heads).items()}


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) of named arrays."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        state.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        state.update(np.ascontiguousarray(arrays[name]).tobytes())
    return state.hexdigest()


def load_network_arrays(
    network: Any,
    heads: tuple[str, ...],
    arrays: Mapping[str, NDArray[Any]],
    source: str,
    wanted: tuple[str, ...] | None = None,
) -> list[str]:
    """Set a network's weights from arrays of :func:`network_arrays`.

    The body must fit exactly. Of the heads, those in ``wanted`` (None: all) are set; a head that the arrays
    lack, or that has another number of classes there, keeps its weights.

    Returns:
        The heads that were set.

    Raises:
        TrainingError: If the body does not fit.
    """
    named = _named_variables(network, heads)
    body = {k: v for k, v in named.items() if k.startswith("body/")}
    given = {k for k in arrays if k.startswith("body/")}
    if set(body) != given or any(tuple(v.shape) != arrays[k].shape for k, v in body.items()):
        raise TrainingError(
            f"the weights of {source} do not fit this network: {len(given)} arrays for {len(body)}; "
            "architecture and parameters must be the same"
        )
    done = []
    for head in heads if wanted is None else wanted:
        own = {k: v for k, v in named.items() if k.startswith(f"head/{head}/")}
        if all(k in arrays and arrays[k].shape == tuple(v.shape) for k, v in own.items()):
            body |= own
            done.append(head)
    for name, variable in body.items():
        variable.assign(arrays[name].astype(np.float32))
    return done


def optimizer_arrays(optimizer: Any) -> dict[str, NDArray[Any]]:
    """Return the optimiser's variables (step, momenta, averages) in their order."""
    return {f"optimizer/{k:04d}": _to_numpy(v) for k, v in enumerate(optimizer.variables)}


def load_optimizer_arrays(optimizer: Any, arrays: Mapping[str, NDArray[Any]], source: str) -> None:
    """Set the optimiser's variables from :func:`optimizer_arrays`.

    Raises:
        TrainingError: If they belong to another optimiser or another network.
    """
    given = [arrays[k] for k in sorted(arrays) if k.startswith("optimizer/")]
    if [a.shape for a in given] != [tuple(v.shape) for v in optimizer.variables]:
        raise TrainingError(f"the optimiser's state in {source} does not fit this recipe")
    for variable, value in zip(optimizer.variables, given, strict=True):
        variable.assign(value)


def _to_numpy(variable: Any) -> NDArray[Any]:
    from keras import ops

    return np.array(ops.convert_to_numpy(variable))


def _named_variables(network: Any, heads: tuple[str, ...]) -> dict[str, Any]:
    """Return the variables by the names of :func:`network_arrays`."""
    owners = {f"{kind}_{head}": head for head in heads for kind in ("logits", "maps", "pool", "drop")}
    named: dict[str, Any] = {}
    counts = dict.fromkeys(("", *heads), 0)
    for layer in network.layers:
        owner = owners.get(layer.name, "")
        for variable in layer.weights:
            number = counts[owner]
            named[f"head/{owner}/{number}" if owner else f"body/{number:04d}"] = variable
            counts[owner] += 1
    return named
