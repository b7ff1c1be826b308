"""`ferkit ensemble` writes a file that votes, fits what it is told to fit, and tells what that is worth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ferkit.classifier import FaceClassifier
from ferkit.cli import run
from ferkit.data import faces_digest, load_dataset
from ferkit.evaluation.calibration import temper
from ferkit.modelfile import read_model
from ferkit.taxonomy import FER2013, FERPLUS
from modelzoo import write_tiny_model

DATA = "cartoon:300"


@pytest.fixture
def models(tmp_path):
    return [str(write_tiny_model(tmp_path / f"m{seed}.onnx", seed=seed)) for seed in range(3)]


@pytest.fixture
def ask(capsys):
    """Run `ferkit ensemble`; return its status and what it printed."""

    def run_it(*arguments):
        status = run(["ensemble", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run_it


@pytest.fixture
def faces():
    return load_dataset(DATA).of_split("PublicTest")


def plain_csv(folder):
    """Write faces without votes, so that only fer2013 can be fitted."""
    source = load_dataset(DATA)
    rows = ["emotion,pixels,Usage"]
    for image, label, split in zip(source.images, source.labels, source.split, strict=True):
        usage = ("Training", "PublicTest", "PrivateTest")[split]
        rows.append(f"{label},{' '.join(map(str, image.ravel()))},{usage}")
    (folder / "plain.csv").write_text("\n".join(rows))
    return folder / "plain.csv"


def test_without_data_the_file_is_the_plain_mean_and_its_size_is_told(ask, models, tmp_path, faces):
    out = tmp_path / "e.onnx"
    done = ask(*models, "-o", out)
    assert done.status == 0
    assert f"wrote {out}: 3 of 3 members" in done.out
    assert f"{out.stat().st_size / 2**20:.2f} MiB" in done.out
    found = FaceClassifier(out).predict(faces.images)["ferplus"]
    members = [FaceClassifier(model).predict(faces.images)["ferplus"] for model in models]
    np.testing.assert_allclose(found, np.mean(members, axis=0), rtol=0, atol=1e-6)
    assert read_model(out)[1].name == "e"


def test_weights_are_those_that_were_typed(ask, models, tmp_path):
    assert ask(*models, "-o", tmp_path / "e.onnx", "--weights", "1,2,1", "--name", "trio").status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    assert info.name == "trio"
    assert [m["weight"] for m in info.members] == [0.25, 0.5, 0.25]


def test_data_give_the_vote_a_temperature_of_its_own(ask, models, tmp_path, faces):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--data", DATA)
    assert done.status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    temperatures = {head.id: head.temperature for head in info.taxonomies}
    assert temperatures["fer2013"] != 1
    mean = np.mean([FaceClassifier(m).predict(faces.images)["fer2013"] for m in models], axis=0)
    np.testing.assert_allclose(
        FaceClassifier(tmp_path / "e.onnx").predict(faces.images)["fer2013"],
        temper(mean, temperatures["fer2013"]),
        rtol=0,
        atol=1e-6,
    )
    assert info.data["fitted_on"] == "PublicTest"
    assert info.data["faces"] == faces_digest(load_dataset(DATA)), "known again with and without votes"


def test_fitting_reports_figures_out_of_fold_beside_the_flattering_ones(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA, "--json", tmp_path / "e.json")
    assert done.status == 0
    for line in ("equal weights, temperature out of fold", "out of fold", "in sample (not to be quoted)"):
        assert line in done.out
    first = json.loads((tmp_path / "e.json").read_text())["votes"][0]
    info = read_model(tmp_path / "e.onnx")[1]
    # The file's metadata quote the figure from outside the fit.
    assert info.metrics[0]["accuracy"] == first["out_of_fold"]["accuracy"]
    assert info.metrics[0]["selection_split"] is True
    assert info.metrics[0]["protocol"] == "single"
    weights = {m["sha256"]: m["weights"]["fer2013"] for m in info.members}
    for member in first["members"]:
        assert weights.get(member["sha256"], 0.0) == pytest.approx(member["weight"])
    assert sum(member["weight"] for member in first["members"]) == pytest.approx(1)


def test_the_ensemble_is_measured_by_evaluate_as_by_its_own_fit(ask, models, tmp_path, capsys):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA, "--json", tmp_path / "e.json")
    assert done.status == 0
    vote = json.loads((tmp_path / "e.json").read_text())["votes"][0]
    arguments = ["evaluate", str(tmp_path / "e.onnx"), "--data", DATA, "--json", str(tmp_path / "a.json")]
    assert run(arguments) == 0
    capsys.readouterr()
    scores = json.loads((tmp_path / "a.json").read_text())["protocols"][0]["scores"][0]
    assert scores["accuracy"] == pytest.approx(vote["in_sample"]["accuracy"])
    assert scores["nll"] == pytest.approx(vote["in_sample"]["nll"], abs=1e-5)


def test_a_head_without_labels_in_the_data_takes_the_fitted_weights(ask, models, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", plain_csv(tmp_path))
    assert done.status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    for member in info.members:
        assert member["weights"]["ferplus"] == pytest.approx(member["weights"]["fer2013"])
    assert info.head("ferplus").temperature == 1
    assert "ferplus: no labels for it" in done.err
    assert "its weights are those of fer2013" in done.err


def test_a_member_without_the_labelled_head_is_not_asked(ask, models, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    odd = write_tiny_model(tmp_path / "odd.onnx", (FERPLUS,), seed=5)
    done = ask(models[0], odd, "-o", tmp_path / "e.onnx", "--fit", "--data", plain_csv(tmp_path))
    assert done.status == 0, done.err
    assert read_model(tmp_path / "e.onnx")[1].members[0]["weights"]["fer2013"] == 1


def test_progress_goes_to_stderr(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--data", DATA)
    assert "member 3 of 3" in done.err
    assert "asking" not in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,2"], "3 models, 2 weights"),
        (["--weights", "1,x,2"], "not a list of numbers"),
        (["--fit"], "no use for --fit"),
        (["--split", "PublicTest"], "no use for --split"),
        (["--drop-flat", "--threads", "2"], "no use for --drop-flat, --threads"),
        (["--fit", "--weights", "1,1,1", "--data", DATA], "leave out --weights"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(ask, models, tmp_path, options, message):
    done = ask(*models, "-o", tmp_path / "e.onnx", *options)
    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "e.onnx").exists()


def test_one_model_is_no_ensemble(ask, models, tmp_path):
    done = ask(models[0], "-o", tmp_path / "e.onnx")
    assert done.status == 2
    assert "two or more" in done.err


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("large", "one size"),
        ("absent", "no model"),
        ("damaged", "damaged"),
        ("foreign", "without ferkit's metadata"),
    ],
)
def test_members_that_cannot_vote_are_one_line_and_nothing_is_written(ask, models, tmp_path, second, message):
    from modelzoo import graph_bytes

    path = tmp_path / f"{second}.onnx"
    if second == "large":
        write_tiny_model(path, (FER2013,), size=64)
    elif second == "damaged":
        content = bytearray(write_tiny_model(path).read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif second == "foreign":
        path.write_bytes(graph_bytes())
    done = ask(models[0], path, "-o", tmp_path / "e.onnx")
    assert (done.status, done.out) == (1, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "e.onnx").exists()


def test_an_ensemble_that_was_written_among_its_members_is_not_taken_in_as_one(ask, models, tmp_path):
    vote = tmp_path / "vote.onnx"
    assert ask(*models, "-o", vote).status == 0
    before = vote.read_bytes()
    done = ask(*sorted(tmp_path.glob("*.onnx")), "-o", vote, "--fit", "--data", DATA)
    assert done.status == 1
    assert done.err == (
        f"error: {vote} is the member {vote}, which would be overwritten; write to another file, or leave "
        "this one out of the members\n"
    )
    assert vote.read_bytes() == before


@pytest.mark.parametrize("option", ["--out", "--json"])
@pytest.mark.parametrize("name", ["the same", "another way", "a link", "a hard link"])
def test_no_member_is_overwritten_by_whatever_name(ask, models, tmp_path, option, name):
    member = tmp_path / "m1.onnx"
    before = member.read_bytes()
    path = {"the same": member, "another way": tmp_path / "below" / ".." / "m1.onnx"}.get(name)
    (tmp_path / "below").mkdir()
    if path is None:
        path = tmp_path / "other.onnx"
        if name == "a link":
            path.symlink_to(member)
        else:
            path.hardlink_to(member)
    options = ["--out", path] if option == "--out" else ["-o", tmp_path / "e.onnx", "--json", path]
    done = ask(*models, *options, "--data", DATA)
    assert done.status == 1
    assert f"is the member {models[1]}" in done.err
    assert member.read_bytes() == before
    assert path.samefile(member)
