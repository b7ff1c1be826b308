"""A report has the same figures as text, JSON, pictures and rows; the table of results is kept by key."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.cells import cell_len

import ferkit
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import DataError, OutputError
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import load_data
from ferkit.evaluation.evaluate import Evaluation, TtaScores, measure
from ferkit.evaluation.metrics import per_class
from ferkit.evaluation.model import ModelFacts
from ferkit.evaluation.plots import draw_confusion, plot_reliability
from ferkit.evaluation.report import Report
from ferkit.evaluation.results import COLUMNS, read_results, rows_of, update_results
from ferkit.evaluation.text import class_table, confusion_table
from ferkit.training.history import plot_curves
from modelzoo import write_tiny_model

FACTS = ModelFacts(
    name="small",
    version="2",
    kind="onnx",
    architecture="se-resnet",
    parameters=930_000,
    mmac=70.5,
    size_bytes=2 << 20,
    sha256="ab" * 32,
    members=1,
    seeds=(1, 2),
    epochs=80,
    hours=1.255,
)


def _scores(taxonomy, name, n=100):
    random = np.random.default_rng(len(name))
    probabilities = random.dirichlet(np.ones(len(taxonomy)), n)
    # The last class never occurs and is never predicted: its scores are undefined.
    probabilities[:, -1] = 0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return measure(probabilities, random.integers(0, len(taxonomy) - 1, n), taxonomy, name)


@pytest.fixture
def report():
    scores = (
        _scores(FER2013, "fer2013"),
        _scores(FERPLUS, "ferplus majority"),
        _scores(FERPLUS, "ferplus argmax"),
    )
    tta_modes = tuple(TtaScores(tta, scores, (_scores(FER2013, "fer2013", 90),)) for tta in ("none", "flip"))
    evaluation = Evaluation("fer2013.csv", "cd" * 32, "PublicTest", 100, 10, tta_modes)
    return Report(FACTS, evaluation, "2026-01-02", "0.1.0")


def test_the_text_has_model_split_tta_interval_and_every_class(report):
    text = str(report)
    scores = report.evaluation.tta_modes[0].scores[0]
    low, high = scores.interval
    assert "small 2, se-resnet, 930,000 parameters, 70.5 MMAC, 2.00 MiB" in text
    assert "PublicTest (selection split)" in text
    assert f"{100 * scores.accuracy:.2f} {100 * low:.2f}-{100 * high:.2f}" in " ".join(text.split())
    assert all(label in text for label in (*FER2013.labels, *FERPLUS.labels))
    assert "without the 10 faces" in text


def test_another_split_is_not_labelled_as_the_selection_split(report):
    other = replace(report, evaluation=replace(report.evaluation, split="PrivateTest"))
    assert "selection" not in str(other)
    assert other.to_dict()["data"]["selection_split"] is False
    assert "Not a test result" not in str(other)


def test_a_split_that_the_model_was_fitted_on_is_no_test(report):
    facts = replace(FACTS, fitted_on=("PrivateTest",))
    fitted = replace(report, model=facts, evaluation=replace(report.evaluation, split="PrivateTest"))
    assert "Not a test result: the model was selected or fitted on this split" in str(fitted)


@pytest.mark.parametrize("split", ["Training", "PublicTest"])
@pytest.mark.parametrize(("known", "said"), [(True, True), (False, False)])
def test_faces_that_the_model_was_trained_on_are_no_test(report, split, known, said):
    facts = replace(FACTS, trained_on=("Training", "PublicTest"))
    here = replace(report, model=facts, evaluation=replace(report.evaluation, split=split), known_data=known)
    assert ("Not a test result: the model was trained on these faces" in str(here)) is said


def test_leaks_are_reported_with_the_split_of_their_duplicates(report):
    changed = replace(report, evaluation=replace(report.evaluation, train_splits=("PrivateTest",)))
    assert "10 faces of this split that have a duplicate in PrivateTest" in " ".join(str(changed).split())


def test_a_split_that_the_data_name_is_the_selection_split_whoever_measures(report):
    """FER2013 as pictures, or cleaned, has other digests: its PublicTest is no test set for that."""
    cleaned = replace(report, known_data=False, split_named=True)
    assert "PublicTest (selection split), 100 faces" in str(cleaned)
    assert cleaned.to_dict()["data"]["selection_split"] is True


def test_a_split_that_was_held_out_of_unknown_data_is_no_selection_split(report):
    model = replace(FACTS, fitted_on=("PublicTest",))
    foreign = replace(report, model=model, known_data=False, split_named=False)
    text = str(foreign)
    assert "fer2013.csv, PublicTest, 100 faces" in text
    assert "selection" not in text
    assert "Not a test result" not in text
    assert foreign.to_dict()["data"]["selection_split"] is False


@pytest.mark.parametrize(("known", "said"), [(True, True), (False, False)])
def test_all_faces_are_no_test_of_a_model_that_was_trained_on_them(report, known, said):
    everything = replace(
        report,
        model=replace(FACTS, data=("cd" * 32,)),
        evaluation=replace(report.evaluation, split="all"),
        known_data=known,
    )
    assert ("Not a test result: the model was trained and selected on these data" in str(everything)) is said


def test_undefined_scores_are_a_dash_in_text_and_null_in_json(report):
    assert "neutral       0            -         -     -" in str(report)
    (last,) = report.to_dict()["tta_modes"][0]["scores"][0]["classes"][-1:]
    assert last == {"label": "neutral", "support": 0, "precision": None, "recall": None, "f1": None}


def test_the_json_has_every_tta_and_label_set_unrounded(report):
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [p["tta"] for p in content["tta_modes"]] == ["none", "flip"]
    found = content["tta_modes"][1]["scores"][2]
    expected = report.evaluation.tta_modes[1].scores[2]
    assert (found["labels"], found["accuracy"], found["ece"]) == (
        "ferplus argmax",
        expected.accuracy,
        expected.ece,
    )
    assert np.array(found["confusion"]).sum() == 100
    assert content["model"]["sha256"] == "ab" * 32


def test_a_folder_gets_text_json_and_pictures_per_label_set_and_tta(report, tmp_path):
    scores = report.evaluation.tta_modes[0].scores
    tta_modes = (
        TtaScores("none", scores, None),
        TtaScores("flip", scores[:1], None),
    )
    report = replace(report, evaluation=replace(report.evaluation, tta_modes=tta_modes))
    written = report.write(tmp_path / "out")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "out").iterdir()}
    assert len(written) == 2 + 2 * (2 + 1)  # without ferplus argmax
    assert (tmp_path / "out" / "report.txt").read_text() == f"{report}\n"
    for path in written[2:]:
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 400, path
        assert picture.std() > 10, path


def test_pictures_leave_matplotlibs_global_state_alone(report, tmp_path):
    import matplotlib as mpl
    from matplotlib import _pylab_helpers

    before = mpl.get_backend(auto_select=False)
    draw_confusion(report.evaluation.tta_modes[0].scores[0], "title", tmp_path / "picture.png")
    assert mpl.get_backend(auto_select=False) == before
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


def test_legends_cover_no_curve(report):
    rows = [
        {"epoch": k, "accuracy": 0.1 * k, "val_accuracy": 0.5, "loss": 2.0, "val_loss": 1.5} for k in (1, 2)
    ]
    figures = (plot_reliability(report.evaluation.tta_modes[0].scores[0], "title"), plot_curves(rows, "run"))
    for figure in figures:
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
        assert all(axes.get_legend() is None for axes in figure.axes)


def test_a_folder_that_cannot_be_made_is_a_clear_error(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        report.write(tmp_path / "file" / "out")


def test_a_row_has_the_figures_of_the_report(report):
    rows = rows_of(report)
    scores = report.evaluation.tta_modes[0].scores
    assert [row["tta"] for row in rows] == ["none", "flip"]
    row = rows[0]
    assert (row["model"], row["parameters"], row["mmac"], row["size_mib"]) == (
        "small",
        "930000",
        "70.5",
        "2.00",
    )
    assert (row["split"], row["labels"], row["n"], row["date"]) == (
        "PublicTest",
        "fer2013",
        "100",
        "2026-01-02",
    )
    assert (row["seeds"], row["epochs"], row["hours"]) == ("1 2", "80", "1.25")
    assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
    assert row["accuracy"] == f"{100 * scores[0].accuracy:.2f}"
    assert row["ferplus_majority"] == f"{100 * scores[1].accuracy:.2f}"
    assert row["ferplus_argmax"] == f"{100 * scores[2].accuracy:.2f}"
    assert row["ece"] == f"{scores[0].ece:.4f}"
    assert row["ece_out_of_fold"] == f"{scores[0].ece_out_of_fold:.4f}"
    assert row["ece"] != row["ece_out_of_fold"]


def test_rows_of_other_data_stand_beside_each_other(report, tmp_path):
    here = replace(report, evaluation=replace(report.evaluation, faces_digest="aa" * 32))
    there = replace(report, evaluation=replace(report.evaluation, source="o.csv", faces_digest="bb" * 32))
    for one in (here, there, here):
        update_results(tmp_path / "r.csv", rows_of(one)[:1])
    assert [(r["data"], r["faces"]) for r in read_results(tmp_path / "r.csv")] == [
        ("fer2013.csv", "aa" * 8),
        ("o.csv", "bb" * 8),
    ]


def test_a_row_without_data_and_file_is_replaced_by_one_that_has_them(report, tmp_path):
    bare_row = [{**row, "data": "", "faces": "", "sha256": ""} for row in rows_of(report)]
    update_results(tmp_path / "r.csv", bare_row)
    known = replace(report, evaluation=replace(report.evaluation, faces_digest="aa" * 32))
    update_results(tmp_path / "r.csv", rows_of(known)[:1])
    first, second = read_results(tmp_path / "r.csv")
    assert (first["tta"], first["faces"], first["sha256"]) == ("none", "aa" * 8, "ab" * 8)
    assert second == bare_row[1]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("other", [{"n": "91"}, {"labels": "own"}])
def test_a_row_without_data_stays_beside_one_of_other_faces(report, tmp_path, other, overwrite):
    row = rows_of(report)[0]
    bare_row = {**row, "data": "", "faces": "", "sha256": "", **other}
    update_results(tmp_path / "r.csv", [bare_row])
    known = {**row, "faces": "aa" * 8}
    update_results(tmp_path / "r.csv", [known], overwrite=overwrite)
    assert read_results(tmp_path / "r.csv") == [bare_row, known]


def test_another_model_file_replaces_a_row_of_its_name_only_with_overwrite(report, tmp_path):
    path = tmp_path / "r.csv"
    update_results(path, rows_of(report))
    before = path.read_bytes()
    other = replace(report, model=replace(FACTS, sha256="cd" * 32))
    with pytest.raises(DataError, match=r"sha256 'abababababababab', now 'cdcdcdcdcdcdcdcd'.*--overwrite"):
        update_results(path, rows_of(other))
    assert path.read_bytes() == before
    update_results(path, rows_of(other), overwrite=True)
    assert read_results(path) == rows_of(other)


def test_a_row_may_lose_its_ece_out_of_fold(report, tmp_path):
    path = tmp_path / "r.csv"
    update_results(path, rows_of(report))
    in_sample = [{**row, "ece_out_of_fold": ""} for row in rows_of(report)]
    update_results(path, in_sample)
    assert read_results(path) == in_sample


def test_a_row_of_the_same_model_split_and_tta_is_replaced_in_its_place(report, tmp_path):
    path = tmp_path / "results" / "fer2013.csv"
    update_results(path, rows_of(report))
    other = replace(report, model=replace(FACTS, name="other"))
    update_results(path, rows_of(other))
    again = replace(report, date="2026-02-03", model=replace(FACTS, parameters=5))
    update_results(path, rows_of(again)[:1])
    rows = read_results(path)
    assert [(r["model"], r["tta"], r["parameters"]) for r in rows] == [
        ("small", "none", "5"),
        ("small", "flip", "930000"),
        ("other", "none", "930000"),
        ("other", "flip", "930000"),
    ]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"seeds": (3,)}, "seeds '1 2', now '3'. Give this model a --name of its own"),
        ({"size_bytes": None}, "with figures for size_mib; measure them again"),
    ],
)
def test_a_row_is_not_replaced_by_another_models_or_by_one_with_fewer_figures(
    report, tmp_path, facts, message
):
    path = tmp_path / "r.csv"
    update_results(path, rows_of(report))
    before = path.read_bytes()
    other = replace(report, model=replace(FACTS, **facts))
    with pytest.raises(DataError) as caught:
        update_results(path, rows_of(other))
    assert message in str(caught.value)
    assert path.read_bytes() == before


def test_a_row_without_votes_does_not_replace_one_with_them(report, tmp_path):
    path = tmp_path / "r.csv"
    update_results(path, rows_of(report))
    tta_modes = tuple(replace(p, scores=p.scores[:1]) for p in report.evaluation.tta_modes)
    bare = replace(report, evaluation=replace(report.evaluation, tta_modes=tta_modes))
    with pytest.raises(DataError, match="figures for ferplus_majority, ferplus_argmax"):
        update_results(path, rows_of(bare))


def test_names_with_commas_survive_the_table(report, tmp_path):
    odd = replace(report, model=replace(FACTS, name='a, "b"'))
    update_results(tmp_path / "r.csv", rows_of(odd))
    assert read_results(tmp_path / "r.csv") == rows_of(odd)
    assert (tmp_path / "r.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_an_ensemble_has_its_number_of_members_and_a_run_says_that_it_is_not_calibrated(report):
    ensemble = replace(report, model=replace(FACTS, architecture="ensemble", members=3))
    assert "ensemble, 3 members," in str(ensemble)
    keras = replace(report, model=replace(FACTS, kind="keras", size_bytes=None, calibrated=False))
    assert "not calibrated yet" in str(keras)
    assert "not calibrated" not in str(replace(keras, model=replace(FACTS, kind="keras")))
    assert rows_of(keras)[0]["size_mib"] == ""


def test_an_empty_file_and_an_absent_one_are_empty_tables(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    assert read_results(tmp_path / "empty.csv") == read_results(tmp_path / "absent.csv") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("emotion,pixels\n", "no table of results"),
        (",".join(COLUMNS) + "\na,b\n", "line 2: 2 fields"),
    ],
)
def test_a_file_that_is_no_table_of_results_is_refused_and_left_alone(report, tmp_path, content, message):
    path = tmp_path / "r.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        update_results(path, rows_of(report))
    assert path.read_text() == content


def test_the_table_of_this_repository_can_be_continued():
    rows = read_results(Path(__file__).parents[1] / "results" / "fer2013.csv")
    assert rows
    assert all(row["ece"] or row["ece_out_of_fold"] for row in rows)


def test_a_data_set_is_evaluated_from_python(tmp_path):
    model = write_tiny_model(tmp_path / "tiny.onnx")
    faces = load_data("cartoon:150")
    report = ferkit.evaluate(model, faces, tta=["none", "flip"], name="mine")
    assert report == ferkit.evaluate(model, "cartoon:150", tta=["none", "flip"], name="mine")
    assert [entry.tta for entry in report.evaluation.tta_modes] == ["none", "flip"]
    public = faces.of_split("PublicTest")
    predicted = FaceClassifier(model).predict(public.images)["fer2013"].argmax(axis=1)
    assert report.scores[0].correct == (predicted == public.labels).sum()
    assert str(report).startswith("mine 1, test")


def test_an_unknown_tta_is_named(tmp_path):
    with pytest.raises(DataError, match=r"'twelve-crop'; known are none, flip, ten-crop"):
        ferkit.evaluate(write_tiny_model(tmp_path / "tiny.onnx"), "cartoon:150", tta="twelve-crop")


@pytest.mark.parametrize("tta", [("none",), ("none", "flip", "ten-crop")])
def test_the_text_fits_80_columns(report, tta):
    scores = (replace(report.scores[1], labels="ferplus majority"), *report.scores)
    modes = tuple(TtaScores(name, scores, scores) for name in tta)
    long = replace(FACTS, name="a model with quite a long name", architecture="ensemble", members=12)
    evaluation = replace(
        report.evaluation, tta_modes=modes, source="a quite long file name.csv", faces=35_887
    )
    text = str(replace(report, model=long, evaluation=evaluation, in_sample=True))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("labels", "head"),
    [
        (("joy", "anger"), "joy  anger"),
        (tuple(f"{name} of a customer" for name in "abcdefg"), "true"),
        (tuple(f"label {k:02d}" for k in range(40)), "true"),
        (("喜び", "怒り", "悲しみ", "驚き", "嫌悪", "恐れ", "無表情", "軽蔑"), "true"),
    ],
)
def test_confusions_of_any_labels_fit_80_columns_with_distinct_heads(labels, head):
    k = len(labels)
    text = confusion_table(labels, [[1000] * k] * k, dict.fromkeys(labels, 7))
    assert max(map(cell_len, text.splitlines())) <= 80
    heads = [
        name for line in text.splitlines() if line.startswith("true") for name in re.split(" {2,}", line)
    ]
    assert head in text
    assert len(set(heads) - {"true", "no face"}) == k


def test_control_codes_of_a_label_do_not_reach_the_text():
    labels = ("happy\x1b[31m", "sad")
    text = confusion_table(labels, [[1, 2], [3, 4]]) + class_table(per_class(np.eye(2, dtype=int), labels))
    assert "\x1b" not in text
    assert "happy\\x1b[31m" in text
