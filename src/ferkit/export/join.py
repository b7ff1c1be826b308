"""Add to a model file the output ``basic``, and of each output prior, coverage curve and quality curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import ModelFileError
from ferkit.core.extras import require
from ferkit.core.modelfile import CAM_PREFIX, Fit, HeadInfo, ModelInfo
from ferkit.core.taxonomy import BASIC
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.calibration import temper_out_of_fold
from ferkit.evaluation.coverage import LEAST_FACES, measure_coverage
from ferkit.evaluation.evaluate import targets_for
from ferkit.evaluation.join import (
    HEADS,
    columns_of,
    fit_join,
    has_both,
    is_labelled_for_basic,
    joined_out_of_fold,
    label_distributions,
    label_frequencies,
    weighted_distributions,
)
from ferkit.evaluation.metrics import SMALLEST_PROBABILITY
from ferkit.evaluation.quality import fit_quality

Predictions = Mapping[str, NDArray[Any]]
"""Probabilities ``[N, K]`` by taxonomy id."""


def with_basic(
    graph: bytes, info: ModelInfo, predictions: Predictions, faces: FaceDataset, split: str
) -> tuple[bytes, ModelInfo]:
    """Return a model with the output ``basic``, fitted to labelled faces.

    A model without both heads, with that output already, or faces without FER2013's labels and FER+ votes,
    are returned unchanged.
    """
    heads = {head.id: head.taxonomy for head in info.taxonomies}
    if not has_both(heads) or not is_labelled_for_basic(faces):
        return graph, info
    head = fit_join(predictions, label_distributions(faces))
    head = head.model_copy(update={"cam": _maps_fit(graph, info)})
    fit: Fit = "join"
    training = info.training.model_copy(
        update={"fitted_on": split, "fitted": {**info.training.fitted, BASIC.id: fit}}
    )
    update = {"taxonomies": (*info.taxonomies, head), "training": training}
    return add_nodes(graph, info, head), info.model_copy(update=update)


def with_priors(info: ModelInfo, training: FaceDataset) -> ModelInfo:
    """Return metadata with the prior of each head: the label frequencies of the training faces.

    Where the recipe balanced the data's own labels their prior is uniform, and that of FER+ votes is known
    for ``balance = "weights"`` only. Logit adjustment by t leaves the frequencies to the power 1 - t.
    """
    balance = info.recipe.get("data", {}).get("balance", "none")
    power = 1 - info.recipe.get("loss", {}).get("logit_adjustment", 0.0)

    def prior(head: HeadInfo) -> tuple[float, ...]:
        frequencies = np.array(label_frequencies(training, head.taxonomy))
        if balance != "none" and head.taxonomy == training.taxonomy:
            frequencies = (frequencies > 0).astype(np.float64)
        elif balance not in ("none", "weights"):
            return ()
        shares = np.where(frequencies > 0, np.maximum(frequencies, 1e-12) ** power, 0)
        return tuple((shares / shares.sum()).round(6).tolist()) if shares.sum() else ()

    return _with_each(info, "prior", lambda head: prior(head) if head.join is None else head.prior)


def with_coverage(info: ModelInfo, predictions: Predictions, faces: FaceDataset, split: str) -> ModelInfo:
    """Return metadata with the coverage curve of each output that the faces have labels for.

    Predictions are made out of fold: by temperatures and joins that were fitted without the face.
    """
    heads = {head.id: head.taxonomy for head in info.taxonomies}
    curves = {}
    for target in targets_for(faces, {name: heads[name] for name in predictions}):
        head, keep = info.head(target.taxonomy.id), target.keep
        if head.id in curves or head.join is not None or keep.sum() < LEAST_FACES:
            continue
        held_out = temper_out_of_fold(predictions[head.id][keep], target.labels[keep])
        right = np.eye(len(target.taxonomy))[target.labels[keep]]
        curves[head.id] = measure_coverage(held_out, right, split=split, labels=target.name)
    for head in info.taxonomies:
        if head.join is not None and is_labelled_for_basic(faces):
            given = {one.id: predictions[one.id] for one in HEADS}
            shares = label_distributions(faces, head.join.votes)
            held_out = joined_out_of_fold(
                given, shares, votes=head.join.votes, prior_exponent=head.join.prior_exponent
            )
            curves[head.id] = measure_coverage(held_out, shares, split=split, labels="labels and votes")
    return _with_each(info, "coverage", lambda head: curves.get(head.id, head.coverage))


def with_quality(
    info: ModelInfo, predict: Callable[[NDArray[np.uint8]], Predictions], faces: FaceDataset
) -> ModelInfo:
    """Return metadata with the temperatures for blurred and dark faces, fitted to labelled faces.

    ``predict`` takes faces uint8 ``[N, S, S]``. Fewer faces than
    :data:`ferkit.evaluation.coverage.LEAST_FACES` fit nothing.
    """
    if len(faces) < LEAST_FACES:
        return info
    targets: dict[str, NDArray[np.float64]] = {}
    for target in targets_for(faces, {head.id: head.taxonomy for head in info.taxonomies}):
        head = info.head(target.taxonomy.id)
        if head.join is not None:
            targets[head.id] = weighted_distributions(faces, head.join)
        elif head.id not in targets:
            targets[head.id] = np.eye(len(target.taxonomy))[target.labels] * target.keep[:, None]
    curves = fit_quality(predict, np.asarray(faces.images), targets)
    return _with_each(info, "quality", lambda head: curves.get(head.id, ()))


def _with_each(info: ModelInfo, name: str, value: Callable[[HeadInfo], Any]) -> ModelInfo:
    """Return metadata with one field of every output replaced."""
    heads = tuple(head.model_copy(update={name: value(head)}) for head in info.taxonomies)
    return info.model_copy(update={"taxonomies": heads})


def default_of(info: ModelInfo) -> str:
    """Return the output that is used when none is named: a join, or else the first head."""
    return next((head.id for head in info.taxonomies if head.join is not None), info.taxonomies[0].id)


def add_nodes(model: bytes, info: ModelInfo, head: HeadInfo) -> bytes:
    """Return a model with the nodes of a join; everything else in it stays as it is.

    A class activation map of the join is the sum of the heads' maps, each times w/T of its head, since the
    maps add up to logits.

    The model has both heads; maps are added if ``head.cam`` is set.

    Raises:
        ModelFileError: If the graph cannot be extended.
    """
    onnx = require("onnx", "train")
    helper, numpy_helper = require("onnx.helper", "train"), require("onnx.numpy_helper", "train")
    assert head.join is not None
    proto = onnx.load_from_string(model)
    graph, name = proto.graph, head.id

    def constant(what: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}/{what}"))
        return f"{name}/{what}"

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=f"{name}/{output}", **attributes))
        return output

    least = constant("least", np.float32(SMALLEST_PROBABILITY))
    terms, maps = [], []
    for one in HEADS:
        weight = head.join.weights[one.id]
        columns = constant(f"{one.id}_columns", columns_of(one))
        chosen = node("Gather", [one.id, columns], f"{name}/{one.id}", axis=1)
        positive = node("Max", [chosen, least], f"{name}/{one.id}_positive")
        logs = node("Log", [positive], f"{name}/{one.id}_log")
        factor = constant(f"{one.id}_weight", np.float32(weight / head.temperature))
        terms.append(node("Mul", [logs, factor], f"{name}/{one.id}_term"))
        if head.cam:
            places = node("Gather", [CAM_PREFIX + one.id, columns], f"{name}/{one.id}_map", axis=1)
            share = constant(f"{one.id}_share", np.float32(weight / info.head(one.id).temperature))
            maps.append(node("Mul", [places, share], f"{name}/{one.id}_map_term"))
    total = node("Add", terms, f"{name}/sum")
    offsets = constant("offsets", np.asarray(head.join.offsets, np.float32) / np.float32(head.temperature))
    logits = node("Sub", [total, offsets], f"{name}/logits")
    node("Softmax", [logits], name, axis=-1)
    float32 = onnx.TensorProto.FLOAT
    graph.output.append(helper.make_tensor_value_info(name, float32, ["N", len(head.labels)]))
    if head.cam:
        node("Add", maps, CAM_PREFIX + name)
        shape = ["N", len(head.labels), *_map_shapes(proto)[HEADS[0].id]]
        graph.output.append(helper.make_tensor_value_info(CAM_PREFIX + name, float32, shape))
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ModelFileError(f"the output {name!r} cannot be added to the graph: {error}") from error
    content: bytes = proto.SerializeToString()
    return content


def _maps_fit(model: bytes, info: ModelInfo) -> bool:
    """Return whether both heads have class activation maps of one size."""
    if not all(info.head(one.id).cam for one in HEADS):
        return False
    shapes = _map_shapes(require("onnx", "train").load_from_string(model))
    sizes = [shapes.get(one.id, ()) for one in HEADS]
    return len(sizes[0]) == 2 and all(sizes[0]) and sizes[0] == sizes[1]


def _map_shapes(proto: Any) -> dict[str, tuple[int, ...]]:
    """Return height and width of the maps by head, 0 where the graph does not say."""
    return {
        output.name.removeprefix(CAM_PREFIX): tuple(
            int(d.dim_value) for d in output.type.tensor_type.shape.dim[2:]
        )
        for output in proto.graph.output
        if output.name.startswith(CAM_PREFIX)
    }
