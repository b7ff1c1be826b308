"""Several model files joined into one: a weighted mean of probabilities, with a temperature of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit import __version__
from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import ModelFileError, TaxonomyError
from ferkit.core.extras import require
from ferkit.core.modelfile import (
    CAM_PREFIX,
    INPUT,
    HeadInfo,
    ModelInfo,
    read_model,
    resolve_model,
    write_model,
)
from ferkit.core.taxonomy import Taxonomy
from ferkit.evaluation.calibration import temper
from ferkit.evaluation.metrics import SMALLEST_PROBABILITY
from ferkit.evaluation.subject import facts_of

PARITY = 1e-5
"""The largest difference between the file's answers and those computed from its members' answers."""

_OPSET = 13  # the first in which Softmax works along one axis
_PROBES = 8


@dataclass(frozen=True, slots=True)
class Member:
    """A model file that is to vote.

    Args:
        content: The file's bytes.
        info: What it says about itself.
        sha256: Digest of the bytes.
    """

    content: bytes
    info: ModelInfo
    sha256: str

    def head(self, taxonomy: str) -> HeadInfo | None:
        """Return the member's output of a taxonomy, or None."""
        return next((head for head in self.info.taxonomies if head.id == taxonomy), None)


def load_member(model: str | os.PathLike[str]) -> Member:
    """Read a model file, or an embedded model by name.

    Raises:
        ModelFileError: If there is none, or it is damaged.
    """
    content, info = read_model(resolve_model(model))
    return Member(content, info, hashlib.sha256(content).hexdigest())


def shared_taxonomies(members: Sequence[Member]) -> tuple[Taxonomy, ...]:
    """Return every taxonomy that a member answers in, in order of first appearance.

    Raises:
        ModelFileError: If the members cannot vote together: they are none, want faces of different size or
            crop, or mean different labels by one id.
    """
    if not members:
        raise ModelFileError("an ensemble needs at least one member. Received: none")
    first = members[0].info
    found: dict[str, Taxonomy] = {}
    for member in members:
        info = member.info
        if info.input_size != first.input_size:
            raise ModelFileError(
                f"members of an ensemble must take faces of one size. Received: {first.name!r} takes "
                f"{first.input_size} pixels, {info.name!r} takes {info.input_size}"
            )
        if info.crop != first.crop:
            raise ModelFileError(
                f"members of an ensemble must cut faces in one way, but the crop geometry of {info.name!r} "
                f"is not that of {first.name!r}"
            )
        for head in info.taxonomies:
            known = found.setdefault(head.id, head.taxonomy)
            if known.labels != head.labels:
                raise ModelFileError(
                    f"members mean different labels by {head.id!r}: {', '.join(known.labels)}; {info.name!r} "
                    f"has {', '.join(head.labels)}"
                )
    return tuple(found.values())


def default_of(members: Sequence[Member], taxonomy: str | None = None) -> str:
    """Return the id of the output that users of an ensemble meet: ``taxonomy``, or the first member's.

    Raises:
        ModelFileError: As :func:`shared_taxonomies`.
        TaxonomyError: If no member has it.
    """
    have = [t.id for t in shared_taxonomies(members)]
    wanted = members[0].info.default_taxonomy if taxonomy is None else taxonomy
    if wanted not in have:
        raise TaxonomyError(f"no member answers in taxonomy {wanted!r}; they have {', '.join(have)}")
    return wanted


def normalised_weights(
    members: Sequence[Member],
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Return each member's weight per taxonomy, summing to 1 over the members that have it.

    Args:
        members: The M members.
        weights: M numbers for all taxonomies, or such numbers by taxonomy id, or None for equal ones. A
            taxonomy that the mapping lacks gets equal weights. What a member without the taxonomy would
            get falls to the others.

    Raises:
        ModelFileError: If there are not M weights, one is negative or not finite, or nothing is left.
    """
    equal = (1.0,) * len(members)
    result = {}
    for taxonomy in shared_taxonomies(members):
        if weights is None:
            given: Sequence[float] = equal
        elif isinstance(weights, Mapping):
            given = weights.get(taxonomy.id, equal)
        else:
            given = weights
        if len(given) != len(members):
            raise ModelFileError(f"{len(members)} members need as many weights. Received: {len(given)}")
        if not all(0 <= w < float("inf") for w in given):
            raise ModelFileError(f"weights must be finite and not negative. Received: {list(given)}")
        has = [member.head(taxonomy.id) is not None for member in members]
        kept = [w if h else 0.0 for w, h in zip(given, has, strict=True)]
        if not sum(kept):
            if not sum(given):
                raise ModelFileError("at least one weight must be above 0. Received: only zeros")
            # All the weight lies on members without this taxonomy: those that have it share it.
            kept = [float(h) for h in has]
        result[taxonomy.id] = tuple(w / sum(kept) for w in kept)
    return result


def combine(
    members: Sequence[Member],
    *,
    name: str,
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    temperatures: Mapping[str, float] | None = None,
    default_taxonomy: str | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    notes: str = "",
) -> tuple[bytes, ModelInfo]:
    """Join members into one model of the contract.

    Members without any weight are left out. A taxonomy has class activation maps where all that vote in it
    have maps of one size and see the same part of a face: their sum, each times the member's weight and
    divided by its temperature, since maps average to logits before it.

    Args:
        members: What votes; as many as there are weights.
        name: Name of the ensemble.
        weights: As :func:`normalised_weights`.
        temperatures: T by taxonomy id: the mean p becomes ``softmax(log p / T)``; 1 where it is missing,
            which leaves the mean as it is.
        default_taxonomy: The output that users meet; by default that of the first member, whether it votes
            in the end or not.
        metrics: What was measured of it.
        data: What weights and temperatures were fitted on.
        notes: For people.

    Returns:
        The serialised ONNX model, and its metadata.

    Raises:
        ModelFileError: If the members cannot vote together or their graphs cannot be joined.
        TaxonomyError: If no member has the output ``default_taxonomy``.
        MissingDependencyError: If ``onnx`` is not installed.
    """
    onnx = require("onnx", "train")
    by_taxonomy = normalised_weights(members, weights)
    default = default_of(members, default_taxonomy)
    taxonomies = shared_taxonomies(members)
    voting = [k for k in range(len(members)) if any(w[k] for w in by_taxonomy.values())]
    members = [members[k] for k in voting]
    by_taxonomy = {t: tuple(w[k] for k in voting) for t, w in by_taxonomy.items()}
    graphs = [onnx.load_from_string(member.content) for member in members]
    maps = {
        t.id: size for t in taxonomies if (size := _size_of_maps(t.id, graphs, members, by_taxonomy[t.id]))
    }
    heads = tuple(
        HeadInfo(id=t.id, labels=t.labels, temperature=(temperatures or {}).get(t.id, 1.0), cam=t.id in maps)
        for t in taxonomies
    )
    opset = max(_OPSET, *(_opset_of(graph) for graph in graphs))
    parts = []
    for k, (graph, member) in enumerate(zip(graphs, members, strict=True)):
        own = [t for t, w in by_taxonomy.items() if w[k]]
        own += [CAM_PREFIX + t for t in own if t in maps]
        parts.append(_as_part(graph, f"m{k}_", opset, member, own))
    shares = dict(by_taxonomy)
    for t in maps:
        shares[CAM_PREFIX + t] = _shares_of_maps(t, members, by_taxonomy[t])
    joined = _join(parts, heads, shares, maps, opset=opset, side=members[0].info.input_size)
    return joined, _describe(members, heads, default, by_taxonomy, name, metrics, data, notes)


def write_ensemble(
    model: bytes, info: ModelInfo, members: Sequence[Member], path: str | os.PathLike[str]
) -> None:
    """Write an ensemble after making sure that it answers as its members do.

    Args:
        model: As :func:`combine` returns it.
        info: Likewise.
        members: All members that it may have been made of.
        path: The file.

    Raises:
        ModelFileError: If its answers differ from the weighted, tempered mean of its members' by more than
            :data:`PARITY`, or its maps from theirs by more than this share of the largest.
        OutputError: If the file cannot be written.
    """
    with files.replacing(path) as temporary:
        write_model(model, info, temporary)
        _check_parity(temporary.read_bytes(), info, {m.sha256: m for m in members})


def _opset_of(model: Any) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _size_of_maps(
    taxonomy: str, graphs: Sequence[Any], members: Sequence[Member], weights: Sequence[float]
) -> tuple[int, int] | None:
    """Return height and width of the maps that all voters have alike for a taxonomy, or None."""
    sizes = set()
    for graph, member, weight in zip(graphs, members, weights, strict=True):
        if not weight:
            continue
        if not member.info.head(taxonomy).cam:
            return None
        dims = [
            int(d.dim_value)
            for output in graph.graph.output
            if output.name == CAM_PREFIX + taxonomy
            for d in output.type.tensor_type.shape.dim
        ]
        if len(dims) != 4:  # a file that tells of maps and has none, or does not tell their size
            return None
        # Maps of one size lie over other places of the crop where a member cuts off more of its edge.
        sizes.add((*dims[2:], member.info.view_size))
    height, width, _ = sizes.pop()
    return (height, width) if height and width and not sizes else None


def _shares_of_maps(taxonomy: str, members: Sequence[Member], weights: Sequence[float]) -> tuple[float, ...]:
    """Return what each member's map counts for: maps average to logits, which its temperature divides."""
    return tuple(
        weight / member.info.head(taxonomy).temperature if weight else 0.0
        for member, weight in zip(members, weights, strict=True)
    )


def _as_part(model: Any, prefix: str, opset: int, member: Member, outputs: Sequence[str]) -> Any:
    """Return the member's model in the common opset, every name prefixed, without what does not vote."""
    compose = require("onnx.compose", "train")
    converter = require("onnx.version_converter", "train")
    if _opset_of(model) != opset:
        try:
            model = converter.convert_version(model, opset)
        except RuntimeError as error:
            raise ModelFileError(
                f"member {member.info.name!r} has opset {_opset_of(model)} and cannot be converted to "
                f"{opset}, which another member has: {error}. Export it again"
            ) from error
    _keep_only(model.graph, outputs)
    return compose.add_prefix(model, prefix)


def _read_by(node: Any) -> set[str]:
    """Return the names that a node reads, those in its subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            names.update(*(_read_by(inner) for inner in graph.node))
            names.update(output.name for output in graph.output)
    return names


def _keep_only(graph: Any, outputs: Sequence[str]) -> None:
    """Remove from a graph everything that its ``outputs`` do not need."""
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed |= _read_by(node)
    kept = {
        "node": nodes[::-1],
        "initializer": [i for i in graph.initializer if i.name in needed],
        "sparse_initializer": [i for i in graph.sparse_initializer if i.values.name in needed],
        "output": [o for o in graph.output if o.name in outputs],
        "input": [i for i in graph.input if i.name == INPUT],
        "value_info": [],
    }
    for field, entries in kept.items():
        graph.ClearField(field)
        getattr(graph, field).extend(entries)


def _join(
    parts: Sequence[Any],
    heads: Sequence[HeadInfo],
    weights: Mapping[str, Sequence[float]],
    maps: Mapping[str, tuple[int, int]],
    *,
    opset: int,
    side: int,
) -> bytes:
    """Return one model in which every part reads the same faces and the parts' outputs are averaged.

    Args:
        parts: The members' graphs.
        heads: The outputs of probabilities.
        weights: What each part counts for, by output, those of maps included.
        maps: Height and width of the maps by taxonomy, where there are any.
        opset: Of all parts.
        side: Of the faces, in pixels.
    """
    helper = require("onnx.helper", "train")
    numpy_helper = require("onnx.numpy_helper", "train")
    checker = require("onnx.checker", "train")
    tensor = require("onnx", "train").TensorProto
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: float) -> str:
        constants.append(numpy_helper.from_array(np.float32(value), name))
        return name

    for k, part in enumerate(parts):
        nodes.append(helper.make_node("Identity", [INPUT], [f"m{k}_{INPUT}"], name=f"share_{k}"))
        nodes.extend(part.graph.node)
        constants.extend(part.graph.initializer)

    def add_up(output: str, result: str) -> None:
        terms = []
        for k, weight in enumerate(weights[output]):
            if weight:
                terms.append(f"vote_{output}_{k}")
                share = constant(f"weight_{output}_{k}", weight)
                nodes.append(helper.make_node("Mul", [f"m{k}_{output}", share], [terms[-1]], name=terms[-1]))
        nodes.append(helper.make_node("Sum", terms, [result], name=f"mean_{output}"))

    for head in heads:
        tempered = head.temperature != 1.0
        mean = f"mean_{head.id}" if tempered else head.id
        add_up(head.id, mean)
        if tempered:
            least = constant(f"least_{head.id}", SMALLEST_PROBABILITY)
            temperature = constant(f"temperature_{head.id}", head.temperature)
            steps: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
                ("Max", [mean, least], f"positive_{head.id}", {}),
                ("Log", [f"positive_{head.id}"], f"log_{head.id}", {}),
                ("Div", [f"log_{head.id}", temperature], f"logits_{head.id}", {}),
                ("Softmax", [f"logits_{head.id}"], head.id, {"axis": -1}),
            )
            nodes += [helper.make_node(op, i, [o], name=f"temper_{o}", **a) for op, i, o, a in steps]
        if head.id in maps:
            add_up(CAM_PREFIX + head.id, CAM_PREFIX + head.id)
    graph = helper.make_graph(
        nodes,
        "ensemble",
        [helper.make_tensor_value_info(INPUT, tensor.UINT8, ["N", side, side])],
        [helper.make_tensor_value_info(h.id, tensor.FLOAT, ["N", len(h.labels)]) for h in heads]
        + [
            helper.make_tensor_value_info(CAM_PREFIX + h.id, tensor.FLOAT, ["N", len(h.labels), *maps[h.id]])
            for h in heads
            if h.id in maps
        ],
        constants,
        sparse_initializer=[i for part in parts for i in part.graph.sparse_initializer],
    )
    domains: dict[str, int] = {"": opset}
    for part in parts:
        for entry in part.opset_import:
            if entry.domain in ("", "ai.onnx"):
                continue
            if domains.setdefault(entry.domain, entry.version) != entry.version:
                raise ModelFileError(
                    f"members use versions {domains[entry.domain]} and {entry.version} of the operators "
                    f"{entry.domain!r}; export them with one version"
                )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
        functions=[function for part in parts for function in part.functions],
        ir_version=max(part.ir_version for part in parts),
        producer_name="ferkit",
        producer_version=__version__,
    )
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ModelFileError(f"the members' graphs cannot be joined: {error}") from error
    content: bytes = model.SerializeToString()
    return content


def _describe(
    members: Sequence[Member],
    heads: tuple[HeadInfo, ...],
    default: str,
    weights: Mapping[str, Sequence[float]],
    name: str,
    metrics: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any] | None,
    notes: str,
) -> ModelInfo:
    """Return what the ensemble says about itself."""
    infos = [member.info for member in members]
    records = []
    for k, member in enumerate(members):
        facts = facts_of(member.info, len(member.content), member.sha256)
        records.append(
            {
                "name": facts.name,
                "version": facts.version,
                "sha256": member.sha256,
                "weight": weights[default][k],
                "weights": {t: w[k] for t, w in weights.items() if member.head(t) is not None},
                "architecture": facts.architecture,
                "parameters": facts.parameters,
                "mmac": facts.mmac,
                "view_size": member.info.view_size,
                "seeds": list(facts.seeds),
                "epochs": facts.epochs,
                "hours": facts.hours,
                "recipe": member.info.recipe,
                "data": member.info.data,
            }
        )
        if member.info.members:
            records[-1]["members"] = _origins(member.info.members)
    return ModelInfo(
        name=name,
        architecture="ensemble",
        taxonomies=heads,
        default_taxonomy=default,
        input_size=infos[0].input_size,
        # One shift serves all members in ten-crop: that of the member which sees most, since a larger one
        # would show it repeated edges.
        view_size=max(info.view_size for info in infos),
        crop=infos[0].crop,
        parameters=sum(info.parameters for info in infos),
        mmac=sum(info.mmac for info in infos),
        recipe={"ensemble": {"weights": {t: list(w) for t, w in weights.items()}}},
        data=dict(data or {}),
        metrics=[dict(metric) for metric in metrics],
        precision=" + ".join(sorted({info.precision for info in infos})),
        licence=" + ".join(sorted({info.licence for info in infos if info.licence})),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        ferkit_version=__version__,
        members=records,
        notes=notes,
    )


def _origins(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what an ensemble keeps of a member's own members: which they are, and what made them."""
    return [
        {key: member[key] for key in ("name", "version", "sha256", "data") if key in member}
        | ({"members": _origins(member["members"])} if member.get("members") else {})
        for member in members
    ]


def _check_parity(content: bytes, info: ModelInfo, members: Mapping[str, Member]) -> None:
    """Compare the file's answers to random pictures with those computed from its members' answers."""
    size = info.input_size
    probes = np.random.default_rng(0).integers(0, 256, (_PROBES, size, size), dtype=np.uint8)
    joined = FaceClassifier(content)
    found = joined.predict(probes)
    voters = [members[record["sha256"]] for record in info.members]
    classifiers = [FaceClassifier(voter.content) for voter in voters]
    answers = [classifier.predict(probes) for classifier in classifiers]
    for head in info.taxonomies:
        weights = [record["weights"].get(head.id, 0.0) for record in info.members]
        mean = sum(
            weight * answer[head.id].astype(np.float64)
            for weight, answer in zip(weights, answers, strict=True)
            if weight
        )
        expected = mean if head.temperature == 1.0 else temper(mean, head.temperature)
        _check_same(head.id, found[head.id], expected, 1.0)
        if head.cam:
            shares = _shares_of_maps(head.id, voters, weights)
            maps = sum(
                share * classifier.cams(probes, head.id).astype(np.float64)
                for share, classifier in zip(shares, classifiers, strict=True)
                if share
            )
            # Unlike probabilities, maps have no scale of their own.
            scale = max(1.0, float(np.abs(maps).max()))
            _check_same(CAM_PREFIX + head.id, joined.cams(probes, head.id), maps, scale)


def _check_same(output: str, found: NDArray[Any], expected: Any, scale: float) -> None:
    difference = float(np.abs(found - expected).max()) / scale
    if not difference <= PARITY:
        raise ModelFileError(
            f"the joined file answers {output!r} with a difference of {difference:.2g} from its "
            f"members; at most {PARITY:g} is allowed, so it was not written"
        )


def default_name(path: str | os.PathLike[str]) -> str:
    """Return the name of an ensemble that is written to ``path``."""
    return Path(path).stem or "ensemble"
