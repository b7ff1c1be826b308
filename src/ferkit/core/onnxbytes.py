"""Fields of an ONNX file, read and replaced in its bytes, so that the base install needs no ``onnx``.

An ONNX file is one protobuf message; the format is at https://protobuf.dev/programming-guides/encoding.
Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ferkit.core.errors import ModelFileError

MODEL_IR_VERSION = 1
MODEL_GRAPH = 7
MODEL_METADATA = 14
GRAPH_NODE = 1
GRAPH_INPUT = 11
GRAPH_OUTPUT = 12

_NAME = 1  # of a ValueInfoProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11

_DEEPEST = 100  # graphs inside each other; protobuf's own readers take 100 messages, three to a graph

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its number, wire type, and where field and payload lie in the bytes."""

    number: int
    wire: int
    begin: int
    value: int
    end: int


class MalformedError(ModelFileError):
    """The bytes are no protobuf message."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise MalformedError(f"a number is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in ``data[begin:end]``, in the order of the file.

    Raises:
        MalformedError: If the bytes are no message.
    """
    at, end = begin, len(data) if end is None else end
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value = at
            _, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            value = at
            at += 4 if wire == _FIXED32 else 8
        elif wire == _BYTES:
            length, value = _varint(data, at, end)
            at = value + length
        else:
            raise MalformedError(f"unknown wire type {wire} at byte {start}")
        if number == 0 or at > end:
            raise MalformedError(f"a field at byte {start} reaches beyond the end")
        yield Field(number, wire, start, value, at)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field, ready to be put into a message."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(payload)) + payload


def metadata(data: bytes) -> list[tuple[str, Field, Field]]:
    """Return the metadata entries of a model: key, the whole entry, and the value inside it.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    top = list(fields(data))
    numbers = {f.number for f in top if f.number != MODEL_GRAPH or f.wire == _BYTES}
    if not {MODEL_IR_VERSION, MODEL_GRAPH} <= numbers:
        raise MalformedError("there is no graph in it")
    entries = []
    for entry in top:
        if entry.number != MODEL_METADATA or entry.wire != _BYTES:
            continue
        parts = {f.number: f for f in fields(data, entry.value, entry.end) if f.wire == _BYTES}
        if 1 in parts and 2 in parts:
            key = data[parts[1].value : parts[1].end].decode("utf-8", errors="replace")
            entries.append((key, entry, parts[2]))
    return entries


def with_metadata(data: bytes, entries: dict[str, str]) -> bytes:
    """Return the model with ``entries`` appended in order; entries of the same keys are dropped before.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    kept = bytearray()
    at = 0
    for key, entry, _ in metadata(data):
        if key in entries:
            kept += data[at : entry.begin]
            at = entry.end
    kept += data[at:]
    for key, value in entries.items():
        kept += encode(MODEL_METADATA, encode(1, key.encode()) + encode(2, value.encode()))
    return bytes(kept)


def output_names(data: bytes) -> list[str]:
    """Return the names of a model's outputs.

    Raises:
        MalformedError: If the bytes are no ONNX model.
    """
    graph = _graph(data)
    return [
        _strings(data, field, _NAME)[0]
        for field in fields(data, graph.value, graph.end)
        if field.number == GRAPH_OUTPUT
    ]


def only_outputs(data: bytes, names: Collection[str]) -> bytes:
    """Return the model with these outputs alone, and without the nodes that only others need.

    ONNX Runtime computes every node, also those whose result nobody fetches.

    Raises:
        MalformedError: If the bytes are no ONNX model, or graphs are nested deeper than anything reads.
    """
    graph = _graph(data)
    parts = list(fields(data, graph.value, graph.end))
    needed = set(names)
    dropped = set()
    for part in reversed(parts):  # nodes stand in the order of computation
        if part.number == GRAPH_OUTPUT and _strings(data, part, _NAME)[0] not in needed:
            dropped.add(part)
        elif part.number == GRAPH_NODE:
            if needed.isdisjoint(_strings(data, part, _NODE_OUTPUT)):
                dropped.add(part)
            else:
                needed |= _read_by(data, part)
    kept = b"".join(data[part.begin : part.end] for part in parts if part not in dropped)
    return data[: graph.begin] + encode(MODEL_GRAPH, kept) + data[graph.end :]


def _graph(data: bytes) -> Field:
    """Return the graph of a model."""
    graphs = [f for f in fields(data) if f.number == MODEL_GRAPH and f.wire == _BYTES]
    if len(graphs) != 1:
        raise MalformedError("there is no graph in it")
    return graphs[0]


def _strings(data: bytes, message: Field, number: int) -> list[str]:
    """Return the texts of one field of a message; one empty text if there is none."""
    return [
        data[f.value : f.end].decode("utf-8", errors="replace")
        for f in fields(data, message.value, message.end)
        if f.number == number and f.wire == _BYTES
    ] or [""]


def _read_by(data: bytes, node: Field, depth: int = 0) -> set[str]:
    """Return what a node reads, the graphs inside it (branches, loops) included."""
    if depth > _DEEPEST:
        raise MalformedError(f"more than {_DEEPEST} graphs lie inside each other at byte {node.begin}")
    read = set(_strings(data, node, _NODE_INPUT))
    for attribute in fields(data, node.value, node.end):
        if attribute.number != _NODE_ATTRIBUTE:
            continue
        for inner in fields(data, attribute.value, attribute.end):
            if inner.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and inner.wire == _BYTES:
                for part in fields(data, inner.value, inner.end):
                    if part.number == GRAPH_NODE:
                        read |= _read_by(data, part, depth + 1)
                    elif part.number == GRAPH_OUTPUT:
                        read |= set(_strings(data, part, _NAME))
    return read - {""}
