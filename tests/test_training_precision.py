"""Precision by processor, oneDNN, and Keras' settings: chosen, recorded, and kept when a run is resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.cli import checks, run
from ferkit.data import load_data
from ferkit.training import precision, trainer
from ferkit.training.precision import choose_precision
from tinyruns import StopAt, tiny

XEON, EPYC = {"flags": "avx2 avx512f amx_bf16"}, {"flags": "sse4_2 avx2"}


@pytest.fixture
def processor(monkeypatch):
    """Pretend that the processor has other entries in ``/proc/cpuinfo``."""
    return lambda entries: monkeypatch.setattr(precision, "_cpuinfo", lambda: entries)


@pytest.mark.parametrize(
    ("entries", "wanted", "accelerator", "expected"),
    [
        (XEON, "auto", None, "bfloat16"),
        ({"flags": "avx512f avx512_bf16"}, "auto", None, "bfloat16"),
        ({"flags": "avx512f"}, "auto", None, "off"),
        (EPYC, "auto", None, "off"),
        ({}, "auto", None, "off"),
        (EPYC, "bfloat16", None, "bfloat16"),
        (XEON, "off", None, "off"),
        (EPYC, "auto", ("gpu", 9.0), "bfloat16"),
        (EPYC, "auto", ("gpu", 7.5), "float16"),
        (XEON, "auto", ("gpu", 6.1), "off"),
        (EPYC, "auto", ("tpu", 0.0), "bfloat16"),
    ],
)
def test_auto_is_what_the_hardware_computes_fastest(processor, entries, wanted, accelerator, expected):
    processor(entries)
    assert choose_precision(wanted, accelerator)[0] == expected


@pytest.mark.parametrize(
    ("entries", "set_by_user", "imported", "expected"),
    [
        (EPYC, None, False, "1"),
        (EPYC, "0", False, "0"),
        (EPYC, None, True, None),  # TensorFlow has read the variable already
        (XEON, None, False, None),
        ({}, None, False, None),
    ],
)
def test_onednn_is_switched_on_where_it_pays(
    processor, monkeypatch, entries, set_by_user, imported, expected
):
    processor(entries)
    monkeypatch.delenv(precision.ONEDNN, raising=False)
    if set_by_user is not None:
        monkeypatch.setenv(precision.ONEDNN, set_by_user)
    modules = dict.fromkeys(["tensorflow"] if imported else [])
    monkeypatch.setattr(sys, "modules", modules)
    precision.use_onednn()
    assert os.environ.get(precision.ONEDNN) == expected


def test_doctor_says_what_auto_is_here(processor):
    processor(EPYC)
    detail = checks.check_training(full=False).detail
    assert "auto is off on the CPU" in detail
    assert "oneDNN is switched on" in detail


@pytest.mark.slow
def test_a_resumed_run_keeps_the_precision_that_it_was_started_with(processor, monkeypatch, tmp_path, capfd):
    faces = load_data("cartoon:240:3", cache=False)
    recipe = tiny(mixed_precision="auto", epochs=2)
    processor(XEON)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(recipe, faces, tmp_path / "r", callbacks=[StopAt(2)], tensorboard=False)
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["precision"]["mixed_precision"] == "bfloat16"
    assert "amx_bf16" in facts["precision"]["reason"]
    assert facts["precision"]["onednn"] in ("on", "off", "default")
    processor(EPYC)
    resumed = ["train", "--resume", str(tmp_path / "r"), "--data", "cartoon:240:3", "--no-tensorboard"]
    assert run(resumed) == 0
    assert "mixed precision: bfloat16 (as the run was started)" in capfd.readouterr().err
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["precision"]["mixed_precision"] == "bfloat16"


@pytest.mark.parametrize("floatx", ["float16", "float64"])
def test_a_users_keras_json_does_not_change_ferkits_networks(tmp_path, floatx):
    settings = {"floatx": floatx, "image_data_format": "channels_first", "backend": "tensorflow"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    code = (
        "import ferkit\n"
        "network = ferkit.load_run  # a public name that needs no Keras\n"
        "from ferkit.training.runs import load_training_weights\n"
        "network = load_training_weights('ferkit-small').network()\n"
        "import keras\n"
        "print(keras.config.floatx(), keras.config.image_data_format(), network.output['fer2013'].dtype,\n"
        "      {v.dtype for v in network.weights}, network.get_layer('pool_fer2013').data_format)"
    )
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["float32", "channels_last", "float32", "{'float32'}", "channels_last"]


def test_a_keras_json_that_keras_refuses_is_one_line(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"floatx": "float8", "backend": "tensorflow"}))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    command = [sys.executable, "-m", "ferkit", "train", "-r", "small", "--data", "cartoon:70"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert str(tmp_path / "keras.json") in line
    assert "float8" in line
