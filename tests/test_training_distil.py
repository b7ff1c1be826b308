"""Distillation: the teachers' predictions, what is kept of them, and what the student is trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ferkit.cli import run
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import ModelFileError, TrainingError
from ferkit.core.modelfile import read_model
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras
from keras import ops

from ferkit.data import load_data
from ferkit.models import build_model
from ferkit.training import distil, runs, state
from ferkit.training.distil import OnlineTeachers, TeacherPredictions, predict_offline
from ferkit.training.inference import predict_logits, predict_probabilities
from ferkit.training.network import TrainingModel, teacher_key
from ferkit.training.trainer import set_up, train
from ferkit.weights import DEFAULT, embedded_models, training_weights, zoo_models
from modelzoo import write_tiny_model
from tinyruns import StopAt, numbers, tiny

HEADS = [FER2013, FERPLUS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:240:3", cache=False)


@pytest.fixture
def teacher(tmp_path):
    return write_tiny_model(tmp_path / "teacher.onnx")


def pupil(**changes):
    return tiny(**{"distil": {"weight": 0.6, "temperature": 2.0, "tta": "flip"}, **changes})


class Batches(keras.callbacks.Callback):
    """Record how far each teacher has come."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_teacher_batch_end(self, teacher, done, faces):
        self.calls.append((teacher, done, faces))


def test_predictions_are_the_mean_over_teachers_and_views(faces, tmp_path):
    first, second = (write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2))
    images = np.asarray(faces.images[:20])
    found = predict_offline([first, second], images, HEADS, "flip", cache=tmp_path / "kept")
    for head in ("fer2013", "ferplus"):
        expected = (
            FaceClassifier(first).predict(images, tta="flip")[head]
            + FaceClassifier(second).predict(images, tta="flip")[head]
        ) / 2
        np.testing.assert_allclose(found.probabilities[head], expected, atol=2e-3)
        np.testing.assert_allclose(found.probabilities[head].sum(axis=1, dtype=np.float32), 1, atol=2e-3)
    assert [set(t) for t in found.models] == [{"name", "sha256"}] * 2


def test_uncalibrated_predictions_are_those_before_the_teachers_temperatures(faces, tmp_path):
    sharpened = write_tiny_model(tmp_path / "a.onnx", seed=1, temperature=0.5)
    plain = write_tiny_model(tmp_path / "b.onnx", seed=2)
    images = np.asarray(faces.images[:20])

    def ask(calibrated, *teachers):
        kept = tmp_path / "kept"
        found = predict_offline(teachers, images, HEADS, "none", calibrated=calibrated, cache=kept)
        assert found.calibrated is calibrated
        return found.probabilities["ferplus"].astype(np.float32)

    p = FaceClassifier(sharpened).predict(images)["ferplus"]
    np.testing.assert_allclose(ask(True, sharpened), p, atol=1e-3)
    before = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    assert np.abs(before - p).max() > 0.02
    np.testing.assert_allclose(ask(False, sharpened), before, atol=2e-3)
    np.testing.assert_allclose(ask(False, plain), ask(True, plain), atol=1e-3)
    mean = (before + FaceClassifier(plain).predict(images)["ferplus"]) / 2
    np.testing.assert_allclose(ask(False, sharpened, plain), mean, atol=2e-3)


def test_an_ensemble_has_no_uncalibrated_predictions(faces, tmp_path):
    members = [write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed, temperature=0.5) for seed in (1, 2)]
    vote = tmp_path / "vote.onnx"
    assert run(["ensemble", *map(str, members), "-o", str(vote)]) == 0
    images = np.asarray(faces.images[:5])
    seen = Batches()
    options = {"on_batch": seen.on_teacher_batch_end, "cache": tmp_path / "kept"}
    with pytest.raises(TrainingError, match=r"vote\.onnx is an ensemble of tiny, tiny.*name its members"):
        predict_offline([members[0], vote], images, HEADS, "none", calibrated=False, **options)
    assert seen.calls == [], "no teacher predicts before all are checked"
    assert predict_offline([vote], images, HEADS, "none", **options).calibrated


def test_a_head_that_one_teacher_lacks_comes_from_the_other(faces, tmp_path):
    both = write_tiny_model(tmp_path / "a.onnx", seed=1)
    labels_only = write_tiny_model(tmp_path / "b.onnx", seed=2, taxonomies=(FER2013,))
    images = np.asarray(faces.images[:5])
    found = predict_offline([both, labels_only], images, HEADS, "none", cache=tmp_path / "kept")
    alone = FaceClassifier(both).predict(images)["ferplus"]
    np.testing.assert_allclose(found.probabilities["ferplus"], alone, atol=2e-3)


def test_the_second_time_nothing_is_computed(faces, teacher, tmp_path):
    images = np.asarray(faces.images)
    seen = Batches()
    first = predict_offline(
        [teacher], images, HEADS, "none", on_batch=seen.on_teacher_batch_end, cache=tmp_path / "kept"
    )
    assert seen.calls[0][1:] == (0, len(images))
    assert seen.calls[-1][1:] == (len(images), len(images))
    again = Batches()
    second = predict_offline(
        [teacher], images, HEADS, "none", on_batch=again.on_teacher_batch_end, cache=tmp_path / "kept"
    )
    assert [call[1:] for call in again.calls] == [(len(images), len(images))]
    for head in ("fer2013", "ferplus"):
        np.testing.assert_array_equal(first.probabilities[head], second.probabilities[head])


def test_an_interrupted_teacher_computes_the_rest_only(faces, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK", 50)
    images = np.asarray(faces.images)

    def stop(teacher, done, faces):
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_offline([teacher], images, HEADS, "none", on_batch=stop, cache=tmp_path / "kept")
    seen = Batches()
    found = predict_offline(
        [teacher], images, HEADS, "none", on_batch=seen.on_teacher_batch_end, cache=tmp_path / "kept"
    )
    assert seen.calls[0][1] == 100
    whole = predict_offline([teacher], images, HEADS, "none", cache=tmp_path / "other")
    np.testing.assert_array_equal(found.probabilities["fer2013"], whole.probabilities["fer2013"])


def test_saved_predictions_belong_to_teacher_faces_and_tta(faces, teacher, tmp_path):
    kept = tmp_path / "kept"
    images = np.asarray(faces.images[:10])
    predict_offline([teacher], images, HEADS, "none", cache=kept)
    other = write_tiny_model(tmp_path / "other.onnx", seed=9)
    for models, shown, views in (([other], images, "none"), ([teacher], images[::-1], "none"),
                                 ([teacher], images, "flip")):  # fmt: skip
        got = predict_offline(models, np.ascontiguousarray(shown), HEADS, views, cache=kept)
        expected = FaceClassifier(models[0]).predict(np.ascontiguousarray(shown), tta=views)
        np.testing.assert_allclose(got.probabilities["fer2013"], expected["fer2013"], atol=2e-3)
    assert len(list(kept.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"no archive at all"])
def test_damaged_saved_predictions_are_computed_anew(faces, teacher, tmp_path, damage):
    images = np.asarray(faces.images[:10])
    first = predict_offline([teacher], images, HEADS, "none", cache=tmp_path)
    next(tmp_path.glob("*.npz")).write_bytes(damage)
    second = predict_offline([teacher], images, HEADS, "none", cache=tmp_path)
    np.testing.assert_array_equal(first.probabilities["fer2013"], second.probabilities["fer2013"])


def test_a_cache_that_cannot_be_written_does_not_matter(faces, teacher, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = predict_offline(
        [teacher], np.asarray(faces.images[:5]), HEADS, "none", cache=tmp_path / "file" / "below"
    )
    assert found.probabilities["fer2013"].shape == (5, 7)


def test_a_temperature_flattens_and_one_changes_nothing(faces, teacher, tmp_path):
    found = predict_offline([teacher], np.asarray(faces.images[:20]), HEADS, "none", cache=tmp_path)
    p = found.probabilities["fer2013"].astype(np.float64)
    np.testing.assert_allclose(found.targets(1.0)["fer2013"], p, atol=1e-3)
    softened = found.targets(4.0)["fer2013"]
    expected = p**0.25 / (p**0.25).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softened, expected, atol=1e-3)
    assert softened.max() < p.max()


def test_predictions_are_read_from_the_run_folder_and_only_for_its_faces(faces, teacher, tmp_path):
    images = np.asarray(faces.images[:20])
    found = predict_offline([teacher], images, HEADS, "flip", cache=tmp_path / "kept")
    found.save(tmp_path / "teacher.npz")
    again = TeacherPredictions.load(tmp_path / "teacher.npz", images)
    for head, p in found.probabilities.items():
        np.testing.assert_array_equal(again.probabilities[head], p)
    assert (again.models, again.tta, again.calibrated) == (found.models, "flip", True)
    with pytest.raises(TrainingError, match="other faces"):
        TeacherPredictions.load(tmp_path / "teacher.npz", np.ascontiguousarray(images[::-1]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"size": 32}, "faces of 32 pixels; these have 48"),
        ({"taxonomies": (Taxonomy("own", ("calm", "cross")),)}, "has the heads own"),
        (
            {"taxonomies": (Taxonomy("fer2013", ("one", "two")),)},
            "fer2013 of teacher .* has the labels one, two",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(faces, tmp_path, made, message):
    unfit = write_tiny_model(tmp_path / "unfit.onnx", **made)
    with pytest.raises(TrainingError, match=message):
        predict_offline([unfit], np.asarray(faces.images[:5]), HEADS, "none", cache=tmp_path / "kept")


def test_an_absent_teacher_is_named(faces, tmp_path):
    with pytest.raises(ModelFileError, match="nobody"):
        predict_offline([tmp_path / "nobody.onnx"], np.asarray(faces.images[:5]), HEADS, "none")


def test_the_loss_is_the_recipes_weighted_sum():
    recipe = pupil(label_smoothing=0.0, optimizer={"name": "sgd"}, augment="none")
    network = build_model(recipe.model.name, {"fer2013": 7}, **recipe.model.params)
    model = TrainingModel(network, recipe, {"fer2013": 1.0}, ["fer2013"])
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 7)).astype(np.float32)
    labels = np.eye(7, dtype=np.float32)[rng.integers(0, 7, 6)]
    soft = rng.dirichlet(np.ones(7), 6).astype(np.float32)
    got = model.compute_loss(
        y_pred={
            "logits_fer2013": ops.convert_to_tensor(logits),
            "targets_fer2013": ops.convert_to_tensor(labels),
            f"targets_{teacher_key('fer2013')}": ops.convert_to_tensor(soft),
        }
    )

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    hard = -(labels * log_softmax(logits)).sum(axis=1).mean()
    taught = -(soft * log_softmax(logits / 2)).sum(axis=1).mean()
    assert float(got) == pytest.approx(0.4 * hard + 0.6 * 4 * taught, rel=1e-5)


@pytest.mark.slow
def test_a_distilled_run_resumes_without_its_teacher_to_the_same_result(faces, teacher, tmp_path):
    whole = train(pupil(), faces, tmp_path / "a", teachers=[teacher])
    with pytest.raises(KeyboardInterrupt):
        train(pupil(), faces, tmp_path / "b", teachers=[teacher], callbacks=[StopAt(3)])
    teacher.unlink()
    rest = train(pupil(), faces, tmp_path / "b", resume=True)
    for expected, got in zip(numbers(whole.history), numbers(rest.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)
    assert {"teacher_loss", "ferplus_teacher_loss"} <= set(whole.history[0])
    first, second = (state.read_archive(tmp_path / k / runs.WEIGHTS)[0] for k in "ab")
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=1e-6, err_msg=name)
    facts = json.loads((tmp_path / "b" / "run.json").read_text())
    assert facts["teacher"]["models"][0]["sha256"]
    assert facts["teacher"]["tta"] == "flip"
    (tmp_path / "b" / runs.PREDICTIONS).unlink()
    with pytest.raises(TrainingError, match=r"teacher\.npz"):
        train(pupil(epochs=4), faces, tmp_path / "b", resume=True)


@pytest.mark.slow
def test_a_student_of_a_constant_teacher_learns_its_prediction_and_not_the_labels(faces, tmp_path):
    """With the whole loss on a teacher that always predicts happy, the student predicts happy everywhere."""
    network = build_model("se-resnet", {"fer2013": 7}, stem=4, filters=(8,), blocks=(1,))
    dense = network.get_layer("logits_fer2013")
    dense.kernel.assign(ops.zeros_like(dense.kernel))
    dense.bias.assign(np.eye(7, dtype=np.float32)[3] * 8)
    from ferkit.core.modelfile import write_model
    from ferkit.export.graph import to_onnx

    info = read_model(write_tiny_model(tmp_path / "t.onnx", taxonomies=(FER2013,), cam=False))[1]
    sure = tmp_path / "sure.onnx"
    write_model(to_onnx(network, {}, cams=False), info, sure)
    recipe = pupil(
        distil={"weight": 1.0}, heads={"label": 1.0}, augment="none", epochs=6,
        optimizer={"name": "adam", "learning_rate": 0.05},
        schedule={"name": "constant"},
    )  # fmt: skip
    result = train(recipe, faces, tmp_path / "run", teachers=[sure])
    assert result.history[-1]["teacher_loss"] < result.history[0]["teacher_loss"]
    shown = np.asarray(faces.of_split("PublicTest").images)
    said = predict_logits(runs.load_run(tmp_path / "run").network(), shown)["fer2013"].argmax(axis=1)
    assert set(said) == {3}


def test_a_teacher_and_its_share_of_the_loss_go_together(faces, teacher, tmp_path):
    with pytest.raises(TrainingError, match="ferkit distil --teacher"):
        train(pupil(), faces, tmp_path / "r")
    with pytest.raises(TrainingError, match=r"set distil\.weight above 0"):
        train(tiny(), faces, tmp_path / "r", teachers=[teacher])
    assert not (tmp_path / "r").exists()


def distil_small(teacher, folder, *options):
    """Distil for an epoch from the command line, into the folder's ``run``."""
    line = [
        "distil", "--teacher", str(teacher), "--recipe", "small", "--data", "cartoon:300", "-o",
        str(folder / "run"), "--epochs", "1", "--no-tensorboard", *options,
        "--set", "model.params={stem = 4, filters = [8, 8], blocks = [1, 1]}", "--set", "batch_size=32",
    ]  # fmt: skip
    assert run(line) == 0


def exported_card(folder):
    """Export the folder's ``run`` to its ``m.onnx`` and return the model card."""
    exported = [
        "export", str(folder / "run"), "--data", "cartoon:300", "-o", str(folder / "m.onnx"),
        "--card", str(folder / "m.md"),
    ]  # fmt: skip
    assert run(exported) == 0
    return (folder / "m.md").read_text("utf-8")


@pytest.mark.slow
def test_the_command_distils_and_the_card_names_the_teacher(teacher, tmp_path, capfd):
    distil_small(teacher, tmp_path, "--temperature", "2")
    out, err = capfd.readouterr()
    assert "tiny has predicted" in err
    assert "1 epochs, PublicTest" in out
    card = exported_card(tmp_path)
    assert "Offline distillation from `tiny`" in card
    assert "in fer2013 and ferplus; temperature 2, 70 % of these heads' loss" in card
    assert "no pretrained weights" not in card
    info = read_model(tmp_path / "m.onnx")[1]
    assert info.recipe["distil"]["weight"] == 0.7


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["distil", "-r", "small", "--data", "cartoon:70"], 2, "--teacher"),
        (["distil", "-t", "absent.onnx", "-r", "small", "--data", "cartoon:70"], 1, "absent.onnx"),
        (
            ["distil", "-t", "ferkit-small", "-r", "small", "-s", "distil.weight=0", "--data", "cartoon:70"],
            1,
            "no share",
        ),
        (["distil", "-t", "x.onnx", "--data", "cartoon:70"], 1, "name a recipe"),
        (["distil", "-t", "x.onnx", "--resume", "run", "--data", "cartoon:70"], 1, "--resume continues"),
        (["distil", "-t", "x", "-r", "small", "--weight", "2", "--data", "cartoon:70"], 1, "distil.weight"),
    ],
)  # fmt: skip
def test_wrong_requests_leave_nothing_behind(args, status, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(args) == status
    assert message in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_with_init_model_parameters_are_those_of_the_weights_architecture(
    teacher, tmp_path, monkeypatch, capfd
):
    """`small` is a se-resnet, which has no stage_dropout; the network given by --init has one."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny(model={"name": "vgg", "params": {"filters": [4, 8], "convolutions": [1, 1]}})
    vgg = build_model("vgg", {"fer2013": 7}, **recipe.model.params)
    meta = runs.weights_meta(recipe, (FER2013,), 48)
    state.write_archive(tmp_path / "vgg.npz", state.network_arrays(vgg, ("fer2013",)), meta)
    line = [
        "distil", "-t", str(teacher), "-r", "small", "--init", "vgg.npz", "--data", "cartoon:70", "-o", "run",
        "--set", "model.params.stage_dropout=0.2", "--epochs", "1", "--no-tensorboard", "-q",
    ]  # fmt: skip
    assert run(line) == 0, capfd.readouterr().err
    assert runs.load_run(tmp_path / "run").recipe.model.params["stage_dropout"] == 0.2
    assert runs.load_run(tmp_path / "run").recipe.distil.weight == 0.7


def test_the_teachers_targets_are_mixed_like_the_labels_and_everything_is_reseeded():
    recipe = pupil()
    network = build_model(recipe.model.name, {"fer2013": 7, "ferplus": 8}, **recipe.model.params)
    model = TrainingModel(network, recipe, {"fer2013": 1.0, "ferplus": 0.5}, ["fer2013", "ferplus"])
    batch = {
        "face": np.random.default_rng(0).integers(0, 256, (4, 48, 48), np.uint8),
        "fer2013": np.eye(7, dtype=np.float32)[:4],
        "ferplus": np.eye(8, dtype=np.float32)[:4],
        teacher_key("fer2013"): np.eye(7, dtype=np.float32)[:4],
        teacher_key("ferplus"): np.eye(8, dtype=np.float32)[:4],
    }
    batch = {k: ops.convert_to_tensor(v) for k, v in batch.items()}

    def outputs(epoch):
        model.reseed(1, epoch)
        return {k: ops.convert_to_numpy(v) for k, v in model(batch, training=True).items()}

    first, second, other = outputs(2), outputs(2), outputs(3)
    mixed = first[f"targets_{teacher_key('fer2013')}"]
    assert mixed.max(axis=1).min() < 1
    np.testing.assert_allclose(first["targets_fer2013"], mixed, atol=1e-6)
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)
    assert np.abs(other["logits_fer2013"] - first["logits_fer2013"]).max() > 1e-4


@pytest.mark.slow
def test_the_weight_of_a_face_applies_to_the_teachers_targets_too(faces, teacher, tmp_path):
    recipe = pupil(data={"balance": "weights"}, epochs=1)
    rare = np.flatnonzero(faces.labels == 1)[2:]
    few = faces.select(np.setdiff1d(np.arange(len(faces)), rare))
    training = few.of_split("Training")
    found = predict_offline([teacher], np.asarray(training.images), HEADS, "flip")
    targets = set_up(recipe, few, lambda *_: found).batches.targets
    weights = targets["fer2013"].sum(axis=1)
    assert weights.max() > 2 * weights.min()
    np.testing.assert_allclose(targets[teacher_key("fer2013")].sum(axis=1), weights, rtol=1e-5)
    np.testing.assert_allclose(targets[teacher_key("ferplus")].sum(axis=1), 1, rtol=1e-5)


def test_what_can_be_refused_is_refused_before_a_teacher_predicts(faces, teacher, tmp_path):
    seen = Batches()
    recipe = pupil(progressive={"sizes": [48], "until": [0.5]})
    with pytest.raises(TrainingError, match="below the faces' 48"):
        train(recipe, faces, tmp_path / "r", teachers=[teacher], callbacks=[seen])
    assert seen.calls == []
    assert not (tmp_path / "r").exists()


def test_targets_do_not_depend_on_what_was_saved(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK", 50)
    models = [write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2)]
    images = np.asarray(faces.images)
    fresh = predict_offline(models, images, HEADS, "flip", cache=tmp_path / "kept")
    kept = predict_offline(models, images, HEADS, "flip", cache=tmp_path / "kept")

    def stop(teacher, done, faces):
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_offline(models, images, HEADS, "flip", on_batch=stop, cache=tmp_path / "rest")
    rest = predict_offline(models, images, HEADS, "flip", cache=tmp_path / "rest")
    for head, p in fresh.probabilities.items():
        np.testing.assert_array_equal(kept.probabilities[head], p)
        np.testing.assert_array_equal(rest.probabilities[head], p)


def online(**changes):
    return pupil(**{"distil": {"weight": 0.6, "temperature": 2.0, "tta": "none", "online": True}, **changes})


def write_weights(path, seed=1, heads=(FER2013, FERPLUS), temperatures=None):
    """Training weights of a small network with large logits, so that temperatures matter."""
    recipe = tiny()
    keras.utils.set_random_seed(seed)
    network = build_model(recipe.model.name, {t.id: len(t) for t in heads}, **recipe.model.params)
    for head in heads:
        dense = network.get_layer(f"logits_{head.id}")
        dense.kernel.assign(10 * dense.kernel)
    ids = tuple(head.id for head in heads)
    temperatures = dict.fromkeys(ids, 0.5) if temperatures is None else temperatures
    meta = runs.weights_meta(recipe, tuple(heads), 48, temperatures)
    state.write_archive(path, state.network_arrays(network, ids), meta)
    return path


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "teacher.weights.npz")


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_online_targets_are_the_mean_over_the_teachers_that_have_the_head(tmp_path, tta, calibrated):
    both = write_weights(tmp_path / "a.weights.npz", seed=1)
    labels_only = write_weights(tmp_path / "b.weights.npz", seed=2, heads=(FER2013,))
    images = np.random.default_rng(0).integers(0, 256, (9, 48, 48), np.uint8)
    teachers = OnlineTeachers([both, labels_only], 48, HEADS, tta, calibrated=calibrated)
    got = teachers(ops.convert_to_tensor(images[..., None].astype(np.float32)), 2.0)
    predicted = {"fer2013": [], "ferplus": []}
    for path in (both, labels_only):
        network = runs.load_weights(path).network()
        temperatures = dict.fromkeys(predicted, 0.5) if calibrated else None
        for head, p in predict_probabilities(network, images, tta=tta, temperatures=temperatures).items():
            predicted[head].append(p)
    assert set(got) == set(predicted)
    for head, p in predicted.items():
        softened = np.sqrt(np.mean(p, axis=0))
        expected = softened / softened.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(ops.convert_to_numpy(got[head]), expected, atol=1e-5)
    assert teachers.facts()["online"]
    assert [model["name"] for model in teachers.facts()["models"]] == ["a", "b"]


def test_an_online_teacher_sees_the_pixels_that_the_student_sees(weights):
    """Turned, lit, erased and mixed; the targets are the teacher's predictions for just these pixels."""
    recipe = online(distil={"weight": 0.6, "temperature": 1.0, "tta": "none", "online": True})
    network = build_model(recipe.model.name, {"fer2013": 7, "ferplus": 8}, **recipe.model.params)
    teachers = OnlineTeachers([weights], 48, HEADS, "none")
    head_weights = {"fer2013": 1.0, "ferplus": 0.5}
    model = TrainingModel(network, recipe, head_weights, teachers.heads, teachers, "fer2013")
    batch = {
        "face": np.random.default_rng(0).integers(0, 256, (4, 48, 48), np.uint8),
        "fer2013": 3 * np.eye(7, dtype=np.float32)[:4],
        "ferplus": np.zeros((4, 8), np.float32),
    }
    batch = {k: ops.convert_to_tensor(v) for k, v in batch.items()}
    model.reseed(1, 2)
    got = model(batch, training=True)
    model.reseed(1, 2)
    seen, _ = model.augmenter(ops.expand_dims(batch["face"], -1), {})
    expected = teachers(seen, 1.0)
    for head, weight in (("fer2013", 3), ("ferplus", 1)):  # a face's weight in the label head applies
        targets = ops.convert_to_numpy(got[f"targets_{teacher_key(head)}"])
        np.testing.assert_allclose(targets, weight * ops.convert_to_numpy(expected[head]), atol=1e-5)


@pytest.mark.slow
def test_an_online_run_resumes_with_its_own_copies_of_the_teachers(faces, weights, tmp_path):
    teachers = [weights, write_weights(tmp_path / "second.npz", seed=2)]
    whole = train(online(), faces, tmp_path / "a", teachers=teachers)
    assert {"teacher_loss", "ferplus_teacher_loss"} <= set(whole.history[0])
    with pytest.raises(KeyboardInterrupt):
        train(online(), faces, tmp_path / "b", teachers=teachers, callbacks=[StopAt(3)])
    weights.unlink()
    rest = train(online(), faces, tmp_path / "b", resume=True)
    for expected, got in zip(numbers(whole.history), numbers(rest.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    facts = json.loads((tmp_path / "b" / "run.json").read_text())["teacher"]
    assert facts["online"]
    assert [model["name"] for model in facts["models"]] == ["teacher", "second"]
    assert not (tmp_path / "b" / runs.PREDICTIONS).exists()
    (tmp_path / "b" / "teacher-2.weights.npz").unlink()
    with pytest.raises(TrainingError, match="not those that the run was started with"):
        train(online(epochs=4), faces, tmp_path / "b", resume=True)
    (tmp_path / "b" / "teacher-1.weights.npz").unlink()
    with pytest.raises(TrainingError, match=r"teacher-1\.weights\.npz"):
        train(online(epochs=4), faces, tmp_path / "b", resume=True)


@pytest.mark.slow
def test_a_run_folder_teaches_online_and_the_file_records_it(faces, tmp_path):
    train(tiny(epochs=1), faces, tmp_path / "teacher", tensorboard=False)
    recipe = online(epochs=1)
    with pytest.raises(TrainingError, match=r"record no temperatures.*distil\.calibrated=false"):
        train(recipe, faces, tmp_path / "r", teachers=[tmp_path / "teacher"])
    (tmp_path / "teacher" / runs.TEMPERATURES).write_text('{"fer2013": 0.9, "ferplus": 0.5}')
    train(recipe, faces, tmp_path / "r", teachers=[tmp_path / "teacher"], tensorboard=False)
    copy = runs.load_weights(tmp_path / "r" / "teacher-1.weights.npz")
    assert copy.temperatures == {"fer2013": 0.9, "ferplus": 0.5}
    exported = ["export", str(tmp_path / "r"), "--data", "cartoon:240:3", "-o", str(tmp_path / "m.onnx")]
    assert run(exported) == 0
    teachers = read_model(tmp_path / "m.onnx")[1].training.teachers
    assert teachers.online
    assert teachers.models[0].name == "teacher"


@pytest.mark.slow
def test_in_bfloat16_and_on_smaller_faces_an_online_teacher_still_sees_its_own_size(
    faces, weights, tmp_path, monkeypatch
):
    seen = []
    call = OnlineTeachers.__call__

    def recording(self, pixels, temperature):
        seen.append((tuple(pixels.shape[1:3]), str(pixels.dtype)))
        return call(self, pixels, temperature)

    monkeypatch.setattr(OnlineTeachers, "__call__", recording)
    recipe = online(mixed_precision="bfloat16", progressive={"sizes": [32], "until": [0.5]}, epochs=2)
    result = train(recipe, faces, tmp_path / "r", teachers=[weights])
    assert [row["side"] for row in result.history] == [32, 48]
    assert len(seen) >= 2, "once for each size that the step was traced for"
    assert {side for side, _ in seen} == {(48, 48)}
    assert all("float32" in dtype for _, dtype in seen)
    assert all(0 < row["teacher_loss"] < 10 for row in result.history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "weighted"),
    [
        ({"data": {"balance": "weights"}, "heads": {"label": 1.0, "ferplus": 0.5}}, True),
        ({"heads": {"label": 0.0, "ferplus": 1.0}}, False),
    ],
    ids=["weights", "ferplus alone"],
)
def test_online_rare_classes_may_weigh_more_and_the_label_head_may_be_left_out(
    faces, weights, tmp_path, changes, weighted
):
    rare = np.flatnonzero(faces.labels == 1)[2:]
    few = faces.select(np.setdiff1d(np.arange(len(faces)), rare))
    recipe = online(epochs=1, augment="none", **changes)

    def get_teachers(training, heads):
        return OnlineTeachers([weights], training.size, [head.taxonomy for head in heads], "none")

    setup = set_up(recipe, few, get_teachers)
    given = setup.batches.targets
    rows = np.argsort(given[setup.head_ids[0]].sum(axis=1))[[0, 1, -2, -1]]
    batch = {head: ops.convert_to_tensor(targets[rows]) for head, targets in given.items()}
    batch["face"] = ops.convert_to_tensor(np.asarray(setup.training.images)[rows])
    got = setup.model(batch, training=True)
    own = {h: ops.convert_to_numpy(got[f"targets_{teacher_key(h)}"]).sum(axis=1) for h in setup.head_ids}
    assert ("fer2013" in own) is weighted
    np.testing.assert_allclose(own["ferplus"], 1, rtol=1e-5)
    if weighted:
        np.testing.assert_allclose(own["fer2013"], given["fer2013"][rows].sum(axis=1), rtol=1e-5)
        assert own["fer2013"].max() > 2 * own["fer2013"].min()
    result = train(recipe, few, tmp_path / "r", teachers=[weights])
    assert len(result.history) == 1


@pytest.mark.slow
@pytest.mark.parametrize("made", [pupil, online])
def test_teachers_of_an_earlier_start_without_a_checkpoint_are_removed(
    faces, teacher, weights, tmp_path, made
):
    folder = runs.RunFolder(tmp_path / "r")
    folder.path.mkdir()
    folder.write_teacher_weights([runs.load_weights(weights)] * 3)
    assert [path.name for path in folder.teacher_weights()] == [
        "teacher-1.weights.npz", "teacher-2.weights.npz", "teacher-3.weights.npz",
    ]  # fmt: skip
    folder.predictions.write_bytes(b"predictions for other faces")
    train(made(epochs=1), faces, folder.path, teachers=[weights if made is online else teacher])
    if made is online:
        (copy,) = folder.teacher_weights()
        arrays = [runs.load_weights(path).arrays for path in (copy, weights)]
        assert len({state.digest_arrays(one) for one in arrays}) == 1
        assert not folder.predictions.exists()
    else:
        assert not list(folder.path.glob("teacher-*"))
        images = np.asarray(faces.of_split("Training").images)
        assert TeacherPredictions.load(folder.predictions, images).models


def test_ten_crop_is_for_offline_distillation():
    from ferkit.core.errors import RecipeError

    with pytest.raises(RecipeError, match="online distillation takes tta none or flip"):
        online(distil={"weight": 0.6, "tta": "ten-crop", "online": True})


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("model.onnx", "graph is folded"),
        ("absent.weights.npz", r"there is no absent\.weights\.npz"),
        (".", "is no run folder"),
    ],
)
def test_an_online_teacher_needs_training_weights(tmp_path, monkeypatch, teacher, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=message):
        OnlineTeachers([teacher], 48, HEADS, "none")


TRAINABLE = [name for name in (*embedded_models(), *zoo_models()) if training_weights(name)]


def test_the_default_and_every_model_of_the_zoo_have_training_weights():
    assert {DEFAULT, *zoo_models()} <= set(TRAINABLE)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_weights_of_a_model_are_those_of_its_file(name):
    images = np.random.default_rng(0).integers(0, 256, (8, 48, 48), np.uint8)
    run = runs.load_training_weights(name)
    classifier = FaceClassifier(name)
    expected = classifier.predict(images)
    # The training weights are float16. In member-vgg, int8 keeps 99.8 % of the labels of 600 faces and moves
    # their probabilities by at most 0.02; noise is further from what it knows.
    tolerance = {"float16": 5e-3, "mixed": 1e-2, "int8": 4e-2}[classifier.info.precision]
    for head, p in predict_probabilities(run.network(), images, temperatures=run.temperatures).items():
        np.testing.assert_allclose(p, expected[head], atol=tolerance)
