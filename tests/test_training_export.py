"""Export: the file predicts as the network does, describes itself, and is not written where it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from ferkit import cli
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import DataError, ModelFileError, TaxonomyError, TrainingError
from ferkit.core.modelfile import read_model

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras

from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.data import load_data
from ferkit.data.cartoon import draw_faces
from ferkit.evaluation.join import label_frequencies
from ferkit.evaluation.model import describe_run
from ferkit.export import run as release
from ferkit.export.graph import quantized, to_onnx
from ferkit.models import build_model
from ferkit.training import runs, state
from ferkit.training.average import average_runs
from ferkit.training.inference import predict_logits, predict_probabilities
from ferkit.training.recipe import dump_recipe, parse_recipe
from modelzoo import model_info

pytestmark = pytest.mark.slow

FER2013_SIZES = {
    "training": 28_709, "validation": 3_589, "train_split": "Training", "validation_split": "PublicTest",
}  # fmt: skip


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:400:3", cache=False)


@pytest.fixture(scope="module")
def run(faces, tmp_path_factory):
    """A run's folder with fresh weights: what export needs of one, without the training."""
    recipe = parse_recipe(
        {
            "name": "tiny",
            "seed": 4,
            "model": {
                "name": "se-resnet",
                "params": {"stem": 4, "filters": [8, 12], "blocks": [1, 1], "view_size": 44},
            },
            "heads": {"label": 1.0, "ferplus": 1.0},
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    taxonomies = (faces.taxonomy, FERPLUS)
    heads = tuple(t.id for t in taxonomies)
    keras.utils.set_random_seed(recipe.seed)
    network = build_model("se-resnet", {t.id: len(t) for t in taxonomies}, **recipe.model.params)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        # Batch normalisation with statistics other than 0 and 1, so that folding has something to fold.
        name = weight.path.rsplit("/")[-1]
        if name in ("moving_mean", "beta"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
        elif name in ("moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    # A head fitted by least squares: it knows something, so that a temperature has a best value.
    pooled = keras.Model(network.input, network.get_layer("pool_fer2013").output)
    features = pooled.predict(faces.images[..., None].astype(np.float32), verbose=0)
    known = np.column_stack([features, np.ones(len(faces))])
    solved = np.linalg.lstsq(known, np.eye(7)[faces.labels], rcond=None)[0]
    dense = network.get_layer("logits_fer2013")
    dense.kernel.assign(20 * solved[:-1])
    dense.bias.assign(20 * solved[-1])
    state.write_archive(
        folder / runs.WEIGHTS, state.network_arrays(network, heads), runs.weights_meta(recipe, taxonomies, 48)
    )
    (folder / runs.RECIPE).write_text(dump_recipe(recipe), "utf-8")
    (folder / runs.HISTORY).write_text("[]", "utf-8")
    facts = {
        "state": "finished",
        "parameters": network.count_params(),
        "mmac": 1.5,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 60.0,
        "data": {"fingerprint": faces.fingerprint, "validation_split": "PublicTest"},
        "machine": {},
        "versions": {},
    }
    (folder / runs.RUN).write_text(json.dumps(facts), "utf-8")
    return runs.load_run(folder)


@pytest.fixture(scope="module")
def exported(run, faces, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "m.onnx"
    return path, release.export_run(run, faces, path, name="m", version="3")


def test_the_file_predicts_as_the_keras_network(run, exported, faces):
    images = np.asarray(faces.images[:50])
    temperatures = {head.id: head.temperature for head in exported[1].taxonomies}
    classifier = FaceClassifier(exported[0])
    for tta in ("none", "flip", "ten-crop"):
        # A network that sees 44 of 48 pixels is shifted by the two that it cuts off on each side.
        expected = predict_probabilities(run.network(), images, tta=tta, temperatures=temperatures, shift=2)
        found = classifier.predict(images, tta=tta)
        for head, array in expected.items():
            np.testing.assert_allclose(found[head], array, atol=1e-4, err_msg=f"{head} {tta}")


@pytest.mark.parametrize(
    ("facts", "restricted"),
    [
        ({"data": FER2013_SIZES}, True),
        ({"data": {"training": 100, "validation": 10}}, False),  # faces of one's own, though labelled alike
        ({"data": {}, "init": {"from": "ferkit-base"}}, True),
        ({"data": {}, "teacher": {"models": [{"name": "ferkit-large"}], "heads": []}}, True),
    ],
)
def test_weights_are_for_research_where_fer2013s_faces_made_them_whatever_the_labels(run, facts, restricted):
    assert {t.id for t in run.taxonomies} == {"fer2013", "ferplus"}
    provenance = describe_run(replace(run, facts={**run.facts, **facts}), {}).training
    assert (release._licence(provenance) == release.LICENCE) is restricted


def test_the_file_records_what_made_it(run, exported, faces):
    path, returned = exported
    info = read_model(path)[1]
    assert info == returned
    assert (info.name, info.version, info.architecture) == ("m", "3", "se-resnet")
    assert info.default_taxonomy == "basic"
    assert (info.input_size, info.view_size) == (48, 44)
    assert info.recipe == run.recipe.model_dump(mode="json")
    assert info.training.fingerprint == faces.fingerprint
    assert (info.training.selected_on, info.training.fitted_on) == ("PublicTest", "PublicTest")
    assert info.training.fitted == {"fer2013": "temperature", "ferplus": "temperature", "basic": "join"}
    assert (info.training.seeds, info.training.hours) == ((4,), 0.017)
    assert info.parity.largest_difference <= release.TOLERANCE
    assert info.licence
    measured = {(m.tta, m.labels, m.without_leaks) for m in info.metrics}
    assert ("ten-crop", "ferplus majority", False) in measured
    assert ("none", "basic majority", False) in measured
    np.testing.assert_allclose(
        info.head("fer2013").prior, label_frequencies(faces.of_split("Training"), FER2013), atol=1e-6
    )
    assert {m.split for m in info.metrics} == {"PublicTest"}


def test_temperatures_minimise_the_loss_on_the_selection_split(run, exported, faces):
    test = faces.of_split("PublicTest")
    logits = predict_logits(run.network(), np.asarray(test.images))["fer2013"].astype(np.float64)

    def loss(temperature):
        scaled = logits / temperature
        log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(test)), test.labels].mean()

    best = exported[1].head("fer2013").temperature
    assert 0.1 < best < 10
    assert loss(best) <= min(loss(best * 0.98), loss(best * 1.02))


def test_activation_maps_average_to_the_logits(run, exported, faces):
    images = np.asarray(faces.images[:5])
    maps = FaceClassifier(exported[0]).cams(images, "fer2013")
    assert maps.shape == (5, 7, 11, 11)
    bias = np.asarray(run.network().get_layer("logits_fer2013").bias)
    np.testing.assert_allclose(
        maps.mean(axis=(2, 3)) + bias, predict_logits(run.network(), images)["fer2013"], rtol=1e-4, atol=5e-4
    )


def operations_on_pixels(graph):
    """The operations from the pixels to the first convolution."""
    found, value = [], "face"
    while not found or found[-1] != "Conv":
        (node,) = [node for node in graph.node if value in node.input]
        found.append(node.op_type)
        value = node.output[0]
    return found


@pytest.mark.parametrize("offset", [0.0, -1.0])
@pytest.mark.parametrize("view", [48, 44])
def test_weights_are_scaled_in_place_of_pixels_unless_zero_would_be_no_black(offset, view):
    onnx = pytest.importorskip("onnx")
    keras.utils.set_random_seed(1)
    face = x = keras.Input((48, 48, 1))
    if view < 48:
        x = keras.layers.Cropping2D((48 - view) // 2)(x)
    x = keras.layers.Rescaling(1 / 64, offset)(x)
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(face, {"fer2013": keras.layers.Dense(7, name="logits_fer2013")(x)})
    graph = to_onnx(network, {})
    operations = operations_on_pixels(onnx.load_from_string(graph).graph)
    assert ("Mul" in operations, "Add" in operations) == (bool(offset), bool(offset))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 48), np.uint8)
    logits = network(pixels[..., None].astype(np.float32))["fer2013"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    np.testing.assert_allclose(session.run(None, {"face": pixels})[0], expected, atol=1e-5)


def test_a_network_without_pooling_has_no_maps():
    graph = to_onnx(build_model("seed-cnn", {"fer2013": 7}, dense=[8]), {})
    import onnx

    assert [out.name for out in onnx.load_from_string(graph).graph.output] == ["fer2013"]


def test_float16_weights_make_a_smaller_file_of_nearly_the_same_predictions(run, faces, exported, tmp_path):
    graph = to_onnx(run.network(), {}, cams=False, precision="float16")
    info = exported[1].model_copy(
        update={
            "precision": "float16",
            "default_taxonomy": "fer2013",
            "taxonomies": tuple(
                h.model_copy(update={"cam": False, "temperature": 1.0})
                for h in exported[1].taxonomies
                if h.join is None
            ),
        }
    )
    path = tmp_path / "small.onnx"
    release.write_model(graph, info, path)
    assert path.stat().st_size < exported[0].stat().st_size
    images = np.asarray(faces.images[:100])
    expected = predict_probabilities(run.network(), images)
    for head, array in FaceClassifier(path).predict(images).items():
        # Float16 keeps 11 bits: 0.05 % of each weight, some times over through five layers, and 20 times over
        # in this network's large head.
        np.testing.assert_allclose(array, expected[head], atol=0.05)


def test_int8_weights_come_back_to_half_a_step_of_their_row():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 40, 3, 3)).astype(np.float32)
    weights[1] *= 100  # rows of their own scale
    weights[2] = 0
    weights[3] *= 1e-7  # shorter than the shortest step
    steps, scales = quantized(weights, axis=1)
    assert (steps.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (5, 1, 3, 3))
    back = steps.astype(np.float32) * scales.astype(np.float32)
    assert np.isfinite(back).all()
    assert (back[2] == 0).all()
    error = np.abs(back - weights)
    inside = np.abs(steps) < 127
    assert (error <= 0.5001 * scales.astype(np.float32))[inside].all()
    relative = np.sqrt((error[:2] ** 2).mean()) / weights[:2].std()
    assert relative < 0.01  # about 3 standard deviations in 127 steps: 3 / 127 / sqrt(12) = 0.007
    plain = np.abs(weights).max(axis=1, keepdims=True) / 127
    rounded = np.round(weights / np.maximum(plain, 1e-12)) * plain
    assert (error[:2] ** 2).sum() <= 1.01 * ((rounded - weights)[:2] ** 2).sum(), (
        "clipping is only for the better"
    )


def test_int8_weights_halve_the_file_again_and_keep_the_predictions(tmp_path):
    network = build_model("se-resnet", {"fer2013": 7}, stem=16, filters=(64, 128), blocks=(1, 1))
    sizes, predictions = {}, {}
    images = draw_faces(40, seed=3).images
    for precision in ("float32", "float16", "mixed", "int8"):
        info = model_info((FER2013,), cam=True)
        path = tmp_path / f"{precision}.onnx"
        release.write_model(to_onnx(network, {}, precision=precision), info, path)
        sizes[precision] = path.stat().st_size
        classifier = FaceClassifier(path)
        predictions[precision] = classifier.predict(images)["fer2013"]
        assert classifier.cams(images[:2]).shape == (2, 7, 12, 12)
    assert sizes["int8"] < 0.6 * sizes["float16"] < 0.36 * sizes["float32"]
    assert sizes["int8"] < sizes["mixed"] < 0.8 * sizes["float16"]
    np.testing.assert_allclose(predictions["int8"], predictions["float32"], atol=0.02)
    assert np.abs(predictions["int8"] - predictions["float16"]).max() > 1e-6, "they are not stored as float16"


def test_a_file_that_predicts_differently_is_not_written(run, faces, tmp_path, monkeypatch):
    import onnx
    from onnx import numpy_helper

    def bent(*args, **kwargs):
        proto = onnx.load_from_string(to_onnx(*args, **kwargs))
        kernel = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
        kernel.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(kernel), kernel.name))
        return proto.SerializeToString()

    monkeypatch.setattr(release, "to_onnx", bent)
    with pytest.raises(ModelFileError, match="nothing was written"):
        release.export_run(run, faces, tmp_path / "bent.onnx")
    assert not list(tmp_path.iterdir())


def test_reduced_precision_must_keep_labels_and_accuracy():
    right = np.eye(7, dtype=np.float32)[np.arange(500) % 7]
    labels = np.arange(500) % 7
    target = release.Target("fer2013", Taxonomy("fer2013", tuple("abcdefg")), labels, np.ones(500, bool))

    def check(wrong):
        changed = right.copy()
        changed[:wrong] = changed[:wrong, ::-1]
        return release._check_parity("float16", {"fer2013": right}, {"fer2013": changed}, (target,))

    assert check(0).same_label == 1
    with pytest.raises(ModelFileError, match=r"accuracy on fer2013 from 100.00 to 99.80 %"):
        check(1)
    with pytest.raises(ModelFileError, match=r"only 98.80 % of the faces get the same label"):
        check(7)  # the fourth of seven labels stays itself


@pytest.mark.parametrize("precision", ["int4", "double"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ModelFileError, match="unknown precision"):
        to_onnx(build_model("seed-cnn", {"a": 2}, dense=[4]), {}, precision=precision)


def test_a_head_without_labels_cannot_be_calibrated(run, faces, tmp_path):
    from dataclasses import replace

    with pytest.raises(TrainingError, match=r"ferplus cannot be fitted.*--votes"):
        release.export_run(run, replace(faces, votes=None), tmp_path / "x.onnx")


def test_a_default_that_is_no_head_of_the_network_is_refused(run, faces, tmp_path):
    with pytest.raises(TaxonomyError, match="no output 'emotions'; it has fer2013, ferplus, basic"):
        release.export_run(run, faces, tmp_path / "m.onnx", default_taxonomy="emotions")
    assert not list(tmp_path.iterdir())


def test_data_of_another_run_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="is not the data of this run"):
        release.export_run(run, load_data("cartoon:400:4", cache=False), tmp_path / "o.onnx")


def test_the_python_api_takes_a_run_and_data_by_name_and_checks_the_path(run, tmp_path):
    import ferkit

    info = ferkit.export(run.folder, "cartoon:400:3", tmp_path / "m.onnx", name="api")
    assert read_model(tmp_path / "m.onnx")[1] == info
    assert info.name == "api"
    with pytest.raises(ModelFileError, match=r"ends with \.onnx"):
        ferkit.export(run.folder, "cartoon:400:3", tmp_path / "m.bin")


def test_too_few_or_too_easy_faces_leave_the_temperature_at_one():
    logits = np.eye(7)[np.arange(70) % 7]
    assert release.determined_temperature(logits[:9], np.arange(9) % 7) == 1.0
    # All right: the fit runs to its end.
    assert release.determined_temperature(logits, np.arange(70) % 7) == 1.0


def test_training_weights_in_float16_start_a_network(run, tmp_path):
    size = release.write_training_weights(run, tmp_path / "w.npz")
    assert size == (tmp_path / "w.npz").stat().st_size
    again = runs.load_weights(tmp_path / "w.npz")
    images = np.random.default_rng(1).integers(0, 256, (4, 48, 48), dtype=np.uint8)
    before, after = (predict_logits(r.network(), images)["fer2013"] for r in (run, again))
    np.testing.assert_allclose(after, before, atol=0.02)


def test_the_mean_of_a_run_and_its_initial_weights_is_exported(run, faces, tmp_path):
    """Halfway the arrays are the mean, batch normalisation's statistics are those of the mean's features."""
    start = runs.load_weights(write_start(run, tmp_path))
    mean = average_runs(run, start, 0.25, faces.of_split("Training").images)
    kernels = [name for name, array in run.arrays.items() if array.ndim == 4]
    assert kernels
    for name in kernels:
        expected = 0.25 * run.arrays[name] + 0.75 * start.arrays[name]
        assert np.allclose(mean.arrays[name], expected, atol=1e-6)
    moved = [
        n for n, a in mean.arrays.items() if not np.allclose(a, 0.25 * run.arrays[n] + 0.75 * start.arrays[n])
    ]
    assert moved
    assert all(mean.arrays[name].ndim == 1 for name in moved)
    release.export_run(run, faces, tmp_path / "run.onnx")
    before = (run.folder / runs.TEMPERATURES).read_bytes()
    file, start_file = str(tmp_path / "mean.onnx"), str(tmp_path / "start.npz")
    assert (
        cli.run(
            [
                "export",
                str(run.folder),
                "-o",
                file,
                "--data",
                "cartoon:400:3",
                "--average",
                start_file,
                "--share",
                "0.25",
                "--training-weights",
                str(tmp_path / "mean.npz"),
            ]
        )
        == 0
    )
    info = read_model(file)[1]
    # Not those of the run: its next evaluation would use them for weights that are not averaged.
    assert (run.folder / runs.TEMPERATURES).read_bytes() == before
    fitted = {head.id: info.head(head.id).temperature for head in run.taxonomies}
    assert runs.load_weights(tmp_path / "mean.npz").temperatures == fitted
    assert "the mean of the run (0.25) and start.npz (0.75)" in info.notes


def test_a_share_without_a_mean_is_refused(run, capsys):
    assert cli.run(["export", str(run.folder), "--share", "0.3"]) == 2
    assert "--share" in capsys.readouterr().err


def write_start(run, tmp_path):
    """Training weights of the run's architecture with other numbers."""
    rng = np.random.default_rng(0)
    arrays = {name: (a + 0.1 * rng.random(a.shape)).astype(np.float32) for name, a in run.arrays.items()}
    path = tmp_path / "start.npz"
    state.write_archive(path, arrays, runs.weights_meta(run.recipe, run.taxonomies, run.input_size))
    return path


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_mean_without_one_of_the_networks_is_refused(run, faces, share):
    with pytest.raises(TrainingError, match="between 0 and 1"):
        average_runs(run, run, share, faces.of_split("Training").images)


def test_weights_of_another_network_are_not_averaged(run, faces):
    other = replace(run, arrays={**run.arrays, "body/0000": np.zeros((3, 3, 1, 2), np.float32)})
    with pytest.raises(TrainingError, match="one architecture"):
        average_runs(run, other, 0.5, faces.of_split("Training").images)
