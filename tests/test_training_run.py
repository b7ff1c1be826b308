"""Training runs: their files, their callbacks, how they stop, and that they resume to the same result."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ferkit.core.errors import OutputError, TrainingError

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras
from keras import ops

import ferkit
from ferkit.data import load_data
from ferkit.models import build_model
from ferkit.training import runs
from ferkit.training.inference import predict_logits
from ferkit.training.network import TrainingModel
from ferkit.training.recipe import dump_recipe
from ferkit.training.runs import RunFolder, load_run
from ferkit.training.state import read_archive, write_archive
from ferkit.training.trainer import set_up, train
from tinyruns import StopAt, StopBeforeTraining, numbers, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:240:3", cache=False)


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(tiny(), faces, folder, command=["ferkit", "train"])
    return folder


def test_the_run_folder_holds_every_file(finished, faces):
    names = {path.name for path in finished.iterdir()} - {".lock"}  # which stays where the system lets it
    assert names == {
        "recipe.toml", "run.json", "history.csv", "history.json", "curves.png", "checkpoint.npz",
        "weights.npz", "tensorboard",
    }  # fmt: skip
    facts = json.loads((finished / "run.json").read_text())
    assert facts["state"] == "finished"
    assert facts["data"]["fingerprint"] == faces.fingerprint
    assert facts["command"] == ["ferkit", "train"]
    assert facts["seed"] == 5
    assert {"keras", "numpy", "ferkit"} <= set(facts["versions"])
    history = json.loads((finished / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    with (finished / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["val_accuracy"]) for row in rows] == [row["val_accuracy"] for row in history]
    assert (finished / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((finished / "tensorboard").rglob("events*"))


def test_the_final_weights_give_the_last_row_of_the_history(finished, faces):
    run = load_run(finished)
    test = faces.of_split("PublicTest")
    predictions = predict_logits(run.network(), np.asarray(test.images))["fer2013"].argmax(axis=1)
    assert float((predictions == test.labels).mean()) == pytest.approx(run.history[-1]["val_accuracy"])


def test_an_interrupted_run_resumes_to_the_same_result(finished, faces, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), faces, tmp_path / "b", callbacks=[StopAt(3)])
    assert json.loads((tmp_path / "b" / "run.json").read_text())["state"] == "interrupted"
    with pytest.raises(TrainingError, match="not finished"):
        load_run(tmp_path / "b")
    result = train(tiny(), faces, tmp_path / "b", resume=True)
    whole = json.loads((finished / "history.json").read_text())
    for expected, got in zip(numbers(whole), numbers(result.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)
    first, second = (read_archive(folder / "weights.npz")[0] for folder in (finished, tmp_path / "b"))
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=1e-6, err_msg=name)


def test_a_run_resumes_with_other_epochs_and_records_it(finished, faces, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), faces, tmp_path / "s", callbacks=[StopAt(2)], command=["first"])
    result = train(tiny(epochs=2), faces, tmp_path / "s", resume=True, command=["second"])
    assert len(result.history) == 2
    run = load_run(tmp_path / "s")
    assert run.facts["changed"] == [{"after": 1, "epochs": [3, 2]}]
    assert run.facts["command"] == ["first"]
    assert [again["command"] for again in run.facts["resumed"]] == [["second"]]
    assert run.recipe.epochs == 2


def test_weights_that_a_kill_prevented_are_written_on_resuming(finished, faces, tmp_path):
    shutil.copytree(finished, tmp_path / "c")
    before, _ = read_archive(tmp_path / "c" / "weights.npz")
    (tmp_path / "c" / "weights.npz").unlink()
    train(tiny(), faces, tmp_path / "c", resume=True)
    after, _ = read_archive(tmp_path / "c" / "weights.npz")
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_resuming_a_finished_run_does_nothing(finished, faces):
    before = (finished / "weights.npz").stat().st_mtime_ns
    assert len(train(tiny(), faces, finished, resume=True).history) == 3
    assert (finished / "weights.npz").stat().st_mtime_ns == before


def test_kill_9_loses_at_most_the_running_epoch(tmp_path):
    command = [
        sys.executable, "-m", "ferkit", "train", "--recipe", "seed", "--data", "cartoon:400:1", "--out",
        str(tmp_path / "k"), "--set", "model.params.dense=[8]", "--epochs", "200", "--no-tensorboard",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    history = tmp_path / "k" / "history.json"
    try:
        deadline = time.monotonic() + 120
        while not history.exists() or len(json.loads(history.read_text())) < 2:
            assert process.poll() is None, "training ended early"
            assert time.monotonic() < deadline, "no epoch within two minutes"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = json.loads(history.read_text())
    kept = read_archive(tmp_path / "k" / "checkpoint.npz")[1]["history"]
    assert numbers(kept)[: len(done)] == numbers(done)
    assert len(kept) - len(done) in (0, 1)
    # The recipe in the folder is what --resume needs; its schedule is the run's, so epochs stay 200.
    recipe = runs.load_recipe(tmp_path / "k" / "recipe.toml")
    more = len(kept) + 1
    with pytest.raises(KeyboardInterrupt):
        train(recipe, load_data("cartoon:400:1"), tmp_path / "k", resume=True, callbacks=[StopAt(more + 1)])
    assert numbers(json.loads(history.read_text()))[: len(kept)] == numbers(kept)


def test_a_loss_that_is_not_finite_is_an_error_and_the_checkpoint_stays(faces, tmp_path):
    recipe = tiny(
        model={"name": "seed-cnn", "params": {"dense": [8]}},
        # Each step multiplies the weights by 1 - rate * decay = -9.
        optimizer={"name": "sgd", "learning_rate": 10.0, "weight_decay": 1.0},
        label_smoothing=0.0,
        augment="none",
        schedule={"name": "step", "milestones": [2], "warmup_epochs": 2},
        epochs=20,
    )
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in epoch \d+") as caught:
        train(recipe, faces, tmp_path / "n", tensorboard=False)
    facts = json.loads((tmp_path / "n" / "run.json").read_text())
    assert facts["state"] == "failed"
    assert facts["error"] == str(caught.value)
    assert facts["epochs"] >= 1
    arrays, meta = read_archive(tmp_path / "n" / "checkpoint.npz")
    assert len(meta["history"]) == facts["epochs"]
    assert all(np.isfinite(a).all() for a in arrays.values())


@pytest.mark.parametrize("kind", ["python", "tensorflow", "jax"])
def test_too_little_memory_is_an_error_and_is_recorded(faces, tmp_path, kind):
    import tensorflow as tf

    error, first = {
        "python": (MemoryError("Unable to allocate 3.2 TiB\nfor an array"), "Unable to allocate 3.2 TiB"),
        "tensorflow": (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), "OOM when"),
        "jax": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED: Out of"),
    }[kind]

    def run_out():
        raise error

    with pytest.raises(TrainingError, match=f"^out of memory: {first}.*a smaller batch_size"):
        train(tiny(), faces, tmp_path / "m", callbacks=[StopAt(1, run_out)], tensorboard=False)
    facts = json.loads((tmp_path / "m" / "run.json").read_text())
    assert facts["state"] == "failed"
    assert facts["error"].startswith(f"out of memory: {first}")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_a_full_disk_that_tensorflow_meets_is_not_taken_for_too_little_memory(faces, tmp_path, code):
    import tensorflow as tf

    def run_out():
        raise tf.errors.ResourceExhaustedError(None, None, f"events.out; {os.strerror(code)}\n[Op:Write]")

    with pytest.raises(OutputError, match=f"^cannot write the run: events.out; {os.strerror(code)}$"):
        train(tiny(), faces, tmp_path / "m", callbacks=[StopAt(1, run_out)], tensorboard=False)


def test_an_error_of_the_program_is_not_taken_for_too_little_memory(faces, tmp_path):
    def fail():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        train(tiny(), faces, tmp_path / "m", callbacks=[StopAt(1, fail)], tensorboard=False)


def test_other_backends_warn_of_what_only_tensorflow_does(faces, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), faces, tmp_path / "j", callbacks=[StopBeforeTraining()])
    said = [record.message for record in caplog.records if record.name == "ferkit.training"]
    assert [words.split(",")[0] for words in said] == ["on Keras' backend jax"] * 2
    assert "not deterministic" in said[0]
    assert "no TensorBoard log" in said[1]


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(faces, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(OutputError, match="cannot write"):
            train(tiny(), faces, tmp_path / "f", callbacks=[StopAt(2, fill)], tensorboard=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read_archive(tmp_path / "f" / "checkpoint.npz")[1]["history"]) == 1
    assert {path.name for path in (tmp_path / "f").glob(".*")} <= {".lock"}
    assert len(train(tiny(), faces, tmp_path / "f", resume=True, tensorboard=False).history) == 3


def test_other_settings_train_too(faces, tmp_path):
    recipe = tiny(
        epochs=2,
        mixed_precision="bfloat16",
        heads={"label": 1.0},
        data={"balance": "weights", "drop_flat": True, "drop_leaks": True},
        augment={"preset": "photos"},
        optimizer={"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.01, "clip_norm": 1.0},
        schedule={"name": "plateau", "patience": 1, "factor": 0.5},
    )
    history = train(recipe, faces, tmp_path / "o", tensorboard=False).history
    assert history[0]["learning_rate"] == pytest.approx(0.01)
    assert "ferplus_loss" not in history[0]


@pytest.mark.parametrize(("drop_leaks", "dropped"), [(True, 1), (False, 0)])
def test_leaks_are_those_of_the_split_that_is_trained_on(faces, tmp_path, drop_leaks, dropped):
    from dataclasses import replace

    images = np.array(faces.images)
    public, private = (np.flatnonzero(faces.split == code)[0] for code in (1, 2))
    images[private] = images[public]
    data = {"train_split": "PublicTest", "validation_split": "Training", "drop_leaks": drop_leaks}
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny(data=data), replace(faces, images=images), tmp_path / "l", callbacks=[StopBeforeTraining()]
        )
    facts = json.loads((tmp_path / "l" / "run.json").read_text())
    assert facts["data"]["training"] == len(faces.of_split("PublicTest")) - dropped


@pytest.mark.parametrize("average", [True, False])
def test_equal_training_faces_can_share_the_mean_of_their_targets(faces, average):
    images, labels = np.array(faces.images), np.array(faces.labels)
    rows = np.flatnonzero(faces.split == 0)[:3]
    images[rows[2]] = images[rows[0]]
    labels[rows] = 0, 1, 4
    recipe = tiny(data={"average_duplicates": average})
    setup = set_up(recipe, dataclasses.replace(faces, images=images, labels=labels))
    targets = setup.batches.targets["fer2013"][:3]
    shared = np.eye(7)[[0, 4]].mean(axis=0)
    assert_array_equal(targets, [shared, np.eye(7)[1], shared] if average else np.eye(7)[[0, 1, 4]])


def test_an_average_that_forgets_at_once_is_the_last_weights(faces, tmp_path):
    histories = []
    for ema in (0.0, 1e-9):
        recipe = tiny(epochs=2, optimizer={"name": "sgd", "learning_rate": 0.05, "ema": ema})
        histories.append(train(recipe, faces, tmp_path / f"a{ema}", tensorboard=False).history)
    for plain, averaged in zip(*map(numbers, histories), strict=True):
        assert averaged == pytest.approx(plain, abs=1e-5)


def test_the_released_weights_are_the_average_that_the_decay_says(faces, tmp_path):
    """One step an epoch, so that the weights after each step can be read from runs without an average."""

    def weights(epochs, ema):
        recipe = tiny(
            epochs=epochs, batch_size=len(faces.of_split("Training")), schedule={"name": "constant"},
            optimizer={"name": "sgd", "learning_rate": 0.05, "ema": ema},
        )  # fmt: skip
        folder = tmp_path / f"{epochs}-{ema}"
        train(recipe, faces, folder, tensorboard=False)
        arrays = load_run(folder).arrays
        return {name: array for name, array in arrays.items() if array.ndim == 4}

    first, second, third = (weights(k, 0.0) for k in (1, 2, 3))
    averaged = weights(3, 0.6)
    for name, array in averaged.items():
        expected = 0.36 * first[name] + 0.24 * second[name] + 0.4 * third[name]
        np.testing.assert_allclose(array, expected, atol=1e-6, err_msg=name)
    assert any(np.abs(averaged[name] - third[name]).max() > 1e-4 for name in averaged)


def test_two_processes_do_not_train_into_one_folder(faces, tmp_path):
    """While the first epoch runs there is no checkpoint yet, so the folder's lock has to tell."""
    said = []

    def begin_another():
        with pytest.raises(TrainingError) as refused:
            train(tiny(seed=6), faces, tmp_path / "r", tensorboard=False)
        said.append(str(refused.value))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), faces, tmp_path / "r", callbacks=[StopAt(1, begin_another)], tensorboard=False)
    assert said == [f"another process trains in {tmp_path / 'r'}; wait for it to end, or name another --out"]
    assert "seed = 5" in (tmp_path / "r" / "recipe.toml").read_text()
    train(tiny(seed=6, epochs=1), faces, tmp_path / "r", tensorboard=False)  # free again


@pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOSYS])
def test_training_works_on_a_file_system_without_locks(faces, tmp_path, monkeypatch, refusal):
    import fcntl

    def refuse(descriptor, operation):
        raise OSError(refusal, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    train(tiny(epochs=1), faces, tmp_path / "r", tensorboard=False)
    assert load_run(tmp_path / "r").facts["state"] == "finished"


def test_weights_for_rare_labels_need_the_head_of_labels(faces, tmp_path):
    recipe = tiny(heads={"label": 0, "ferplus": 1}, data={"balance": "weights"})
    with pytest.raises(TrainingError, match=r"heads\.label = 0"):
        train(recipe, faces, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_early_stopping_ends_after_its_patience(faces, tmp_path):
    recipe = tiny(epochs=30, early_stopping=1, optimizer={"name": "sgd", "learning_rate": 1e-6})
    result = train(recipe, faces, tmp_path / "e", tensorboard=False)
    accuracies = [row["val_accuracy"] for row in result.history]
    assert len(accuracies) < 30
    assert len(accuracies) - 1 - int(np.argmax(accuracies)) == 1
    assert load_run(tmp_path / "e").facts["epochs"] == len(accuracies)


def test_fine_tuning_takes_the_body_and_the_heads_that_fit(finished, faces, tmp_path):
    recipe = tiny(model={"name": "seed-cnn"}, epochs=1, optimizer={"name": "sgd", "learning_rate": 1e-9})
    train(recipe, faces, tmp_path / "i", init=finished, tensorboard=False)
    run = load_run(tmp_path / "i")
    assert run.recipe.model.name == "se-resnet"
    assert run.facts["init"]["from"] == "tiny"
    assert run.facts["init"]["heads"] == ["fer2013", "ferplus"]
    start = load_run(finished).arrays
    for name, array in run.arrays.items():
        if array.ndim == 4:
            np.testing.assert_allclose(array, start[name], atol=1e-5)


def test_fine_tuning_can_change_what_no_weight_depends_on(finished, faces, tmp_path):
    recipe = tiny(epochs=1)
    train(recipe, faces, tmp_path / "i", init=finished, model_params={"dropout": 0.6}, tensorboard=False)
    run = load_run(tmp_path / "i")
    assert run.recipe.model.params == {**tiny().model.params, "dropout": 0.6}
    with pytest.raises(TrainingError, match="dropout"):
        train(recipe, faces, tmp_path / "j", init=finished, model_params={"dropout": 2}, tensorboard=False)


def test_fine_tuning_to_other_labels_starts_with_an_untrained_head_and_warns(finished, tmp_path, caplog):
    from dataclasses import replace

    from ferkit.core.taxonomy import Taxonomy

    other = load_data("cartoon:140:9", cache=False)
    other = replace(other, labels=other.labels % 3, taxonomy=Taxonomy("mine", ("a", "b", "c")), votes=None)
    recipe = tiny(heads={"label": 1.0}, epochs=1)
    train(recipe, other, tmp_path / "m", init=finished / "weights.npz", tensorboard=False)
    run = load_run(tmp_path / "m")
    assert [t.id for t in run.taxonomies] == ["mine"]
    assert run.facts["init"]["heads"] == []
    (warning,) = [record.message for record in caplog.records if record.name == "ferkit.training"]
    assert "head mine starts untrained" in warning
    assert "angry, disgust" in warning


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda f, faces, new: train(tiny(), faces, f), "holds a run already"),
        (lambda f, faces, new: train(tiny(), faces, new, resume=True), "no checkpoint"),
        (lambda f, faces, new: train(tiny(seed=6), faces, f, resume=True), "another recipe"),
        (
            lambda f, faces, new: train(tiny(), load_data("cartoon:240:4", cache=False), f, resume=True),
            "other data",
        ),
        (lambda f, faces, new: train(tiny(), faces, new, init=f / "run.json"), "no archive of ferkit"),
        (
            lambda f, faces, new: train(tiny(), load_data("cartoon:70", cache=False, size=32), new, init=f),
            r"takes faces of 48 pixels, and those of cartoon:70 have 32; .*--size 48",
        ),
        (lambda f, faces, new: load_run(new), "is no run folder"),
        (
            lambda f, faces, new: train(
                tiny(), load_data("cartoon:70", cache=False).select(np.arange(0)), new
            ),
            "no face",
        ),
    ],
)
def test_runs_that_cannot_start_are_refused_with_the_reason(finished, faces, tmp_path, arrange, message):
    with pytest.raises(Exception, match=message) as caught:
        arrange(finished, faces, tmp_path / "new")
    assert type(caught.value).__module__ == "ferkit.core.errors"
    assert not (tmp_path / "new" / "run.json").exists()


def test_a_run_does_not_resume_with_fewer_training_faces(finished, faces, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(finished, folder)
    record = json.loads((folder / "run.json").read_text())
    count = record["data"]["training"]
    record["data"]["training"] = count + 1
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=f"trained on {count + 1} faces, .* {count} now"):
        train(tiny(epochs=4), faces, folder, resume=True)


def test_a_run_killed_in_its_first_epoch_can_be_started_again(faces, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(epochs=1), faces, tmp_path / "one", callbacks=[StopAt(1)], tensorboard=False)
    assert len(train(tiny(epochs=1), faces, tmp_path / "one", tensorboard=False).history) == 1


def test_a_finished_run_that_was_resumed_and_interrupted_is_not_finished(finished, faces, tmp_path):
    shutil.copytree(finished, tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(epochs=5), faces, tmp_path / "x", resume=True, callbacks=[StopAt(4)], tensorboard=False)
    with pytest.raises(TrainingError, match="is not finished"):
        load_run(tmp_path / "x")
    with pytest.raises(TrainingError, match="cannot undo"):
        train(tiny(epochs=2), faces, tmp_path / "x", resume=True)


def test_a_finished_run_that_is_resumed_keeps_its_weights(finished, faces, tmp_path, caplog):
    shutil.copytree(finished, tmp_path / "x")
    before = load_run(finished).arrays
    result = train(tiny(epochs=4), faces, tmp_path / "x", resume=True, tensorboard=False)
    assert len(result.history) == 4
    kept = runs.load_weights(tmp_path / "x" / "weights-epoch3.npz")
    assert kept.recipe.epochs == 3
    for name, array in before.items():
        np.testing.assert_array_equal(kept.arrays[name], array)
    assert any(not np.array_equal(load_run(tmp_path / "x").arrays[name], before[name]) for name in before)
    said = [record.message for record in caplog.records if record.name == "ferkit.training"]
    assert said == [f"{tmp_path / 'x'} was finished; its weights are kept as weights-epoch3.npz"]


def test_a_head_of_other_labels_starts_untrained_though_its_id_is_the_same(finished, faces, tmp_path):
    from dataclasses import replace

    from ferkit.core.taxonomy import Taxonomy

    turned = replace(faces, taxonomy=Taxonomy("fer2013", tuple(reversed(faces.taxonomy.labels))))
    train(tiny(epochs=1), turned, tmp_path / "t", init=finished, tensorboard=False)
    assert load_run(tmp_path / "t").facts["init"]["heads"] == ["ferplus"]


def test_training_and_validation_of_a_quantity_share_a_tensorboard_tag(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(name):
        log = EventAccumulator(str(finished / "tensorboard" / name), size_guidance={"tensors": 0})
        return set(log.Reload().Tags()["tensors"])

    shared = {"epoch_loss", "epoch_accuracy", "epoch_ferplus_loss", "epoch_ferplus_accuracy"}
    assert tags("validation") == {*shared, "epoch_objective"}
    assert tags("validation") < tags("train")


class Recording(keras.callbacks.Callback):
    """Keep the logs of every epoch, and stop after one."""

    def __init__(self, stop_after):
        super().__init__()
        self.stop_after, self.seen = stop_after, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append({"epoch": epoch + 1, **logs})
        if epoch + 1 == self.stop_after:
            self.model.stop_training = True


def test_a_callback_sees_the_history_and_may_end_the_run(faces, tmp_path):
    callback = Recording(stop_after=1)
    result = train(tiny(), faces, tmp_path / "c", callbacks=[callback], tensorboard=False)
    assert callback.seen == result.history
    row = result.history[0]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "val_ferplus_accuracy", "learning_rate"} <= set(
        row
    )
    assert callback.model.network.name == "se_resnet"
    assert len(load_run(tmp_path / "c").history) == 1
    assert len(train(tiny(), faces, tmp_path / "c", resume=True, tensorboard=False).history) == 3


def test_five_lines_of_python_train_a_network(tmp_path):
    data = ferkit.load_data("cartoon:240:3")
    recipe = ferkit.load_recipe("small", ["epochs=1", "model.params={stem = 4, filters = [8], blocks = [1]}"])
    ferkit.train(recipe, data, tmp_path / "run", callbacks=[keras.callbacks.CSVLogger(tmp_path / "log.csv")])
    network = ferkit.load_run(tmp_path / "run").network()
    assert network(np.zeros((1, 48, 48, 1), np.float32))["fer2013"].shape == (1, 7)
    assert "val_accuracy" in (tmp_path / "log.csv").read_text().splitlines()[0]


def test_data_and_recipe_may_be_named(tmp_path):
    (tmp_path / "tiny.toml").write_text(dump_recipe(tiny(epochs=1)))
    train(tmp_path / "tiny.toml", "cartoon:240:3", tmp_path / "a", tensorboard=False)
    assert RunFolder(tmp_path / "a").data_source() == ("cartoon:240:3", None)
    # The size of the faces follows from the weights to start from.
    small = load_data("cartoon:70", size=32, cache=False)
    train(tiny(epochs=1), small, tmp_path / "b", tensorboard=False)
    train(tiny(epochs=1), "cartoon:70", tmp_path / "c", init=tmp_path / "b", tensorboard=False)
    assert load_run(tmp_path / "c").input_size == 32


@pytest.mark.parametrize("name", ["run.json", "history.json"])
def test_a_damaged_record_is_an_error_of_the_run(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / "d")
    (tmp_path / "d" / name).write_text("{", "utf-8")
    with pytest.raises(TrainingError, match="damaged"):
        load_run(tmp_path / "d")


def test_float16_keeps_the_scale_of_its_loss_over_a_resume(faces, tmp_path):
    recipe = tiny(epochs=2, mixed_precision="float16", optimizer={"name": "sgd", "learning_rate": 0.01})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, faces, tmp_path / "h", callbacks=[StopAt(2)], tensorboard=False)
    path = tmp_path / "h" / "checkpoint.npz"
    arrays, meta = read_archive(path)
    # The optimiser's step, rate and momenta, and beside them the scale and the steps since it last changed.
    (scale,) = [name for name, array in arrays.items() if array.ndim == 0 and array == 2.0**15]
    # One that no run begins with; it would double after 2000 steps, and halve where a gradient is not finite.
    arrays[scale] = np.full_like(arrays[scale], 2.0**10)
    write_archive(path, arrays, meta)
    assert len(train(recipe, faces, tmp_path / "h", resume=True, tensorboard=False).history) == 2
    assert read_archive(path)[0][scale] == 2.0**10


def test_ferplus_labels_and_a_ferplus_head_are_one_too_many(tmp_path):
    data = load_data("cartoon:140:3", labels="ferplus-majority", cache=False)
    with pytest.raises(TrainingError, match=r"FER\+ labels already"):
        train(tiny(), data, tmp_path / "p")


def test_a_run_with_votes_is_not_resumed_without_them(faces, tmp_path):
    from dataclasses import replace

    labels_only = {"heads": {"label": 1.0, "ferplus": 0.0}, "epochs": 1}
    train(tiny(**labels_only), faces, tmp_path / "v", tensorboard=False)
    bare = replace(faces, votes=None, fingerprint="0" * 64)
    with pytest.raises(TrainingError, match=r"started with FER\+ votes"):
        train(tiny(**labels_only), bare, tmp_path / "v", resume=True)


def test_a_ferplus_head_needs_votes(faces, tmp_path):
    from dataclasses import replace

    with pytest.raises(TrainingError, match="add --votes"):
        train(tiny(), replace(faces, votes=None), tmp_path / "v")


def test_a_damaged_weights_file_is_refused(finished, tmp_path):
    content = (finished / "weights.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello"):
        path = tmp_path / "w.npz"
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="damaged or no archive"):
            runs.load_weights(path)


def test_small_faces_come_first_and_a_resumed_run_has_the_right_size(faces, tmp_path):
    recipe = tiny(progressive={"sizes": [24], "until": [0.7]})
    whole = train(recipe, faces, tmp_path / "a")
    assert [row["side"] for row in whole.history] == [24, 24, 48]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, faces, tmp_path / "b", callbacks=[StopAt(2)])
    rest = train(recipe, faces, tmp_path / "b", resume=True)
    for expected, got in zip(numbers(whole.history), numbers(rest.history), strict=True):
        assert got == pytest.approx(expected, abs=1e-6)


def test_small_faces_share_the_weights_of_the_network():
    recipe = tiny(augment="none", progressive={"sizes": [24], "until": [0.5]})
    params = {**recipe.model.params, "drop_path": 0.0, "dropout": 0.0}
    network = build_model(recipe.model.name, {"fer2013": 7}, **params)
    model = TrainingModel(network, recipe, {"fer2013": 1.0})
    model.compile(optimizer="sgd")
    before = [id(v) for v in model.trainable_variables]
    batch = {
        "face": ops.convert_to_tensor(np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)),
        "fer2013": ops.eye(7)[:3],
    }
    full = ops.convert_to_numpy(model(batch, training=True)["logits_fer2013"])
    model.set_side(24)
    assert [id(v) for v in model.trainable_variables] == before
    first = ops.convert_to_numpy(model(batch, training=True)["logits_fer2013"])
    assert np.abs(first - full).max() > 1e-3
    dense = network.get_layer("logits_fer2013")
    dense.bias.assign_add(ops.ones_like(dense.bias))
    second = ops.convert_to_numpy(model(batch, training=True)["logits_fer2013"])
    np.testing.assert_allclose(second, first + 1, atol=1e-4)
    model.set_side(48)
    again = ops.convert_to_numpy(model(batch, training=True)["logits_fer2013"])
    np.testing.assert_allclose(again, full + 1, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"progressive": {"sizes": [48], "until": [0.5]}}, "below the faces' 48"),
        (
            {
                "progressive": {"sizes": [32], "until": [0.5]},
                "model": {"name": "se-resnet", "params": {"view_size": 40}},
            },
            "view_size",
        ),
        # 44, 22, 11: half of 11 is 6 to a convolution and 5 to a pooling.
        (
            {
                "progressive": {"sizes": [32, 44], "until": [0.3, 0.5]},
                "model": {"name": "se-resnet", "params": {"filters": [4, 4, 4], "blocks": [1, 1, 1]}},
            },
            "faces of 44 pixels",
        ),
        (
            {"progressive": {"sizes": [32], "until": [0.5]}, "model": {"name": "seed-cnn"}},
            "faces of 32 pixels",
        ),
    ],
)
def test_small_faces_that_do_not_fit_are_refused(faces, tmp_path, changes, message):
    with pytest.raises(TrainingError, match=message):
        train(tiny(**changes), faces, tmp_path / "r")
    assert not (tmp_path / "r").exists()
