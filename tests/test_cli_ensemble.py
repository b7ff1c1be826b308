"""`ferkit ensemble` joins models, fits what was requested, and reports figures out of fold."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from ferkit.cli import run
from ferkit.core.classifier import FaceClassifier
from ferkit.core.modelfile import Metric, read_model, write_model
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import faces_digest, load_data
from ferkit.data.ferplus import majority_targets
from ferkit.evaluation.calibration import temper
from ferkit.evaluation.evaluate import evaluate_split
from ferkit.evaluation.join import joined
from ferkit.evaluation.model import metric_rows
from ferkit.export.card import render_card
from ferkit.export.join import with_basic, with_quality
from modelzoo import write_tiny_model

DATA = "cartoon:300"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Three small models fitted to the drawn faces, so that an ensemble has a best temperature."""
    folder = tmp_path_factory.mktemp("taught")
    return [write_taught_model(folder / f"m{seed}.onnx", seed) for seed in range(3)]


def write_taught_model(path, seed):
    """Fit the heads of a small model to the faces that an ensemble is fitted to, by least squares."""
    shown = load_data(DATA).of_split("PublicTest")
    plain = FaceClassifier(write_tiny_model(path, seed=seed))
    content, info = read_model(path)
    graph = onnx.load_from_string(content)
    for head, (labels, keep) in {
        "fer2013": (shown.labels, np.ones(len(shown), bool)),
        "ferplus": majority_targets(shown.votes),
    }.items():
        # A map per label, whose mean is the label's logit: a matrix mixes them to better logits.
        logits = plain.cams(shown.images[keep], head).mean(axis=(2, 3))
        wanted = 3 * np.eye(logits.shape[1])[labels[keep]]
        mixed = np.linalg.lstsq(logits, wanted, rcond=None)[0].T
        tensor = next(entry for entry in graph.graph.initializer if entry.name == f"w_{head}")
        weights = np.tensordot(mixed, onnx.numpy_helper.to_array(tensor), axes=1).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    write_model(graph.SerializeToString(), info, path)
    return path


@pytest.fixture
def models(taught, tmp_path):
    return [str(shutil.copy(path, tmp_path)) for path in taught]


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
    return load_data(DATA).of_split("PublicTest")


def plain_csv(folder):
    """Write faces without votes, so that only fer2013 can be fitted."""
    source = load_data(DATA)
    rows = ["emotion,pixels,Usage"]
    for image, label, split in zip(source.images, source.labels, source.split, strict=True):
        usage = ("Training", "PublicTest", "PrivateTest")[split]
        rows.append(f"{label},{' '.join(map(str, image.ravel()))},{usage}")
    (folder / "plain.csv").write_text("\n".join(rows))
    return folder / "plain.csv"


def test_without_data_the_file_is_the_plain_mean(ask, models, tmp_path, faces):
    out = tmp_path / "e.onnx"
    done = ask(*models, "-o", out)
    assert done.status == 0
    assert f"wrote {out}: 3 networks from 3 models" in done.out
    assert f"{out.stat().st_size / 2**20:.2f} MiB" in done.out
    found = FaceClassifier(out).predict(faces.images)["ferplus"]
    members = [FaceClassifier(model).predict(faces.images)["ferplus"] for model in models]
    np.testing.assert_allclose(found, np.mean(members, axis=0), rtol=0, atol=1e-6)
    assert read_model(out)[1].name == "e"


def test_weights_are_those_that_were_typed(ask, models, tmp_path):
    assert ask(*models, "-o", tmp_path / "e.onnx", "--weights", "1,2,1", "--name", "trio").status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    assert info.name == "trio"
    assert [m.weights["fer2013"] for m in info.members] == [0.25, 0.5, 0.25]


def test_data_give_the_ensemble_a_temperature(ask, models, tmp_path, faces):
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
    assert info.training.fitted_on == "PublicTest"
    assert info.training.faces == faces_digest(load_data(DATA)), "known with votes and without"


def test_fitting_reports_figures_out_of_fold_and_in_sample(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA, "--json", tmp_path / "e.json")
    assert done.status == 0
    for line in ("equal weights, temperature out of fold", "out of fold", "in sample (not to be quoted)"):
        assert line in done.out
    content = json.loads((tmp_path / "e.json").read_text())
    first = content["fits"][0]
    info = read_model(tmp_path / "e.onnx")[1]
    # The file's metadata quote the figure from outside the fit.
    assert info.metrics[0].accuracy == pytest.approx(first["out_of_fold"]["accuracy"], abs=1e-6)
    assert (info.metrics[0].split, info.metrics[0].tta) == ("PublicTest", "none")
    weights = {m.sha256: m.weights["fer2013"] for m in info.members}
    assert first["members"] == [0, 1, 2]
    for model, weight in zip(content["models"], first["weighting"]["weights"], strict=True):
        assert weights.get(model["sha256"], 0.0) == pytest.approx(weight)
    assert sum(first["weighting"]["weights"]) == pytest.approx(1)


def test_the_ensemble_is_measured_by_evaluate_as_by_its_own_fit(ask, models, tmp_path, capsys):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA, "--json", tmp_path / "e.json")
    assert done.status == 0
    fit = json.loads((tmp_path / "e.json").read_text())["fits"][0]
    arguments = ["evaluate", str(tmp_path / "e.onnx"), "--data", DATA, "--json", str(tmp_path / "a.json")]
    assert run(arguments) == 0
    capsys.readouterr()
    scores = json.loads((tmp_path / "a.json").read_text())["tta_modes"][0]["scores"][0]
    assert scores["accuracy"] == pytest.approx(fit["in_sample"]["accuracy"])
    assert scores["nll"] == pytest.approx(fit["in_sample"]["nll"], abs=1e-5)


def test_a_head_without_labels_in_the_data_takes_the_fitted_weights(ask, models, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", plain_csv(tmp_path))
    assert done.status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    for member in info.members:
        assert member.weights["ferplus"] == pytest.approx(member.weights["fer2013"])
    assert info.head("ferplus").temperature == 1
    assert "ferplus: no labels for it" in done.err
    assert "its weights are those of fer2013" in done.err


def test_a_member_without_the_labelled_head_does_not_predict(ask, models, tmp_path, monkeypatch):
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    odd = write_tiny_model(tmp_path / "odd.onnx", (FERPLUS,), seed=5)
    done = ask(models[0], odd, "-o", tmp_path / "e.onnx", "--fit", "--data", plain_csv(tmp_path))
    assert done.status == 0, done.err
    assert read_model(tmp_path / "e.onnx")[1].members[0].weights["fer2013"] == 1


def test_progress_goes_to_stderr(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--data", DATA)
    assert "member 3 of 3" in done.err
    assert "predicting" not in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,2"], "3 models, 2 weights"),
        (["--weights", "1,x,2"], "not a list of numbers"),
        (["--fit"], "required with --fit"),
        (["--split", "PublicTest"], "required with --split"),
        (["--drop-flat", "--threads", "2"], "required with --drop-flat, --threads"),
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
def test_members_that_do_not_fit_are_one_line_and_nothing_is_written(ask, models, tmp_path, second, message):
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


def test_an_ensemble_among_its_members_is_not_overwritten(ask, models, tmp_path):
    path = tmp_path / "pair.onnx"
    assert ask(*models, "-o", path).status == 0
    before = path.read_bytes()
    done = ask(*sorted(tmp_path.glob("*.onnx")), "-o", path, "--fit", "--data", DATA)
    assert done.status == 1
    assert f"{path} is the member {path}" in done.err
    assert path.read_bytes() == before


def test_an_ensemble_is_replaced_by_its_members_unless_it_was_fitted(ask, models, tmp_path):
    assert ask(*models[:2], "-o", tmp_path / "plain.onnx").status == 0
    done = ask(tmp_path / "plain.onnx", models[2], "-o", tmp_path / "e.onnx")
    assert "3 networks from 2 models" in done.out
    info = read_model(tmp_path / "e.onnx")[1]
    assert [m.weights["fer2013"] for m in info.members] == [0.25, 0.25, 0.5]
    assert ask(*models[:2], "-o", tmp_path / "fitted.onnx", "--data", DATA).status == 0
    refused = ask(tmp_path / "fitted.onnx", models[2], "-o", tmp_path / "f.onnx")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "name its members instead: tiny, tiny" in refused.err
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("option", ["--out", "--card", "--json"])
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
    options = ["--out", path] if option == "--out" else ["-o", tmp_path / "e.onnx", option, path]
    done = ask(*models, *options, "--data", DATA)
    assert done.status == 1
    assert f"is the member {models[1]}" in done.err
    assert member.read_bytes() == before
    assert path.samefile(member)


def test_the_file_has_its_figures_in_the_rows_of_an_exported_one(ask, models, tmp_path, faces):
    assert ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA).status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    exported = metric_rows(
        evaluate_split(
            lambda crops, tta: FaceClassifier(tmp_path / "e.onnx").predict(crops, tta=tta),
            load_data(DATA),
            heads={head.id: head.taxonomy for head in info.taxonomies},
            drop_leaks=True,
        )
    )

    def key(row: Metric) -> tuple[object, ...]:
        return row.split, row.tta, row.labels, row.without_leaks, row.n, tuple(row.recall)

    assert list(map(key, info.metrics)) == list(map(key, exported))
    for row, as_exported in zip(info.metrics, exported, strict=True):
        assert row.nll == pytest.approx(as_exported.nll, abs=2e-6), "that of the file"
        assert row.ece == pytest.approx(as_exported.ece, abs=2e-6), "that of the file"


def test_the_rows_hold_the_figures_of_fits_that_had_not_seen_the_faces(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", DATA, "--json", tmp_path / "e.json")
    assert done.status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    for fit in json.loads((tmp_path / "e.json").read_text())["fits"]:
        (row,) = (r for r in info.metrics if r.labels == fit["labels"] and not r.without_leaks)
        unseen = fit["out_of_fold"]
        assert row.accuracy == pytest.approx(unseen["accuracy"], abs=1e-6)
        assert row.nll_out_of_fold == pytest.approx(unseen["nll"], abs=1e-6)
        assert row.ece_out_of_fold == pytest.approx(unseen["ece"], abs=1e-6)
        assert row.nll == pytest.approx(fit["in_sample"]["nll"], abs=1e-6)
        assert row.fit == "weights and temperature"


def test_the_file_records_what_was_fitted_and_on_what(ask, models, tmp_path):
    assert ask(*models, "-o", tmp_path / "e.onnx", "--data", DATA).status == 0
    assert ask(*models, "-o", tmp_path / "f.onnx", "--data", DATA, "--fit", "--split", "Training").status == 0
    tempered, fitted = (read_model(tmp_path / name)[1].training for name in ("e.onnx", "f.onnx"))
    assert tempered.fitted == {"fer2013": "temperature", "ferplus": "temperature", "basic": "join"}
    assert tempered.fitted_on == "PublicTest"
    both = dict.fromkeys(("fer2013", "ferplus"), "weights and temperature")
    assert fitted.fitted == {**both, "basic": "join"}
    assert fitted.fitted_on == "Training"


def test_nothing_is_fitted_to_few_labelled_faces_and_the_file_is_written(ask, models, tmp_path):
    few = "cartoon:60"
    assert len(load_data(few).of_split("PublicTest")) < 13
    done = ask(*models, "-o", tmp_path / "e.onnx", "--fit", "--data", few, "--json", tmp_path / "e.json")
    assert done.status == 0, done.err
    assert "too few to fit anything (13 are needed), so the temperature is 1" in done.err
    assert "ensemble, nothing fitted" in done.out
    info = read_model(tmp_path / "e.onnx")[1]
    assert [head.temperature for head in info.taxonomies] == [1, 1]
    assert [m.weights["fer2013"] for m in info.members] == pytest.approx([1 / 3] * 3)
    assert info.training.fitted_on == ""
    assert info.metrics
    for row in info.metrics:
        assert (row.ece_out_of_fold, row.nll_out_of_fold, row.fit) == (None, None, "nothing")
    assert json.loads((tmp_path / "e.json").read_text())["fits"][0]["out_of_fold"] is None


def test_the_default_output_is_the_first_models_or_the_one_that_is_named(ask, models, tmp_path):
    plus = write_tiny_model(tmp_path / "plus.onnx", (FERPLUS, FER2013), seed=7)
    assert ask(plus, *models, "-o", tmp_path / "a.onnx", "--weights", "0,1,1,1").status == 0
    first = read_model(tmp_path / "a.onnx")[1]
    assert first.default_taxonomy == "ferplus", "also where the first has no weight and is left out"
    assert len(first.members) == 3
    assert ask(plus, *models, "-o", tmp_path / "b.onnx", "--taxonomy", "fer2013").status == 0
    assert read_model(tmp_path / "b.onnx")[1].default_taxonomy == "fer2013"


def test_an_output_that_no_member_has_is_refused_before_members_predict(ask, models, tmp_path):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--taxonomy", "moods", "--data", DATA)
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: no member has taxonomy 'moods'; they have fer2013, ferplus\n"


def test_the_card_has_the_members_what_was_fitted_and_the_figures(ask, models, tmp_path):
    card, out = tmp_path / "e.md", tmp_path / "e.onnx"
    done = ask(*models, "-o", out, "--fit", "--data", DATA, "--card", card)
    assert done.status == 0
    assert f"{card}: the model card" in done.out
    text, info = card.read_text("utf-8"), read_model(out)[1]
    assert text == render_card(info, out.stat().st_size)
    for number, member in enumerate(info.members, 1):
        weights = " | ".join(f"{member.weights[t]:.3f}" for t in ("fer2013", "ferplus"))
        assert f"| {number} | tiny 1 | test | 0 | {weights} | `{member.sha256[:16]}` |" in text
    assert "- fer2013: weights and temperature fitted on PublicTest of cartoon:300, fingerprint" in text
    row = info.metrics[0]
    assert f"| {100 * row.accuracy:.2f} |" in text
    assert f"| {row.ece:.4f} | {row.ece_out_of_fold:.4f} |" in text
    assert (
        "Accuracy, macro F1 and recall are those of ensembles whose weights were fitted to the other" in text
    )


def test_a_card_without_data_says_that_nothing_was_fitted_or_measured(ask, models, tmp_path):
    assert ask(*models, "-o", tmp_path / "e.onnx", "--card", tmp_path / "e.md").status == 0
    text = (tmp_path / "e.md").read_text("utf-8")
    assert "- fer2013, ferplus: nothing was fitted to its labels" in text
    assert "Nothing was measured." in text
    assert "Recall by class" not in text


def test_basic_joins_the_heads_of_the_ensemble_if_there_are_labels_and_votes(ask, models, tmp_path, faces):
    done = ask(*models, "-o", tmp_path / "e.onnx", "--data", DATA, "--notes", "For trials.")
    assert done.status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    assert info.notes == "For trials."
    found = FaceClassifier(tmp_path / "e.onnx").predict(faces.images)
    assert info.default_taxonomy == "basic"
    assert "not calibrated" not in done.err
    np.testing.assert_allclose(found["basic"], joined(info.head("basic"), found), atol=1e-5)
    rows = [row for row in info.metrics if row.labels.startswith("basic")]
    assert {row.labels for row in rows} == {"basic", "basic majority"}
    assert {row.fit for row in rows} == {"join"}


def test_without_votes_basic_is_the_mean_of_the_members(ask, models, tmp_path, faces):
    named = []
    for k, model in enumerate(models):
        content, info = read_model(model)
        given = FaceClassifier(model).predict(faces.images)
        content, info = with_basic(content, info, given, load_data(DATA).of_split("PublicTest"), "PublicTest")
        named.append(tmp_path / f"basic{k}.onnx")
        write_model(content, info.model_copy(update={"default_taxonomy": "basic"}), named[-1])
    assert ask(*named, "-o", tmp_path / "e.onnx").status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    assert info.default_taxonomy == "basic"
    assert info.head("basic").join is None
    assert sum(info.head("basic").prior) == pytest.approx(1, abs=1e-5)
    mean = np.mean([FaceClassifier(m).predict(faces.images)["basic"] for m in named], axis=0)
    found = FaceClassifier(tmp_path / "e.onnx").predict(faces.images)["basic"]
    np.testing.assert_allclose(found, mean, atol=1e-6)


def test_an_ensemble_has_temperatures_for_poor_faces_as_an_exported_network(ask, models, tmp_path):
    data = "cartoon:900"
    assert ask(*models, "-o", tmp_path / "e.onnx", "--data", data).status == 0
    info = read_model(tmp_path / "e.onnx")[1]
    assert any(head.quality for head in info.taxonomies)
    predict = FaceClassifier(tmp_path / "e.onnx").predict
    assert info == with_quality(info, predict, load_data(data).of_split("PublicTest"))
