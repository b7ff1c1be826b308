"""Distillation: what a teacher is asked, what is kept, and what the student is trained on."""

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

from keras import ops

from ferkit.data import load_data
from ferkit.models import build_model
from ferkit.training import distil, runs
from ferkit.training.distil import StepTeachers, ask_teachers, read_answers, write_answers
from ferkit.training.inference import predict_logits
from ferkit.training.network import TrainingModel, teacher_key
from ferkit.training.state import network_arrays, read_archive, write_archive
from ferkit.training.trainer import Quiet, Session, train
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


class Heard(Quiet):
    def __init__(self):
        self.calls = []

    def asking(self, *, teacher, done, faces):
        self.calls.append((teacher, done, faces))


def test_answers_are_the_mean_over_teachers_and_views(faces, tmp_path):
    first, second = (write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2))
    images = np.asarray(faces.images[:20])
    answers = ask_teachers([first, second], images, HEADS, "flip", cache=tmp_path / "kept")
    for head in ("fer2013", "ferplus"):
        expected = (
            FaceClassifier(first).predict(images, tta="flip")[head]
            + FaceClassifier(second).predict(images, tta="flip")[head]
        ) / 2
        np.testing.assert_allclose(answers.probabilities[head], expected, atol=2e-3)
        np.testing.assert_allclose(answers.probabilities[head].sum(axis=1, dtype=np.float32), 1, atol=2e-3)
    assert [set(t) for t in answers.teachers] == [{"name", "sha256"}] * 2


def test_uncalibrated_answers_are_the_teachers_before_their_temperatures(faces, tmp_path):
    sharpened = write_tiny_model(tmp_path / "a.onnx", seed=1, temperature=0.5)
    plain = write_tiny_model(tmp_path / "b.onnx", seed=2)
    images = np.asarray(faces.images[:20])

    def ask(calibrated, *teachers):
        kept = tmp_path / "kept"
        answers = ask_teachers(teachers, images, HEADS, "none", calibrated=calibrated, cache=kept)
        assert answers.calibrated is calibrated
        return answers.probabilities["ferplus"].astype(np.float32)

    p = FaceClassifier(sharpened).predict(images)["ferplus"]
    np.testing.assert_allclose(ask(True, sharpened), p, atol=1e-3)
    before = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    assert np.abs(before - p).max() > 0.02
    np.testing.assert_allclose(ask(False, sharpened), before, atol=2e-3)
    np.testing.assert_allclose(ask(False, plain), ask(True, plain), atol=1e-3)
    mean = (before + FaceClassifier(plain).predict(images)["ferplus"]) / 2
    np.testing.assert_allclose(ask(False, sharpened, plain), mean, atol=2e-3)


def test_an_ensemble_has_no_answers_before_calibration(faces, tmp_path):
    members = [write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed, temperature=0.5) for seed in (1, 2)]
    vote = tmp_path / "vote.onnx"
    assert run(["ensemble", *map(str, members), "-o", str(vote)]) == 0
    images = np.asarray(faces.images[:5])
    heard = Heard()
    options = {"told": heard.asking, "cache": tmp_path / "kept"}
    with pytest.raises(TrainingError, match=r"vote\.onnx is an ensemble of tiny, tiny.*name its members"):
        ask_teachers([members[0], vote], images, HEADS, "none", calibrated=False, **options)
    assert heard.calls == [], "nobody is asked before all teachers were looked at"
    assert ask_teachers([vote], images, HEADS, "none", **options).calibrated


def test_a_head_that_one_teacher_lacks_comes_from_the_other(faces, tmp_path):
    both = write_tiny_model(tmp_path / "a.onnx", seed=1)
    labels_only = write_tiny_model(tmp_path / "b.onnx", seed=2, taxonomies=(FER2013,))
    images = np.asarray(faces.images[:5])
    answers = ask_teachers([both, labels_only], images, HEADS, "none", cache=tmp_path / "kept")
    alone = FaceClassifier(both).predict(images)["ferplus"]
    np.testing.assert_allclose(answers.probabilities["ferplus"], alone, atol=2e-3)


def test_the_second_time_nothing_is_asked(faces, teacher, tmp_path):
    images = np.asarray(faces.images)
    heard = Heard()
    first = ask_teachers([teacher], images, HEADS, "none", told=heard.asking, cache=tmp_path / "kept")
    assert heard.calls[0][1:] == (0, len(images))
    assert heard.calls[-1][1:] == (len(images), len(images))
    again = Heard()
    second = ask_teachers([teacher], images, HEADS, "none", told=again.asking, cache=tmp_path / "kept")
    assert [call[1:] for call in again.calls] == [(len(images), len(images))]
    for head in ("fer2013", "ferplus"):
        np.testing.assert_array_equal(first.probabilities[head], second.probabilities[head])


def test_an_interrupted_teacher_is_asked_the_rest_only(faces, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK", 50)
    images = np.asarray(faces.images)

    def stop(*, teacher, done, faces):
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_teachers([teacher], images, HEADS, "none", told=stop, cache=tmp_path / "kept")
    heard = Heard()
    answers = ask_teachers([teacher], images, HEADS, "none", told=heard.asking, cache=tmp_path / "kept")
    assert heard.calls[0][1] == 100
    whole = ask_teachers([teacher], images, HEADS, "none", cache=tmp_path / "other")
    np.testing.assert_array_equal(answers.probabilities["fer2013"], whole.probabilities["fer2013"])


def test_what_is_kept_belongs_to_the_teacher_the_faces_and_the_views(faces, teacher, tmp_path):
    kept = tmp_path / "kept"
    images = np.asarray(faces.images[:10])
    ask_teachers([teacher], images, HEADS, "none", cache=kept)
    other = write_tiny_model(tmp_path / "other.onnx", seed=9)
    for models, shown, views in (([other], images, "none"), ([teacher], images[::-1], "none"),
                                 ([teacher], images, "flip")):  # fmt: skip
        got = ask_teachers(models, np.ascontiguousarray(shown), HEADS, views, cache=kept)
        expected = FaceClassifier(models[0]).predict(np.ascontiguousarray(shown), tta=views)
        np.testing.assert_allclose(got.probabilities["fer2013"], expected["fer2013"], atol=2e-3)
    assert len(list(kept.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"no archive at all"])
def test_a_damaged_cache_is_asked_anew(faces, teacher, tmp_path, damage):
    images = np.asarray(faces.images[:10])
    first = ask_teachers([teacher], images, HEADS, "none", cache=tmp_path)
    next(tmp_path.glob("*.npz")).write_bytes(damage)
    second = ask_teachers([teacher], images, HEADS, "none", cache=tmp_path)
    np.testing.assert_array_equal(first.probabilities["fer2013"], second.probabilities["fer2013"])


def test_a_cache_that_cannot_be_written_does_not_matter(faces, teacher, tmp_path):
    (tmp_path / "file").write_text("in the way")
    answers = ask_teachers(
        [teacher], np.asarray(faces.images[:5]), HEADS, "none", cache=tmp_path / "file" / "below"
    )
    assert answers.probabilities["fer2013"].shape == (5, 7)


def test_a_temperature_flattens_and_one_changes_nothing(faces, teacher, tmp_path):
    answers = ask_teachers([teacher], np.asarray(faces.images[:20]), HEADS, "none", cache=tmp_path)
    p = answers.probabilities["fer2013"].astype(np.float64)
    np.testing.assert_allclose(answers.targets(1.0)["fer2013"], p, atol=1e-3)
    softened = answers.targets(4.0)["fer2013"]
    expected = p**0.25 / (p**0.25).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softened, expected, atol=1e-3)
    assert softened.max() < p.max()


def test_answers_come_back_from_the_runs_folder_and_only_for_its_faces(faces, teacher, tmp_path):
    images = np.asarray(faces.images[:20])
    answers = ask_teachers([teacher], images, HEADS, "flip", cache=tmp_path / "kept")
    write_answers(tmp_path / "teacher.npz", answers)
    again = read_answers(tmp_path / "teacher.npz", images)
    for head, p in answers.probabilities.items():
        np.testing.assert_array_equal(again.probabilities[head], p)
    assert (again.teachers, again.tta, again.calibrated) == (answers.teachers, "flip", True)
    with pytest.raises(TrainingError, match="other faces"):
        read_answers(tmp_path / "teacher.npz", np.ascontiguousarray(images[::-1]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"size": 32}, "faces of 32 pixels; these have 48"),
        ({"taxonomies": (Taxonomy("own", ("calm", "cross")),)}, "answers in own"),
        ({"taxonomies": (Taxonomy("fer2013", ("one", "two")),)}, "means other labels by fer2013"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(faces, tmp_path, made, message):
    unfit = write_tiny_model(tmp_path / "unfit.onnx", **made)
    with pytest.raises(TrainingError, match=message):
        ask_teachers([unfit], np.asarray(faces.images[:5]), HEADS, "none", cache=tmp_path / "kept")


def test_an_absent_teacher_is_named(faces, tmp_path):
    with pytest.raises(ModelFileError, match="nobody"):
        ask_teachers([tmp_path / "nobody.onnx"], np.asarray(faces.images[:5]), HEADS, "none")


def test_the_loss_is_the_weighted_sum_that_the_recipe_says():
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
            "mass_fer2013": ops.convert_to_tensor(labels),
            f"mass_{teacher_key('fer2013')}": ops.convert_to_tensor(soft),
        }
    )

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    hard = -(labels * log_softmax(logits)).sum(axis=1).mean()
    taught = -(soft * log_softmax(logits / 2)).sum(axis=1).mean()
    assert float(got) == pytest.approx(0.4 * hard + 0.6 * 4 * taught, rel=1e-5)


@pytest.mark.slow
def test_a_distilled_run_goes_on_without_its_teacher_to_the_same_result(faces, teacher, tmp_path):
    whole = train(pupil(), faces, tmp_path / "a", teachers=[teacher])
    with pytest.raises(KeyboardInterrupt):
        train(pupil(), faces, tmp_path / "b", teachers=[teacher], watcher=StopAt(3))
    teacher.unlink()
    rest = train(pupil(), faces, tmp_path / "b", resume=True)
    for expected, got in zip(numbers(whole.history), numbers(rest.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)
    assert {"teacher_loss", "ferplus_teacher_loss"} <= set(whole.history[0])
    first, second = (read_archive(tmp_path / k / runs.WEIGHTS)[0] for k in "ab")
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=1e-6, err_msg=name)
    facts = json.loads((tmp_path / "b" / "run.json").read_text())
    assert facts["teacher"]["models"][0]["sha256"]
    assert facts["teacher"]["tta"] == "flip"
    (tmp_path / "b" / runs.TEACHER).unlink()
    with pytest.raises(TrainingError, match=r"teacher\.npz"):
        train(pupil(epochs=4), faces, tmp_path / "b", resume=True)


@pytest.mark.slow
def test_a_student_of_a_sure_teacher_learns_the_teachers_answers_not_the_labels(faces, tmp_path):
    """With all the weight on a teacher that always says happy, the student says happy whatever the label."""
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


def test_teacher_and_recipe_must_both_say_that_there_is_one(faces, teacher, tmp_path):
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
def test_the_command_distils_exports_and_tells_on_the_card(teacher, tmp_path, capfd):
    distil_small(teacher, tmp_path, "--temperature", "2")
    out, err = capfd.readouterr()
    assert "tiny has answered for" in err
    assert "1 epochs, PublicTest" in out
    card = exported_card(tmp_path)
    assert "Distilled from `" in card
    assert "in fer2013 and ferplus, temperature 2, 70 % of these heads' loss" in card
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
        (["distil", "-t", "x.onnx", "--resume", "run", "--data", "cartoon:70"], 1, "--resume goes on"),
        (["distil", "-t", "x", "-r", "small", "--weight", "2", "--data", "cartoon:70"], 1, "distil.weight"),
    ],
)  # fmt: skip
def test_wrong_requests_leave_nothing_behind(args, status, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(args) == status
    assert message in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_parameters_of_the_network_of_init_are_not_the_recipes(teacher, tmp_path, monkeypatch, capfd):
    """`small` is a se-resnet, which has no stage_dropout; the network given by --init has one."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny(model={"name": "vgg", "params": {"filters": [4, 8], "convolutions": [1, 1]}})
    vgg = build_model("vgg", {"fer2013": 7}, **recipe.model.params)
    meta = runs.weights_meta(recipe, (FER2013,), 48)
    write_archive(tmp_path / "vgg.npz", network_arrays(vgg, ("fer2013",)), meta)
    line = [
        "distil", "-t", str(teacher), "-r", "small", "--init", "vgg.npz", "--data", "cartoon:70", "-o", "run",
        "--set", "model.params.stage_dropout=0.2", "--epochs", "1", "--no-tensorboard", "-q",
    ]  # fmt: skip
    assert run(line) == 0, capfd.readouterr().err
    assert runs.load_run(tmp_path / "run").recipe.model.params["stage_dropout"] == 0.2
    assert runs.load_run(tmp_path / "run").recipe.distil.weight == 0.7


def test_the_teachers_answers_are_mixed_like_the_labels_and_everything_is_reseeded():
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

    def answer(epoch):
        model.reseed(1, epoch)
        return {k: ops.convert_to_numpy(v) for k, v in model(batch, training=True).items()}

    first, second, other = answer(2), answer(2), answer(3)
    mixed = first[f"mass_{teacher_key('fer2013')}"]
    assert mixed.max(axis=1).min() < 1
    np.testing.assert_allclose(first["mass_fer2013"], mixed, atol=1e-6)
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)
    assert np.abs(other["logits_fer2013"] - first["logits_fer2013"]).max() > 1e-4


@pytest.mark.slow
def test_the_weight_of_a_face_counts_for_the_teachers_answer_too(faces, teacher, tmp_path):
    recipe = pupil(data={"balance": "weights"}, epochs=1)
    rare = np.flatnonzero(faces.labels == 1)[2:]
    few = faces.select(np.setdiff1d(np.arange(len(faces)), rare))
    training = few.of_split("Training")
    answers = ask_teachers([teacher], np.asarray(training.images), HEADS, "flip")
    session = Session(recipe, few, tmp_path / "r", [], Quiet(), lambda *_: answers)
    mass = session.faces.mass
    weights = mass["fer2013"].sum(axis=1)
    assert weights.max() > 2 * weights.min()
    np.testing.assert_allclose(mass[teacher_key("fer2013")].sum(axis=1), weights, rtol=1e-5)
    np.testing.assert_allclose(mass[teacher_key("ferplus")].sum(axis=1), 1, rtol=1e-5)


def test_what_can_be_refused_is_refused_before_a_teacher_is_asked(faces, teacher, tmp_path):
    heard = Heard()
    recipe = pupil(progressive={"sizes": [48], "until": [0.5]})
    with pytest.raises(TrainingError, match="below the faces' 48"):
        train(recipe, faces, tmp_path / "r", teachers=[teacher], watcher=heard)
    assert heard.calls == []
    assert not (tmp_path / "r").exists()


def test_targets_do_not_depend_on_what_was_kept(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "CHUNK", 50)
    models = [write_tiny_model(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2)]
    images = np.asarray(faces.images)
    fresh = ask_teachers(models, images, HEADS, "flip", cache=tmp_path / "kept")
    kept = ask_teachers(models, images, HEADS, "flip", cache=tmp_path / "kept")

    def stop(*, teacher, done, faces):
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_teachers(models, images, HEADS, "flip", told=stop, cache=tmp_path / "rest")
    rest = ask_teachers(models, images, HEADS, "flip", cache=tmp_path / "rest")
    for head, p in fresh.probabilities.items():
        np.testing.assert_array_equal(kept.probabilities[head], p)
        np.testing.assert_array_equal(rest.probabilities[head], p)


def in_steps(**changes):
    return pupil(
        **{"distil": {"weight": 0.6, "temperature": 2.0, "tta": "none", "every_step": True}, **changes}
    )


def normalised(p):
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_in_every_step_the_answers_are_those_about_the_same_pictures(tmp_path, tta, calibrated):
    both = write_tiny_model(tmp_path / "a.onnx", seed=1, temperature=0.5)
    labels_only = write_tiny_model(tmp_path / "b.onnx", seed=2, taxonomies=(FER2013,))
    images = np.random.default_rng(0).integers(0, 256, (9, 48, 48), np.uint8)
    step = StepTeachers([both, labels_only], 48, HEADS, tta, calibrated=calibrated)
    got = step(ops.convert_to_tensor(images[..., None].astype(np.float32)), 2.0)
    said = {"fer2013": [], "ferplus": []}
    for path in (both, labels_only):
        _, info = read_model(path)
        for head, p in FaceClassifier(path).predict(images, tta=tta).items():
            said[head].append(p if calibrated else normalised(p ** info.head(head).temperature))
    assert set(got) == set(said)
    for head, p in said.items():
        expected = normalised(np.mean(p, axis=0) ** (1 / 2.0))
        np.testing.assert_allclose(ops.convert_to_numpy(got[head]), expected, atol=1e-4)
    assert step.facts()["every_step"]
    assert [model["name"] for model in step.facts()["models"]] == ["tiny", "tiny"]


def test_in_every_step_a_teacher_sees_what_the_student_sees(teacher):
    """Turned, lit, erased and mixed; the targets are the teacher's answers about just these pixels."""
    recipe = in_steps(distil={"weight": 0.6, "temperature": 1.0, "tta": "none", "every_step": True})
    network = build_model(recipe.model.name, {"fer2013": 7, "ferplus": 8}, **recipe.model.params)
    teachers = StepTeachers([teacher], 48, HEADS, "none")
    weights = {"fer2013": 1.0, "ferplus": 0.5}
    model = TrainingModel(network, recipe, weights, teachers.heads, teachers, "fer2013")
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
    pixels = np.clip(np.round(ops.convert_to_numpy(seen)[..., 0]), 0, 255).astype(np.uint8)
    expected = FaceClassifier(teacher).predict(pixels)
    own = ops.convert_to_numpy(got[f"mass_{teacher_key('fer2013')}"])
    np.testing.assert_allclose(own, 3 * expected["fer2013"], atol=0.03)  # pixels are rounded for the file
    other = ops.convert_to_numpy(got[f"mass_{teacher_key('ferplus')}"])
    np.testing.assert_allclose(other, expected["ferplus"], atol=0.01)


@pytest.mark.slow
def test_a_run_that_asks_in_every_step_goes_on_with_its_own_copies_of_the_teachers(faces, teacher, tmp_path):
    whole = train(in_steps(), faces, tmp_path / "a", teachers=[teacher, "ferkit-small"])
    assert {"teacher_loss", "ferplus_teacher_loss"} <= set(whole.history[0])
    with pytest.raises(KeyboardInterrupt):
        train(in_steps(), faces, tmp_path / "b", teachers=[teacher, "ferkit-small"], watcher=StopAt(3))
    teacher.unlink()
    rest = train(in_steps(), faces, tmp_path / "b", resume=True)
    for expected, got in zip(numbers(whole.history), numbers(rest.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    facts = json.loads((tmp_path / "b" / "run.json").read_text())["teacher"]
    assert facts["every_step"]
    assert [model["name"] for model in facts["models"]] == ["tiny", "ferkit-small"]
    assert not (tmp_path / "b" / runs.TEACHER).exists()
    (tmp_path / "b" / "teacher-2.onnx").unlink()
    with pytest.raises(TrainingError, match="not those that the run began with"):
        train(in_steps(epochs=4), faces, tmp_path / "b", resume=True)
    for copy in (tmp_path / "b").glob("teacher-*.onnx"):
        copy.unlink()
    with pytest.raises(TrainingError, match=r"teacher-1\.onnx"):
        train(in_steps(epochs=4), faces, tmp_path / "b", resume=True)


@pytest.mark.slow
def test_in_bfloat16_and_on_smaller_faces_the_teacher_still_sees_its_own_size(
    faces, teacher, tmp_path, monkeypatch
):
    shown = []
    ask = StepTeachers.__call__

    def listening(self, seen, temperature):
        shown.append((tuple(seen.shape[1:3]), str(seen.dtype)))
        return ask(self, seen, temperature)

    monkeypatch.setattr(StepTeachers, "__call__", listening)
    recipe = in_steps(mixed_precision="bfloat16", progressive={"sizes": [32], "until": [0.5]}, epochs=2)
    result = train(recipe, faces, tmp_path / "r", teachers=[teacher])
    assert [row["side"] for row in result.history] == [32, 48]
    assert len(shown) >= 2, "asked once for each size that the step was traced for"
    assert {side for side, _ in shown} == {(48, 48)}
    assert all("float32" in dtype for _, dtype in shown)
    assert all(0 < row["teacher_loss"] < 10 for row in result.history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "weighs"),
    [
        ({"data": {"balance": "weights"}, "heads": {"label": 1.0, "ferplus": 0.5}}, True),
        ({"heads": {"label": 0.0, "ferplus": 1.0}}, False),
    ],
    ids=["weights", "ferplus alone"],
)
def test_in_every_step_rare_classes_may_weigh_more_and_the_label_head_may_be_left_out(
    faces, teacher, tmp_path, changes, weighs
):
    rare = np.flatnonzero(faces.labels == 1)[2:]
    few = faces.select(np.setdiff1d(np.arange(len(faces)), rare))
    recipe = in_steps(epochs=1, augment="none", **changes)

    def teach(training, heads):
        return StepTeachers([teacher], training.size, [head.taxonomy for head in heads], "none")

    session = Session(recipe, few, tmp_path / "r", [], Quiet(), teach)
    rows = np.argsort(session.faces.mass[session.names[0]].sum(axis=1))[[0, 1, -2, -1]]
    batch = {head: ops.convert_to_tensor(mass[rows]) for head, mass in session.faces.mass.items()}
    batch["face"] = ops.convert_to_tensor(np.asarray(session.training.images)[rows])
    got = session.model(batch, training=True)
    own = {h: ops.convert_to_numpy(got[f"mass_{teacher_key(h)}"]).sum(axis=1) for h in session.names}
    assert ("fer2013" in own) is weighs
    np.testing.assert_allclose(own["ferplus"], 1, rtol=1e-5)
    if weighs:
        np.testing.assert_allclose(own["fer2013"], session.faces.mass["fer2013"][rows].sum(axis=1), rtol=1e-5)
        assert own["fer2013"].max() > 2 * own["fer2013"].min()
    result = train(recipe, few, tmp_path / "r", teachers=[teacher])
    assert len(result.history) == 1


@pytest.mark.slow
@pytest.mark.parametrize("made", [pupil, in_steps])
def test_what_a_run_that_came_to_nothing_kept_of_its_teachers_goes(faces, teacher, tmp_path, made):
    run = tmp_path / "r"
    run.mkdir()
    StepTeachers([teacher, "ferkit-small", teacher], 48, HEADS, "none").write(run)
    assert [path.name for path in distil.kept_teachers(run)] == [
        "teacher-1.onnx", "teacher-2.onnx", "teacher-3.onnx",
    ]  # fmt: skip
    (run / runs.TEACHER).write_bytes(b"answers about other faces")
    train(made(epochs=1), faces, run, teachers=["ferkit-small"])
    if made is in_steps:
        (copy,) = distil.kept_teachers(run)
        assert read_model(copy)[1].name == "ferkit-small"
        assert not (run / runs.TEACHER).exists()
    else:
        assert not list(run.glob("teacher-*.onnx"))
        assert read_answers(run / runs.TEACHER, np.asarray(faces.of_split("Training").images)).teachers


def test_ten_views_cannot_be_asked_about_in_every_step(teacher):
    from ferkit.core.errors import RecipeError

    with pytest.raises(RecipeError, match="online distillation takes tta none or flip"):
        in_steps(distil={"weight": 0.6, "tta": "ten-crop", "every_step": True})
    with pytest.raises(TrainingError, match="single or flip views, not ten-crop"):
        StepTeachers([teacher], 48, HEADS, "ten-crop")


def test_a_teacher_that_is_computed_otherwise_is_refused(teacher, monkeypatch):
    """A graph function that forgets the activation stands for any difference from ONNX Runtime."""
    from ferkit.training import graph

    monkeypatch.setattr(graph, "_OPERATIONS", {**graph._OPERATIONS, "Relu": lambda _, __, x: x})
    with pytest.raises(TrainingError, match=r"tiny answers otherwise .*every_step=false"):
        StepTeachers([teacher], 48, HEADS, "none")


@pytest.mark.parametrize("raised", [AttributeError("rank"), IndexError("axis"), RuntimeError("backend")])
def test_a_teacher_that_cannot_be_computed_is_refused_in_a_sentence(teacher, monkeypatch, raised):
    from ferkit.training import graph

    def broken(*_):
        raise raised

    monkeypatch.setattr(graph, "_OPERATIONS", {**graph._OPERATIONS, "Relu": broken})
    with pytest.raises(TrainingError, match=f"tiny cannot be computed .*{raised.args[0]}.*every_step=false"):
        StepTeachers([teacher], 48, HEADS, "none")


def test_a_teacher_is_held_against_its_file_in_the_precision_that_it_is_asked_in(teacher, monkeypatch):
    monkeypatch.setitem(distil.STEP_TOLERANCES, "bfloat16", 0.0)
    StepTeachers([teacher], 48, HEADS, "none")
    with pytest.raises(TrainingError, match=r"in float32 and by .* in bfloat16"):
        StepTeachers([teacher], 48, HEADS, "none", dtype="bfloat16")


@pytest.mark.slow
def test_the_card_tells_that_the_teacher_was_asked_in_every_step(teacher, tmp_path):
    distil_small(teacher, tmp_path, "--set", "distil.every_step=true")
    assert "as the student saw them, asked in every step, in fer2013" in exported_card(tmp_path)
