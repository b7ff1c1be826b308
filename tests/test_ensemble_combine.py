"""The joined file keeps the contract and predicts the weighted, tempered mean of its members."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.version_converter
import pytest

from ferkit.core import onnxbytes
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import CropGeometry
from ferkit.core.errors import ModelFileError
from ferkit.core.modelfile import Provenance, read_model, write_model
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.evaluation.calibration import temper
from ferkit.export.ensemble import Member, combine, load_member
from modelzoo import BOTH, graph_bytes, metric, model_info, write_tiny_model


@pytest.fixture
def crops():
    return np.random.default_rng(5).integers(0, 256, (17, 48, 48), dtype=np.uint8)


@pytest.fixture
def members(tmp_path):
    return [load_member(write_tiny_model(tmp_path / f"m{seed}.onnx", seed=seed)) for seed in range(3)]


def _write(members, path, **options):
    combine(members, name="pair", **options).write(path)
    return FaceClassifier(path)


def _predictions(members, crops):
    return [FaceClassifier(member.content).predict(crops) for member in members]


def test_equal_weights_predict_the_mean_of_the_members(members, crops, tmp_path):
    found = _write(members, tmp_path / "e.onnx").predict(crops)
    predictions = _predictions(members, crops)
    for taxonomy in BOTH:
        expected = np.mean([p[taxonomy.id] for p in predictions], axis=0)
        np.testing.assert_allclose(found[taxonomy.id], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tta", ["flip", "ten-crop"])
def test_the_mean_holds_under_every_tta(members, crops, tmp_path, tta):
    found = _write(members, tmp_path / "e.onnx").predict(crops, tta=tta)
    predictions = [FaceClassifier(m.content).predict(crops, tta=tta) for m in members]
    expected = np.mean([p["fer2013"] for p in predictions], axis=0)
    np.testing.assert_allclose(found["fer2013"], expected, rtol=0, atol=1e-6)


def test_weights_need_not_sum_to_one(members, crops, tmp_path):
    found = _write(members, tmp_path / "e.onnx", weights=[1, 2, 1]).predict(crops)["ferplus"]
    a, b, c = (p["ferplus"] for p in _predictions(members, crops))
    np.testing.assert_allclose(found, 0.25 * a + 0.5 * b + 0.25 * c, rtol=0, atol=1e-6)


def test_each_taxonomy_can_have_weights_and_a_temperature_of_its_own(members, crops, tmp_path):
    classifier = _write(
        members,
        tmp_path / "e.onnx",
        weights={"fer2013": [1, 1, 0], "ferplus": [0, 0, 1]},
        temperatures={"fer2013": 0.6},
    )
    a, b, c = _predictions(members, crops)
    found = classifier.predict(crops)
    np.testing.assert_allclose(
        found["fer2013"], temper((a["fer2013"] + b["fer2013"]) / 2, 0.6), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(found["ferplus"], c["ferplus"], rtol=0, atol=1e-6)
    assert [head.temperature for head in classifier.info.taxonomies] == [0.6, 1.0]


@pytest.mark.parametrize("temperature", [0.3, 1.7, 5.0])
def test_the_temperature_is_softmax_of_log_p_over_t(members, crops, tmp_path, temperature):
    classifier = _write(members, tmp_path / "e.onnx", temperatures={"fer2013": temperature})
    mean = np.mean([p["fer2013"] for p in _predictions(members, crops)], axis=0)
    np.testing.assert_allclose(
        classifier.predict(crops)["fer2013"], temper(mean, temperature), rtol=0, atol=1e-6
    )


def test_probabilities_of_zero_pass_the_logarithm(crops, tmp_path):
    # A member whose softmax underflows to exact zeros in float32.
    model = onnx.load_from_string(graph_bytes())
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w_"):
            large = onnx.numpy_helper.to_array(tensor) * 1000
            tensor.CopyFrom(onnx.numpy_helper.from_array(large, tensor.name))
    write_model(model.SerializeToString(), model_info(), tmp_path / "sharp.onnx")
    sharp = load_member(tmp_path / "sharp.onnx")
    assert (FaceClassifier(sharp.content).predict(crops)["fer2013"] == 0).any()
    found = _write([sharp, sharp], tmp_path / "e.onnx", temperatures={"fer2013": 2.0}).predict(crops)
    assert np.isfinite(found["fer2013"]).all()
    np.testing.assert_allclose(found["fer2013"].sum(axis=1), 1, atol=1e-5)


def test_ferplus_comes_from_the_members_that_have_it(members, crops, tmp_path):
    plain = load_member(write_tiny_model(tmp_path / "plain.onnx", (FER2013,), seed=9))
    both = members[:2]
    classifier = _write([plain, *both], tmp_path / "e.onnx")
    assert [head.id for head in classifier.info.taxonomies] == ["fer2013", "ferplus"]
    expected = np.mean([p["ferplus"] for p in _predictions(both, crops)], axis=0)
    np.testing.assert_allclose(classifier.predict(crops)["ferplus"], expected, rtol=0, atol=1e-6)
    assert [m.weights.get("ferplus") for m in classifier.info.members] == [None, 0.5, 0.5]


def test_an_ensemble_is_replaced_by_its_members_with_multiplied_weights(members, crops, tmp_path):
    known = [
        replace(m, info=m.info.model_copy(update={"name": f"n{k}", "metrics": (metric(10 + k),)}))
        for k, m in enumerate(members)
    ]
    _write(known[:2], tmp_path / "inner.onnx", weights={"fer2013": [3, 1], "ferplus": [0, 1]})
    pair = [load_member(tmp_path / "inner.onnx"), known[2]]
    outer = _write(pair, tmp_path / "e.onnx", weights=[2, 1])
    a, b, c = _predictions(members, crops)
    found = outer.predict(crops)
    expected = a["fer2013"] / 2 + b["fer2013"] / 6 + c["fer2013"] / 3
    np.testing.assert_allclose(found["fer2013"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["ferplus"], (2 * b["ferplus"] + c["ferplus"]) / 3, rtol=0, atol=1e-6)
    assert [m.name for m in outer.info.members] == ["n0", "n1", "n2"]
    assert [m.sha256 for m in outer.info.members] == [m.sha256 for m in members]
    assert [m.metrics[0].n for m in outer.info.members] == [10, 11, 12]
    for taxonomy, weights in {"fer2013": (1 / 2, 1 / 6, 1 / 3), "ferplus": (0, 2 / 3, 1 / 3)}.items():
        assert [m.weights[taxonomy] for m in outer.info.members] == pytest.approx(weights)


@pytest.mark.parametrize(
    "fitted",
    [
        {"temperatures": {"fer2013": 1.3}},
        {"training": Provenance(fitted_on="PublicTest", fitted={"fer2013": "weights and temperature"})},
    ],
)
def test_an_ensemble_that_was_fitted_is_refused_as_a_member(members, tmp_path, fitted):
    """It is no plain mean of its members, or its weights depend on the faces of a split."""
    _write(members[:2], tmp_path / "inner.onnx", **fitted)
    with pytest.raises(
        ModelFileError, match=r"inner\.onnx is an ensemble.*name its members instead: tiny, tiny"
    ):
        load_member(tmp_path / "inner.onnx")


def test_a_member_may_be_named_twice(members, crops, tmp_path):
    found = _write([members[0], members[0], members[1]], tmp_path / "e.onnx").predict(crops)["fer2013"]
    a, b = (p["fer2013"] for p in _predictions(members[:2], crops))
    np.testing.assert_allclose(found, (2 * a + b) / 3, rtol=0, atol=1e-6)


def test_members_of_different_opsets_are_joined(members, crops, tmp_path):
    newer = onnx.version_converter.convert_version(onnx.load_from_string(graph_bytes(seed=4)), 21)
    write_model(newer.SerializeToString(), model_info(), tmp_path / "newer.onnx")
    pair = [members[0], load_member(tmp_path / "newer.onnx")]
    found = _write(pair, tmp_path / "e.onnx").predict(crops)["fer2013"]
    expected = np.mean([p["fer2013"] for p in _predictions(pair, crops)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_branch_inside_a_members_graph_keeps_what_it_reads(crops, tmp_path):
    # `If` has a subgraph per branch; both read `logits_fer2013` of the graph around them.
    model = onnx.load_from_string(graph_bytes((FER2013,), cam=False))
    (last,) = (node for node in model.graph.node if "fer2013" in node.output)
    outcome = onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, ["N", 7])
    branches = {
        f"{name}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["logits_fer2013"], ["chosen"], name=f"take_{name}")],
            name,
            [],
            [outcome],
        )
        for name in ("then", "else")
    }
    choice = onnx.helper.make_node("If", ["yes"], ["branched"], name="choice", **branches)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(len(model.graph.node) - 1, choice)
    last.input[0] = "branched"
    write_model(model.SerializeToString(), model_info((FER2013,), cam=False), tmp_path / "if.onnx")
    member = load_member(tmp_path / "if.onnx")
    found = _write([member, member], tmp_path / "e.onnx").predict(crops)["fer2013"]
    np.testing.assert_allclose(found, _predictions([member], crops)[0]["fer2013"], rtol=0, atol=1e-6)


def test_the_metadata_name_every_member_its_digest_and_its_weight(members, tmp_path):
    _write(members, tmp_path / "e.onnx", weights=[1, 2, 1])
    _, info = read_model(tmp_path / "e.onnx")
    assert info.architecture == "ensemble"
    assert [(m.name, m.sha256, m.weights) for m in info.members] == [
        ("tiny", member.sha256, {"fer2013": weight, "ferplus": weight})
        for member, weight in zip(members, (0.25, 0.5, 0.25), strict=True)
    ]


def test_the_metadata_hold_the_record_of_every_member_and_the_sum_of_their_sizes(members):
    training = Provenance(seeds=(7,), epochs=20, hours=1.5, faces="ab")
    known = {"parameters": 10, "mmac": 2.5, "recipe": {"seed": 7}, "training": training}
    members = [replace(m, info=m.info.model_copy(update=known)) for m in members]
    info = combine(members, name="trio").info
    assert (info.parameters, info.mmac, info.recipe) == (30, 7.5, {})
    for member in info.members:
        assert (member.parameters, member.recipe, member.training) == (10, {"seed": 7}, training)


def test_a_member_without_weight_is_left_out_of_the_file(members, tmp_path):
    classifier = _write(members, tmp_path / "two.onnx", weights=[1, 0, 1])
    assert [m.sha256 for m in classifier.info.members] == [members[0].sha256, members[2].sha256]
    _write(members, tmp_path / "three.onnx")
    assert (tmp_path / "two.onnx").stat().st_size < 0.75 * (tmp_path / "three.onnx").stat().st_size


def test_the_joined_file_carries_no_metadata_of_its_members(members, tmp_path):
    _write(members, tmp_path / "e.onnx")
    keys = [entry[0] for entry in onnxbytes.metadata((tmp_path / "e.onnx").read_bytes())]
    assert sorted(keys) == ["ferkit", "ferkit.sha256"]


def test_ten_crop_shifts_as_the_member_that_sees_most_allows(members):
    narrow, wide = (
        replace(m, info=m.info.model_copy(update={"view_size": v}))
        for m, v in zip(members, (40, 44), strict=False)
    )
    assert combine([narrow, wide], name="pair").info.ten_crop_shift == 2
    assert combine([narrow, narrow], name="pair").info.ten_crop_shift == 4


def _changed(member: Member, **update) -> Member:
    return replace(member, info=member.info.model_copy(update=update))


def test_members_of_different_size_are_refused(members, tmp_path):
    large = load_member(write_tiny_model(tmp_path / "large.onnx", size=64))
    with pytest.raises(ModelFileError, match=r"one size.*48 pixels.*64"):
        combine([members[0], large], name="pair")


def test_members_with_different_crops_are_refused(members):
    other = _changed(members[1], crops={"yunet": CropGeometry(align="eyes")})
    with pytest.raises(ModelFileError, match="crop geometry"):
        combine([members[0], other], name="pair")


def test_members_with_different_labels_for_one_taxonomy_are_refused(members, tmp_path):
    turned = Taxonomy("fer2013", FER2013.labels[::-1])
    other = load_member(write_tiny_model(tmp_path / "turned.onnx", (turned,)))
    with pytest.raises(ModelFileError, match=r"different labels for 'fer2013'.*neutral, surprise"):
        combine([members[0], other], name="pair")


def test_weights_that_are_none_are_refused(members):
    with pytest.raises(ModelFileError, match="3 members need as many weights"):
        combine(members, name="pair", weights=[1, 2])


def test_no_member_is_refused():
    with pytest.raises(ModelFileError, match="at least one member"):
        combine([], name="pair")


def test_a_file_that_does_not_predict_as_its_members_is_not_written(members, tmp_path):
    joined = combine(members[:2], name="pair")
    wrong = replace(joined, weights={**joined.weights, "fer2013": (0.9, 0.1)})
    with pytest.raises(ModelFileError, match="'fer2013' of the joined file differs"):
        wrong.write(tmp_path / "e.onnx")
    assert not list(tmp_path.glob("*e.onnx"))


def test_members_whose_graphs_cannot_run_are_refused(members, tmp_path):
    model = onnx.load_from_string(graph_bytes((FERPLUS,)))
    write_model(model.SerializeToString(), model_info((FER2013,)), tmp_path / "liar.onnx")
    with pytest.raises(ModelFileError):
        combine([members[0], load_member(tmp_path / "liar.onnx")], name="pair")


def test_maps_are_the_weighted_sum_of_the_members_maps_over_their_temperatures(members, crops, tmp_path):
    sure = load_member(write_tiny_model(tmp_path / "sure.onnx", seed=8, temperature=0.5))
    pair = [members[0], sure]
    classifier = _write(pair, tmp_path / "e.onnx", weights=[3, 1], temperatures={"fer2013": 0.6})
    for head in ("fer2013", "ferplus"):
        a, b = (FaceClassifier(member.content).cams(crops, head) for member in pair)
        expected = 0.75 * a + 0.25 * b / 0.5
        np.testing.assert_allclose(classifier.cams(crops, head), expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_of_ensembles_has_maps_too(members, crops, tmp_path):
    _write(members[:2], tmp_path / "inner.onnx")
    inner = load_member(tmp_path / "inner.onnx")
    found = _write([inner, members[2]], tmp_path / "e.onnx").cams(crops, "fer2013")
    a, b, c = (FaceClassifier(member.content).cams(crops, "fer2013") for member in members)
    np.testing.assert_allclose(found, 0.25 * a + 0.25 * b + 0.5 * c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", ["without maps", "with smaller maps", "that sees less of the face"])
def test_no_maps_are_made_with_a_member(members, tmp_path, crops, other):
    path = tmp_path / "other.onnx"
    if other == "without maps":
        write_tiny_model(path, (FER2013,), cam=False)
    elif other == "with smaller maps":
        write_model(_with_pooled_maps(), model_info((FER2013,)), path)
    else:
        narrow = model_info((FER2013,)).model_copy(update={"view_size": 40})
        write_model(graph_bytes((FER2013,)), narrow, path)
    classifier = _write([members[0], load_member(path)], tmp_path / "e.onnx")
    assert not classifier.info.head("fer2013").cam
    assert classifier.info.head("ferplus").cam, "which the other does not have"
    with pytest.raises(ModelFileError, match="no class activation maps for 'fer2013'"):
        classifier.cams(crops, "fer2013")
    alone = _write([members[0], load_member(path)], tmp_path / "one.onnx", weights=[1, 0])
    assert alone.info.head("fer2013").cam, "a member without weight does not matter"


def _with_pooled_maps() -> bytes:
    """A small graph whose maps are half as large."""
    model = onnx.load_from_string(graph_bytes((FER2013,)))
    graph = model.graph
    graph.node.append(
        onnx.helper.make_node("AveragePool", ["active"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2])
    )
    pool = graph.node.pop()
    at = next(i for i, node in enumerate(graph.node) if "cam_fer2013" in node.output)
    graph.node[at].input[0] = "pooled"
    graph.node.insert(at, pool)
    (maps,) = (output for output in graph.output if output.name == "cam_fer2013")
    for axis in (2, 3):
        maps.type.tensor_type.shape.dim[axis].dim_value //= 2
    content: bytes = model.SerializeToString()
    return content


def test_a_file_whose_maps_are_not_its_members_is_not_written(members, tmp_path):
    joined = combine(members[:2], name="pair")
    model = onnx.load_from_string(joined.content)
    share = next(entry for entry in model.graph.initializer if entry.name == "weight_cam_fer2013_1")
    share.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.6), share.name))
    with pytest.raises(ModelFileError, match="'cam_fer2013' of the joined file differs"):
        replace(joined, content=model.SerializeToString()).write(tmp_path / "e.onnx")
    assert not list(tmp_path.glob("*e.onnx"))
