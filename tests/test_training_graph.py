"""A model file's graph as operations of Keras answers what ONNX Runtime answers, of every architecture."""

from __future__ import annotations

import numpy as np
import pytest

from ferkit.cli import run
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import TrainingError
from ferkit.core.modelfile import read_model, resolve_model, write_model
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.weights import embedded_models
from modelzoo import model_info, write_tiny_model

pytest.importorskip("keras", reason="needs ferkit[train]")

import onnx
from keras import ops, random
from onnx import helper

from ferkit.export.graph import to_onnx
from ferkit.models import build_model
from ferkit.training.graph import GraphFunction

SMALL = {
    "seed-cnn": {},
    "random-search-2021": {"width": 0.1},
    "mini-xception": {"filters": (4, 8)},
    "vgg": {"filters": (4, 8), "convolutions": (1, 1)},
    "se-resnet": {"stem": 4, "filters": (8, 12), "blocks": (1, 2)},
}


def shown(count=6, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), np.uint8)


def answers(content, faces, dtype="float32"):
    _, info = read_model(content)
    heads = [head.id for head in info.taxonomies]
    function = GraphFunction(content, heads, name="it", dtype=dtype)
    got = function(ops.convert_to_tensor(faces.astype(np.float32)))
    return {head: ops.convert_to_numpy(p) for head, p in got.items()}


def scrambled(network, seed=3):
    """Give batch normalisation averages that are not those of a new network, so that a mistake shows."""
    for k, weight in enumerate(network.weights):
        if "moving" in weight.path or "gamma" in weight.path or "beta" in weight.path:
            weight.assign(random.uniform(weight.shape, 0.5, 1.5, seed=seed + k))
    return network


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", [*SMALL, "cut", "deep-stem"])
def test_every_architecture_answers_as_in_onnx_runtime(name, precision, tmp_path):
    extra = {"cut": {"view_size": 40}, "deep-stem": {"stem_depth": 2}}.get(name, {})
    architecture = "se-resnet" if extra else name
    network = build_model(architecture, {"fer2013": 7, "ferplus": 8}, **SMALL[architecture], **extra)
    path = tmp_path / "model.onnx"
    info = model_info((FER2013, FERPLUS), cam=False)
    write_model(to_onnx(scrambled(network), {"ferplus": 0.7}, cams=False, precision=precision), info, path)
    faces = shown()
    got = answers(path.read_bytes(), faces)
    for head, expected in FaceClassifier(path).predict(faces).items():
        np.testing.assert_allclose(got[head], expected, atol=2e-5)
        assert np.ptp(expected, axis=0).max() > 1e-4, (
            "faces are told apart, so that equal answers say something"
        )


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_models_answer_as_in_onnx_runtime_and_nearly_so_in_bfloat16(name):
    content, _ = read_model(resolve_model(name))
    faces = shown(8)
    expected = FaceClassifier(name).predict(faces)
    for head, p in answers(content, faces).items():
        np.testing.assert_allclose(p, expected[head], atol=2e-5)
    for head, p in answers(content, faces, "bfloat16").items():
        assert p.dtype == np.float32
        np.testing.assert_allclose(p, expected[head], atol=0.1)  # eight bits of a number's digits


def test_an_ensemble_answers_as_in_onnx_runtime(tmp_path):
    members = [write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed, temperature=0.5) for seed in (1, 2)]
    vote = tmp_path / "vote.onnx"
    data = ["--data", "cartoon:200", "--fit"]
    assert run(["ensemble", *map(str, members), "-o", str(vote), *data]) == 0
    faces = shown()
    for head, p in answers(vote.read_bytes(), faces).items():
        np.testing.assert_allclose(p, FaceClassifier(vote).predict(faces)[head], atol=2e-5)


def test_fractions_of_a_gray_value_count():
    content, _ = read_model(resolve_model("ferkit-small"))
    function = GraphFunction(content, ["fer2013"], name="it")
    faces = ops.convert_to_tensor(shown(2).astype(np.float32))
    moved = function(ops.minimum(faces + 0.4, 255.0))["fer2013"]
    assert float(ops.max(ops.abs(moved - function(faces)["fer2013"]))) > 1e-6


def test_only_what_is_asked_is_computed():
    content, info = read_model(resolve_model("ferkit-small"))
    both = GraphFunction(content, [head.id for head in info.taxonomies], name="it")
    one = GraphFunction(content, ["ferplus"], name="it")
    assert len(one.steps) < len(both.steps)
    assert set(one(ops.convert_to_tensor(shown(1).astype(np.float32)))) == {"ferplus"}


def graph_of(*nodes, constants=()):
    out = helper.make_tensor_value_info("fer2013", onnx.TensorProto.FLOAT, ["N", 7])
    face = helper.make_tensor_value_info("face", onnx.TensorProto.UINT8, ["N", 48, 48])
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants]
    graph = helper.make_graph(list(nodes), "odd", [face], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([helper.make_node("Erf", ["face"], ["fer2013"])], (), "Erf"),
        (
            [helper.make_node("Conv", ["face", "k"], ["fer2013"], group=2)],
            [("k", np.zeros((4, 2, 3, 3), np.float32))],
            "Conv with 2 groups",
        ),
        (
            [helper.make_node("Conv", ["face", "k"], ["fer2013"], auto_pad="SAME_LOWER")],
            [("k", np.zeros((4, 4, 3, 3), np.float32))],
            "padded by",
        ),
        (
            [helper.make_node("AveragePool", ["face"], ["fer2013"], kernel_shape=[2, 2], pads=[1, 1, 1, 1])],
            (),
            "beyond the edge",
        ),
        ([helper.make_node("ReduceMean", ["face"], ["fer2013"])], (), "reduction over everything"),
        ([helper.make_node("Flatten", ["face"], ["fer2013"], axis=2)], (), "Flatten"),
        (
            [helper.make_node("Gemm", ["face", "k"], ["fer2013"], alpha=2.0)],
            [("k", np.zeros((4, 4), np.float32))],
            "Gemm with factors",
        ),
        (
            [helper.make_node("Slice", ["face", "a", "b", "axes", "steps"], ["fer2013"])],
            [(n, np.array([v], np.int64)) for n, v in (("a", 0), ("b", 9), ("axes", 1), ("steps", 2))],
            "Slice with steps",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_told_with_the_way_out(nodes, constants, message):
    with pytest.raises(TrainingError, match=rf"odd one has the operation .*{message}.*every_step=false"):
        GraphFunction(graph_of(*nodes, constants=constants), ["fer2013"], name="odd one")(
            ops.zeros((2, 4, 8, 8))
        )


def test_a_shape_taken_apart_and_put_together_again_is_followed():
    """Shape, Gather of one length, Unsqueeze, Concat: how PyTorch writes a flattening."""
    constants = [
        ("first", np.array(0, np.int64)),
        ("axis", np.array([0], np.int64)),
        ("rest", np.array([-1], np.int64)),
        ("w", np.random.default_rng(0).normal(0, 1e-4, (48 * 48, 7)).astype(np.float32)),
    ]
    nodes = [
        helper.make_node("Cast", ["face"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["fer2013"], axis=-1),
    ]
    faces = shown(3).astype(np.float32)
    got = GraphFunction(graph_of(*nodes, constants=constants), ["fer2013"], name="it")(
        ops.convert_to_tensor(faces)
    )
    logits = faces.reshape(3, -1) @ constants[3][1]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ops.convert_to_numpy(got["fer2013"]), expected, rtol=1e-4)
