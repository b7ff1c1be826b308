"""The classifier: probabilities that depend on the crop alone, and models that are not what they say."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import modelzoo
from ferkit.core import onnxbytes, taxonomy
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import tta_views
from ferkit.core.errors import ImageError, MissingDependencyError, ModelFileError, TaxonomyError
from ferkit.core.modelfile import ModelInfo, write_model
from ferkit.core.runtime import load_onnxruntime, usable_cores


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> FaceClassifier:
    return FaceClassifier(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (37, 48, 48), dtype=np.uint8)


def write(path: Path, graph: bytes, info: ModelInfo) -> Path:
    write_model(graph, info, path)
    return path


def test_predictions_are_probabilities_of_every_taxonomy(
    classifier: FaceClassifier, crops: NDArray[np.uint8]
) -> None:
    predictions = classifier.predict(crops)
    assert {name: a.shape for name, a in predictions.items()} == {"fer2013": (37, 7), "ferplus": (37, 8)}
    for predicted in predictions.values():
        assert predicted.dtype == np.float32
        assert np.allclose(predicted.sum(axis=1), 1, atol=1e-5)
        assert predicted.min() >= 0


def test_different_crops_get_different_predictions(
    classifier: FaceClassifier, crops: NDArray[np.uint8]
) -> None:
    predictions = classifier.predict(crops)["fer2013"]
    assert len(np.unique(predictions.round(4), axis=0)) == len(crops)


@pytest.mark.parametrize("tta", ["none", "flip", "ten-crop"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 36, 37, 1000])
def test_results_do_not_depend_on_the_batch_size(
    classifier: FaceClassifier, crops: NDArray[np.uint8], tta: str, batch_size: int
) -> None:
    expected = classifier.predict(crops, tta=tta)["ferplus"]  # type: ignore[arg-type]
    predicted = classifier.predict(crops, tta=tta, batch_size=batch_size)["ferplus"]  # type: ignore[arg-type]
    assert np.abs(predicted - expected).max() < 1e-6


def test_results_do_not_depend_on_the_neighbours(
    classifier: FaceClassifier, crops: NDArray[np.uint8]
) -> None:
    alone = np.concatenate([classifier.predict(crop[None])["fer2013"] for crop in crops])
    assert np.abs(alone - classifier.predict(crops)["fer2013"]).max() < 1e-6


@pytest.mark.parametrize("tta", ["flip", "ten-crop"])
def test_tta_is_the_mean_of_probabilities_over_its_views(
    classifier: FaceClassifier, crops: NDArray[np.uint8], tta: str
) -> None:
    shown = [classifier.predict(np.ascontiguousarray(v))["fer2013"] for v in tta_views(crops, tta)]  # type: ignore[arg-type]
    predicted = classifier.predict(crops, tta=tta)["fer2013"]  # type: ignore[arg-type]
    assert np.allclose(predicted, np.mean(shown, axis=0), atol=1e-6)


def test_no_crop_gives_no_row(classifier: FaceClassifier) -> None:
    predictions = classifier.predict(np.empty((0, 48, 48), np.uint8), tta="ten-crop")
    assert {name: a.shape for name, a in predictions.items()} == {"fer2013": (0, 7), "ferplus": (0, 8)}
    assert classifier.cams(np.empty((0, 48, 48), np.uint8)).shape == (0, 7, 11, 11)


def test_no_taxonomy_gives_no_output(classifier: FaceClassifier, crops: NDArray[np.uint8]) -> None:
    assert classifier.predict(crops, taxonomies=[]) == {}


def test_one_taxonomy_alone_gives_the_same(classifier: FaceClassifier, crops: NDArray[np.uint8]) -> None:
    predictions = classifier.predict(crops, taxonomies=["ferplus"])
    assert list(predictions) == ["ferplus"]
    assert np.array_equal(predictions["ferplus"], classifier.predict(crops)["ferplus"])


def test_maps_average_to_the_logits(classifier: FaceClassifier, crops: NDArray[np.uint8]) -> None:
    """In the test model the logits are the mean of the maps, so their softmax is the output."""
    maps = classifier.cams(crops, "ferplus", batch_size=5)
    assert maps.shape == (37, 8, 11, 11)
    powers = np.exp(maps.mean(axis=(2, 3)))
    expected = powers / powers.sum(axis=1, keepdims=True)
    assert np.allclose(classifier.predict(crops)["ferplus"], expected, atol=1e-5)


def test_graphs_nested_without_end_are_refused_as_a_damaged_model(tmp_path: Path) -> None:
    """A known fault: a crafted file of 18 kB ended in a RecursionError."""
    name, encode = b"logits_fer2013", onnxbytes.encode
    node = encode(2, name)
    for _ in range(2000):  # a node with an attribute (5) that holds a graph (6) with a node (1)
        node = encode(2, name) + encode(5, encode(6, encode(1, node)))
    graph = encode(1, node) + encode(onnxbytes.GRAPH_OUTPUT, encode(1, name))
    content = b"\x08\x09" + encode(onnxbytes.MODEL_GRAPH, graph)
    info = modelzoo.model_info((taxonomy.FER2013,))
    with pytest.raises(ModelFileError):
        FaceClassifier(write(tmp_path / "m.onnx", content, info))


def test_maps_of_the_wrong_form_are_refused(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    model = onnx.load_from_string(modelzoo.graph_bytes((taxonomy.FER2013,)))
    renamed = {"cam_fer2013": "inner", "logits_fer2013": "cam_fer2013"}
    for node in model.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del model.graph.output[1].type.tensor_type.shape.dim[2:]
    info = modelzoo.model_info((taxonomy.FER2013,))
    wrong = FaceClassifier(write(tmp_path / "m.onnx", model.SerializeToString(), info))
    assert wrong.predict(crops)["fer2013"].shape == (37, 7)
    with pytest.raises(ModelFileError, match="cam_fer2013"):
        wrong.cams(crops)


def test_maps_that_are_not_there_are_an_error(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    plain = FaceClassifier(modelzoo.write_tiny_model(tmp_path / "m.onnx", cam=False))
    with pytest.raises(ModelFileError, match="no class activation maps"):
        plain.cams(crops)


def test_a_taxonomy_that_is_not_there_is_an_error(
    classifier: FaceClassifier, crops: NDArray[np.uint8]
) -> None:
    with pytest.raises(TaxonomyError, match="'mood'"):
        classifier.predict(crops, taxonomies=["mood"])
    with pytest.raises(TaxonomyError, match="'mood'"):
        classifier.cams(crops, "mood")


def test_a_model_of_the_users_own_labels_and_size_works(tmp_path: Path) -> None:
    mood = taxonomy.Taxonomy("mood", ("good", "bad", "ünbestimmt"))
    model = FaceClassifier(modelzoo.write_tiny_model(tmp_path / "m.onnx", (mood,), size=64))
    predicted = model.predict(np.zeros((2, 64, 64), np.uint8))["mood"]
    assert predicted.shape == (2, 3)
    assert model.info.head().labels == mood.labels


@pytest.mark.parametrize(
    "crops_given",
    [
        np.zeros((2, 48, 47), np.uint8),
        np.zeros((48, 48), np.uint8),
        np.zeros((2, 48, 48, 1), np.uint8),
        np.zeros((2, 48, 48), np.float32),
        [[1, 2], [3, 4]],
    ],
)
def test_crops_of_the_wrong_kind_are_refused(
    classifier: FaceClassifier, crops_given: NDArray[np.uint8]
) -> None:
    with pytest.raises(ImageError, match=r"uint8 \[N, 48, 48\]"):
        classifier.predict(crops_given)


def test_a_batch_size_of_nothing_is_refused(classifier: FaceClassifier, crops: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match="batch_size"):
        classifier.predict(crops, batch_size=0)


def test_logits_are_not_taken_for_probabilities(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    logits = modelzoo.graph_bytes(softmax=False)
    model = FaceClassifier(write(tmp_path / "m.onnx", logits, modelzoo.model_info()))
    with pytest.raises(ModelFileError, match=r"no probabilities.*logits"):
        model.predict(crops)


@pytest.mark.parametrize(
    ("graph", "info", "message"),
    [
        (modelzoo.graph_bytes(size=40), modelzoo.model_info(), "must take one input"),
        (modelzoo.graph_bytes(batch=1), modelzoo.model_info(), "only batches of 1"),
        (modelzoo.graph_bytes(cam=False), modelzoo.model_info(), "name output 'cam_fer2013'"),
        (
            modelzoo.graph_bytes((taxonomy.FER2013,)),
            modelzoo.model_info(),
            "name output 'cam_ferplus', 'ferplus'",
        ),
        (
            modelzoo.graph_bytes(),
            modelzoo.model_info((taxonomy.Taxonomy("ferplus", ("a", "b")),)),
            "2 columns",
        ),
    ],
)
def test_a_graph_that_contradicts_its_metadata_is_refused(
    tmp_path: Path, graph: bytes, info: ModelInfo, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        FaceClassifier(write(tmp_path / "m.onnx", graph, info))


def test_a_graph_that_no_runtime_opens_is_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(modelzoo.graph_bytes())
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ModelFileError, match="cannot open"):
        FaceClassifier(write(tmp_path / "m.onnx", model.SerializeToString(), modelzoo.model_info()))


def test_a_model_can_come_as_bytes(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    path = modelzoo.write_tiny_model(tmp_path / "m.onnx")
    from_bytes = FaceClassifier(path.read_bytes())
    assert np.array_equal(
        from_bytes.predict(crops)["fer2013"], FaceClassifier(path).predict(crops)["fer2013"]
    )


def test_a_provider_that_is_not_there_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    path = modelzoo.write_tiny_model(tmp_path / "m.onnx")
    if "CUDAExecutionProvider" in load_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingDependencyError, match="no CUDAExecutionProvider here"):
        FaceClassifier(path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert FaceClassifier(path, providers=["CPUExecutionProvider"]).providers == ("CPUExecutionProvider",)


def test_threads_do_not_change_the_predictions(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    path = modelzoo.write_tiny_model(tmp_path / "m.onnx")
    one, two = FaceClassifier(path, threads=1), FaceClassifier(path, threads=2)
    assert np.abs(one.predict(crops)["fer2013"] - two.predict(crops)["fer2013"]).max() < 1e-6
    assert usable_cores() >= 1


def test_many_threads_may_predict_at_once(classifier: FaceClassifier, crops: NDArray[np.uint8]) -> None:
    expected = classifier.predict(crops)["fer2013"]
    predictions: list[NDArray[np.float32]] = []

    def ask() -> None:
        for _ in range(5):
            predictions.append(classifier.predict(crops, batch_size=8)["fer2013"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(predictions) == 40
    assert all(np.abs(predicted - expected).max() < 1e-6 for predicted in predictions)
