"""From model files to one ensemble file: the weighted mean of their probabilities, with a temperature."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    ENSEMBLE,
    INPUT,
    HeadInfo,
    MemberInfo,
    ModelInfo,
    Provenance,
    read_model,
    resolve_model,
    write_model,
)
from ferkit.core.taxonomy import BASIC, Taxonomy
from ferkit.data import faces_digest, select_faces
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.calibration import temper
from ferkit.evaluation.ensemble_weights import (
    EnsembleFit,
    ensemble_metrics,
    fit_ensemble,
    normalised,
    weights_of,
)
from ferkit.evaluation.evaluate import SELECTION_SPLIT, targets_for
from ferkit.evaluation.join import (
    has_both,
    is_labelled_for_basic,
    joined,
    joined_out_of_fold,
    label_distributions,
)
from ferkit.evaluation.metrics import SMALLEST_PROBABILITY
from ferkit.evaluation.model import facts_of
from ferkit.export.join import default_of, with_basic, with_coverage, with_quality

PARITY = 1e-5
"""The largest difference between the file's predictions and those computed from its members'."""

_OPSET = 13  # the first in which Softmax works along one axis
_PROBES = 8


@dataclass(frozen=True, slots=True)
class Member:
    """A model file that becomes part of an ensemble: its bytes, metadata and SHA-256 (hex)."""

    content: bytes
    info: ModelInfo
    sha256: str

    def has(self, taxonomy: str) -> bool:
        """Return whether it has an output of this taxonomy."""
        return any(head.id == taxonomy for head in self.info.taxonomies)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members joined into one model."""

    content: bytes  # the serialised ONNX model
    info: ModelInfo  # its metadata
    members: tuple[Member, ...]  # the members that have a weight
    weights: Mapping[str, Sequence[float]]  # their weights by taxonomy id, 0 for those without the taxonomy

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file after checking its predictions and maps against its members'.

        Raises:
            ModelFileError: If they differ by more than :data:`PARITY`; nothing is written then.
            OutputError: If the file cannot be written.
        """
        with files.replacing(path) as temporary:
            write_model(self.content, self.info, temporary)
            _check_parity(self, temporary.read_bytes())


def load_member(model: str | os.PathLike[str]) -> Member:
    """Read a model file, or a model by name.

    Raises:
        ModelFileError: If there is none, it is damaged, or it is an ensemble that is no plain mean of its
            members.
    """
    content, info = read_model(resolve_model(model))
    if info.members and (info.training.fitted_on or any(head.temperature != 1 for head in info.taxonomies)):
        raise ModelFileError(
            f"{model} is an ensemble that was fitted (temperature or weights), so it is no plain mean of its "
            f"members; name its members instead: {', '.join(member.name for member in info.members)}"
        )
    return Member(content, info, hashlib.sha256(content).hexdigest())


def shared_taxonomies(members: Sequence[Member]) -> tuple[Taxonomy, ...]:
    """Return every taxonomy that a member has, in order of first appearance.

    Raises:
        ModelFileError: If there is no member, or the members take faces of different size or crop, or have
            different labels for one taxonomy id.
    """
    if not members:
        raise ModelFileError("an ensemble needs at least one member. Received: none")
    first = members[0].info
    found: dict[str, Taxonomy] = {}
    for info in (member.info for member in members):
        if info.input_size != first.input_size:
            raise ModelFileError(
                f"members of an ensemble must take faces of one size. Received: {first.name!r} takes "
                f"{first.input_size} pixels, {info.name!r} takes {info.input_size}"
            )
        if info.crops != first.crops:
            raise ModelFileError(
                "members of an ensemble must have the same crop geometry. Received: that of "
                f"{info.name!r} differs from that of {first.name!r}"
            )
        for head in info.taxonomies:
            known = found.setdefault(head.id, head.taxonomy)
            if known.labels != head.labels:
                raise ModelFileError(
                    f"members have different labels for {head.id!r}. Received: {', '.join(known.labels)}; of "
                    f"{info.name!r}: {', '.join(head.labels)}"
                )
    return tuple(found.values())


def export_ensemble(
    members: Sequence[Member],
    path: str | os.PathLike[str],
    *,
    name: str = "",
    weights: Sequence[float] | None = None,
    default_taxonomy: str | None = None,
    dataset: FaceDataset | None = None,
    split: str = SELECTION_SPLIT,
    drop_flat: bool = False,
    fit_weights: bool = False,
    threads: int | None = None,
    notes: str = "",
    progress: Callable[[str], None] | None = None,
) -> tuple[ModelInfo, tuple[EnsembleFit, ...]]:
    """Join members into one file; fit temperatures, and weights if wanted, where there is data.

    The output ``basic`` joins the ensemble's own heads if the data have FER2013's labels and FER+ votes; else
    it is the mean of the members' outputs, and nothing of it is fitted.

    Args:
        members: The members.
        path: The file to write.
        name: Name of the ensemble; by default the file's.
        weights: One per member; equal by default.
        default_taxonomy: The default output; by default that of the first member.
        dataset: Labelled faces to fit on, with the training faces, which show leaks; None to fit nothing.
        split: The split to fit on.
        drop_flat: Leave out images of one constant colour.
        fit_weights: Fit the weights as well.
        threads: Threads of ONNX Runtime.
        notes: Free text.
        progress: Called with a line of text before each member predicts and before curves are fitted.

    Returns:
        The metadata, and what was fitted in each taxonomy that the split has labels for.

    Raises:
        DataError: If the split is empty, or its labels fit no member.
        ModelFileError: If the members or weights do not fit together, or the file's predictions differ from
            the members'.
        TaxonomyError: If no member has the default output.
        OutputError: If the file cannot be written.
    """
    heads = {taxonomy.id: taxonomy for taxonomy in shared_taxonomies(members)}
    own = {name: taxonomy for name, taxonomy in heads.items() if name != BASIC.id}
    default_taxonomy = _default_of(members, heads, default_taxonomy)
    given = [1.0] * len(members) if weights is None else weights
    chosen = None if dataset is None else select_faces(dataset, drop_flat=drop_flat)
    faces = None if chosen is None else chosen.of_split(split)
    refit = faces is not None and has_both(own) and is_labelled_for_basic(faces)
    fits: tuple[EnsembleFit, ...] = ()
    training = Provenance()
    if dataset is not None and faces is not None:
        targets = [t for t in targets_for(faces, heads) if t.taxonomy.id != BASIC.id]
        predictions = _predictions(members, faces.images, {t.taxonomy.id for t in targets}, threads, progress)
        fits = fit_ensemble(predictions, targets, given, fit_weights=fit_weights)
        training = Provenance(
            source=Path(dataset.source).name,
            fingerprint=dataset.fingerprint,
            faces=faces_digest(dataset),
            fitted_on=split if any(fit.fit != "nothing" for fit in fits) else "",
            fitted={fit.taxonomy: fit.fit for fit in fits},
        )
    ensemble = combine(
        members,
        name=name or Path(path).stem,
        weights={t: weights_of(fits, given, [m.has(t) for m in members], t) for t in heads},
        temperatures={fit.taxonomy: fit.weighting.temperature for fit in fits},
        default_taxonomy=next(iter(own)) if refit else default_taxonomy,
        taxonomies=own if refit else heads,
        training=training,
    )
    if chosen is not None and faces is not None:
        ensemble = _with_figures(ensemble, fits, chosen, faces, split, heads, refit)
    if refit:
        info = ensemble.info.model_copy(
            update={"default_taxonomy": default_taxonomy if BASIC.id in heads else default_of(ensemble.info)}
        )
        ensemble = replace(ensemble, info=info)
    ensemble = replace(ensemble, info=ensemble.info.model_copy(update={"notes": notes}))
    if faces is not None:
        if progress is not None:
            progress("fitting temperatures for blurred and dark faces")
        ensemble = _with_quality(ensemble, faces, threads)
    ensemble.write(path)
    return ensemble.info, fits


def _with_quality(ensemble: Ensemble, faces: FaceDataset, threads: int | None) -> Ensemble:
    """Return an ensemble with the temperatures for blurred and dark faces."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        write_model(ensemble.content, ensemble.info, trial)
        classifier = FaceClassifier(trial, threads=threads)
        return replace(ensemble, info=with_quality(ensemble.info, classifier.predict, faces))


def _with_figures(
    ensemble: Ensemble,
    fits: tuple[EnsembleFit, ...],
    dataset: FaceDataset,
    faces: FaceDataset,
    split: str,
    heads: Mapping[str, Taxonomy],
    refit: bool,
) -> Ensemble:
    """Return an ensemble with the output ``basic`` if it is fitted again, coverage curves, and metrics."""
    in_sample = {fit.taxonomy: fit.predictions for fit in fits}
    held_out = {fit.taxonomy: fit.held_out for fit in fits}
    kinds = {fit.taxonomy: fit.fit for fit in fits}
    content, info = ensemble.content, ensemble.info
    if refit:
        content, info = with_basic(content, info, in_sample, faces, split)
        shares = label_distributions(faces)
        heads = {**heads, BASIC.id: BASIC}
        in_sample[BASIC.id] = joined(info.head(BASIC.id), in_sample)
        held_out[BASIC.id] = joined_out_of_fold(in_sample, shares)
        kinds[BASIC.id] = "join"
    info = with_coverage(info, held_out, faces, split)
    trained_on = tuple(dict.fromkeys(s for m in ensemble.members for s in facts_of(m.info).train_splits))
    targets = targets_for(faces, {name: heads[name] for name in kinds})
    metrics = ensemble_metrics(kinds, in_sample, held_out, dataset, split, targets, trained_on)
    return replace(ensemble, content=content, info=info.model_copy(update={"metrics": metrics}))


def _predictions(
    members: Sequence[Member],
    faces: NDArray[np.uint8],
    taxonomies: Collection[str],
    threads: int | None,
    progress: Callable[[str], None] | None,
) -> list[dict[str, NDArray[np.float32]]]:
    """Return each member's probabilities in those of the taxonomies that it has."""
    found = []
    for number, member in enumerate(members, 1):
        if progress is not None:
            progress(f"predicting with member {number} of {len(members)}: {member.info.name}")
        own = [taxonomy for taxonomy in taxonomies if member.has(taxonomy)]
        found.append(FaceClassifier(member.content, threads=threads).predict(faces, taxonomies=own))
    return found


def _default_of(members: Sequence[Member], taxonomies: Mapping[str, Taxonomy], wanted: str | None) -> str:
    chosen = members[0].info.default_taxonomy if wanted is None else wanted
    if chosen not in taxonomies:
        raise TaxonomyError(f"no member has taxonomy {chosen!r}; they have {', '.join(taxonomies)}")
    return chosen


def combine(
    members: Sequence[Member],
    *,
    name: str,
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    temperatures: Mapping[str, float] | None = None,
    default_taxonomy: str | None = None,
    taxonomies: Collection[str] | None = None,
    training: Provenance | None = None,
) -> Ensemble:
    """Join members into one model of the contract.

    Members without any weight are left out. A taxonomy has class activation maps where all members with a
    weight in it have maps of one size and see the same part of a face: the sum of their maps, each times the
    member's weight and divided by its temperature, since maps average to logits before it.

    Args:
        members: The M members.
        name: Name of the ensemble.
        weights: M numbers for all taxonomies, or M numbers by taxonomy id, or None for equal ones. What a
            member without a taxonomy would get goes to the others.
        temperatures: T by taxonomy id: the mean p becomes ``softmax(log p / T)``; 1 where it is missing.
        default_taxonomy: The default output; by default that of the first member.
        taxonomies: Ids of the outputs; by default every one that a member has.
        training: What weights and temperatures were fitted on.

    Raises:
        ModelFileError: If the members do not fit together or their graphs cannot be joined.
        TaxonomyError: If no member has the default output.
    """
    onnx = require("onnx", "train")
    known = {t.id: t for t in shared_taxonomies(members) if taxonomies is None or t.id in taxonomies}
    default = _default_of(members, known, default_taxonomy)
    equal = [1.0] * len(members)
    shares = {}
    for t in known:
        given = weights.get(t) if isinstance(weights, Mapping) else weights
        given = equal if given is None else given
        shares[t] = normalised(given, [member.has(t) for member in members])
    used = [k for k in range(len(members)) if any(share[k] for share in shares.values())]
    members = tuple(members[k] for k in used)
    shares = {t: tuple(share[k] for k in used) for t, share in shares.items()}
    graphs = [onnx.load_from_string(member.content) for member in members]
    maps = {t: size for t in known if (size := _size_of_maps(t, graphs, members, shares[t]))}
    heads = tuple(
        HeadInfo(
            id=t,
            labels=taxonomy.labels,
            temperature=(temperatures or {}).get(t, 1.0),
            cam=t in maps,
            prior=_mean_prior(t, members, shares[t]),
        )
        for t, taxonomy in known.items()
    )
    outputs = dict(shares) | {CAM_PREFIX + t: _shares_of_maps(t, members, shares[t]) for t in maps}
    content = _join(graphs, members, heads, outputs, maps)
    info = ModelInfo(
        name=name,
        architecture=ENSEMBLE,
        taxonomies=heads,
        default_taxonomy=default,
        input_size=members[0].info.input_size,
        # One shift serves all members in ten-crop: that of the member which sees most, since a larger one
        # would show it repeated edges.
        view_size=max(member.info.view_size for member in members),
        crops=members[0].info.crops,
        parameters=sum(member.info.parameters for member in members),
        mmac=sum(member.info.mmac for member in members),
        training=training or Provenance(),
        precision=_joined(member.info.precision for member in members),
        licence=_joined(member.info.licence for member in members),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        ferkit_version=__version__,
        members=tuple(network for k, m in enumerate(members) for network in _networks(m, k, shares)),
    )
    return Ensemble(content, info, members, shares)


def _mean_prior(taxonomy: str, members: Sequence[Member], shares: Sequence[float]) -> tuple[float, ...]:
    """Return the weighted mean of the members' priors; empty if one with a weight has none."""
    used = [(m.info.head(taxonomy).prior, share) for m, share in zip(members, shares, strict=True) if share]
    if not all(prior for prior, _ in used):
        return ()
    shares_used, priors = [share for _, share in used], np.array([prior for prior, _ in used])
    return tuple((np.array(shares_used) @ priors).tolist())


def _networks(member: Member, k: int, shares: Mapping[str, Sequence[float]]) -> list[MemberInfo]:
    """Return the records of a member's networks: its own, or an ensemble's with multiplied weights."""
    weights = {t: share[k] for t, share in shares.items() if member.has(t)}
    if not member.info.members:
        known = member.info.model_dump(include=set(MemberInfo.model_fields))
        return [MemberInfo(**known, sha256=member.sha256, weights=weights)]
    return [
        network.model_copy(update={"weights": {t: w * weights[t] for t, w in network.weights.items()}})
        for network in member.info.members
    ]


def _joined(values: Iterable[str]) -> str:
    """Return the distinct parts of texts such as ``float16 + int8``, sorted and joined again."""
    return " + ".join(sorted({part for value in values for part in value.split(" + ") if part}))


def _opset_of(model: Any) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _size_of_maps(
    taxonomy: str, graphs: Sequence[Any], members: Sequence[Member], shares: Sequence[float]
) -> tuple[int, int] | None:
    """Return height and width of the maps that all members with a weight have alike, or None."""
    sizes = set()
    for graph, member, share in zip(graphs, members, shares, strict=True):
        if not share:
            continue
        if not member.info.head(taxonomy).cam:
            return None
        dims = [
            int(d.dim_value)
            for output in graph.graph.output
            if output.name == CAM_PREFIX + taxonomy
            for d in output.type.tensor_type.shape.dim
        ]
        if len(dims) != 4:
            return None
        # Maps of one size cover other places of the crop where a member cuts off more of its edge.
        sizes.add((dims[2], dims[3], member.info.view_size))
    height, width, _ = sizes.pop()
    return (height, width) if height and width and not sizes else None


def _shares_of_maps(taxonomy: str, members: Sequence[Member], shares: Sequence[float]) -> tuple[float, ...]:
    """Return the factor of each member's maps: maps average to logits, which its temperature divides."""
    return tuple(
        share / member.info.head(taxonomy).temperature if share else 0.0
        for member, share in zip(members, shares, strict=True)
    )


def _join(
    graphs: Sequence[Any],
    members: Sequence[Member],
    heads: Sequence[HeadInfo],
    shares: Mapping[str, Sequence[float]],
    maps: Mapping[str, tuple[int, int]],
) -> bytes:
    """Return one model in which all members' graphs get the same faces and their outputs are averaged.

    ``shares`` are the factors of each member by output, those of maps included; ``maps`` are height and width
    of the maps by taxonomy.
    """
    helper = require("onnx.helper", "train")
    numpy_helper = require("onnx.numpy_helper", "train")
    checker = require("onnx.checker", "train")
    tensor = require("onnx", "train").TensorProto
    opset = max(_OPSET, *(_opset_of(graph) for graph in graphs))
    parts = [_prefixed(graph, f"m{k}_", opset, members[k].info.name) for k, graph in enumerate(graphs)]
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: float) -> str:
        constants.append(numpy_helper.from_array(np.float32(value), name))
        return name

    def add_up(output: str, result: str) -> None:
        terms = []
        for k, share in enumerate(shares[output]):
            if share:
                terms.append(f"part_{output}_{k}")
                weight = constant(f"weight_{output}_{k}", share)
                nodes.append(helper.make_node("Mul", [f"m{k}_{output}", weight], [terms[-1]], name=terms[-1]))
        nodes.append(helper.make_node("Sum", terms, [result], name=f"mean_{output}"))

    for k, part in enumerate(parts):
        nodes.append(helper.make_node("Identity", [INPUT], [f"m{k}_{INPUT}"], name=f"share_{k}"))
        nodes.extend(part.graph.node)
        constants.extend(part.graph.initializer)
    outputs = []
    for head in heads:
        mean = head.id if head.temperature == 1 else f"mean_{head.id}"
        add_up(head.id, mean)
        outputs.append(helper.make_tensor_value_info(head.id, tensor.FLOAT, ["N", len(head.labels)]))
        if head.temperature != 1:
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
            cam, shape = CAM_PREFIX + head.id, ["N", len(head.labels), *maps[head.id]]
            add_up(cam, cam)
            outputs.append(helper.make_tensor_value_info(cam, tensor.FLOAT, shape))
    side = members[0].info.input_size
    graph = helper.make_graph(
        nodes,
        ENSEMBLE,
        [helper.make_tensor_value_info(INPUT, tensor.UINT8, ["N", side, side])],
        outputs,
        constants,
    )
    domains = {entry.domain: entry.version for part in parts for entry in part.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
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


def _prefixed(model: Any, prefix: str, opset: int, name: str) -> Any:
    """Return a member's model in the common opset, with every name prefixed."""
    if _opset_of(model) != opset:
        try:
            model = require("onnx.version_converter", "train").convert_version(model, opset)
        except RuntimeError as error:
            raise ModelFileError(
                f"member {name!r} has opset {_opset_of(model)} and cannot be converted to {opset}, which "
                f"another member has: {error}. Export it again"
            ) from error
    return require("onnx.compose", "train").add_prefix(model, prefix)


def _check_parity(ensemble: Ensemble, content: bytes) -> None:
    """Compare the file's predictions for random pictures with those computed from its members'."""
    size = ensemble.info.input_size
    probes = np.random.default_rng(0).integers(0, 256, (_PROBES, size, size), dtype=np.uint8)
    classifier = FaceClassifier(content)
    found = classifier.predict(probes)
    classifiers = [FaceClassifier(member.content) for member in ensemble.members]
    predicted = [member.predict(probes) for member in classifiers]
    for head in ensemble.info.taxonomies:
        if head.join is not None:
            _check_same(head.id, found[head.id], joined(head, found), 1.0)
            continue
        shares = ensemble.weights[head.id]
        mean = sum(
            share * p[head.id].astype(np.float64) for share, p in zip(shares, predicted, strict=True) if share
        )
        expected = mean if head.temperature == 1.0 else temper(mean, head.temperature)
        _check_same(head.id, found[head.id], expected, 1.0)
        if head.cam:
            maps = sum(
                share * member.cams(probes, head.id).astype(np.float64)
                for share, member in zip(
                    _shares_of_maps(head.id, ensemble.members, shares), classifiers, strict=True
                )
                if share
            )
            # Unlike probabilities, maps have no scale of their own.
            scale = max(1.0, float(np.abs(maps).max()))
            _check_same(CAM_PREFIX + head.id, classifier.cams(probes, head.id), maps, scale)


def _check_same(output: str, found: NDArray[Any], expected: Any, scale: float) -> None:
    difference = float(np.abs(found - expected).max()) / scale
    if not difference <= PARITY:
        raise ModelFileError(
            f"output {output!r} of the joined file differs from its members' by {difference:.2g}; at most "
            f"{PARITY:g} is allowed, so nothing was written"
        )
