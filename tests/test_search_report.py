"""The results of a search: leaderboard, winner, summary, pictures with their numbers."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace

import pytest

pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.core.images import load_image
from ferkit.search.report import best_so_far, cost_and_accuracy, leaderboard, shortfall, summary, write_report
from ferkit.search.space import load_space, parse_space
from ferkit.search.study import read_search
from ferkit.training.recipe import load_recipe
from searchfiles import TINY, write_search

TRIALS = [
    ("finished", [0.30, 0.40, 0.50]),
    ("stopped", [0.45]),
    ("failed", [0.20]),
    ("finished", [0.30, 0.50, 0.60]),
    ("running", [0.70]),
    ("finished", [0.30, 0.35, 0.40]),
    ("finished", [0.30, 0.35, 0.60]),
    ("waiting", []),
]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = write_search(tmp_path_factory.mktemp("report") / "s", parse_space(TINY), TRIALS)
    return write_report(folder)


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_the_leaderboard_ranks_finished_trials_and_lists_the_others_with_the_reason(reported) -> None:
    rows = rows_of(reported.search.folder / "leaderboard.csv")
    assert [(r["state"], r["accuracy"]) for r in rows] == [
        ("finished", "0.6"), ("finished", "0.6"), ("finished", "0.5"), ("finished", "0.4"),
        ("stopped", "0.45"), ("failed", "0.2"), ("waiting", "0.7"), ("waiting", ""),
    ]  # fmt: skip
    assert [r["rank"] for r in rows] == ["1", "2", "3", "4", "", "", "", ""]
    assert float(rows[0]["mmac"]) <= float(rows[1]["mmac"])  # equal accuracy: the cheaper first
    assert rows[5]["reason"] == "the loss became nan"
    assert {r["split"] for r in rows} == {"PublicTest"}
    # Wilson, 120 of 200: 0.5308..0.6654 (scipy.stats.binomtest(120, 200).proportion_ci(method="wilson")).
    assert (float(rows[0]["low"]), float(rows[0]["high"])) == pytest.approx((0.5308, 0.6654), abs=1e-4)
    one = next(r for r in rows if r["depth"] == "1")
    assert one["filters2"] == ""  # not active


def test_the_winner_is_a_recipe(reported) -> None:
    recipe = load_recipe(reported.search.folder / "winner.toml")
    best = reported.search.trials[reported.search.finished()[0].number]
    assert recipe.name == "tiny-winner"
    assert (recipe.epochs, recipe.augment.upside_down) == (4, 0.0)  # from the space's [winner]
    assert recipe.optimizer.learning_rate == best.values["rate"]
    assert "60.00 % on PublicTest, which chose it, after 3 epochs" in recipe.description


def test_only_a_finished_trial_can_win(reported) -> None:
    best = reported.search.finished()[0]
    assert (best.state, best.accuracy) == ("finished", 0.60)


def test_best_so_far_rises_with_training_time(reported) -> None:
    rows = best_so_far(read_search(reported.search.folder))
    assert [r["best"] for r in rows] == [0.5, 0.5, 0.5, 0.6, 0.6, 0.6]
    # 3 + 1 + 1 + 3 + 3 + 3 epochs of 10 s.
    assert rows[-1]["training_hours"] == pytest.approx(140 / 3600, abs=1e-4)
    assert rows_of(reported.search.folder / "pictures" / "best-so-far.csv")[3]["best"] == "0.6"


def test_the_pareto_front_holds_the_trials_that_none_beats_in_cost_and_accuracy(reported) -> None:
    rows = cost_and_accuracy(reported.search)
    for row in rows:
        beaten = any(
            other["mmac"] <= row["mmac"]
            and other["accuracy"] >= row["accuracy"]
            and (other["mmac"], other["accuracy"]) != (row["mmac"], row["accuracy"])
            for other in rows
        )
        assert row["pareto"] is not beaten


def test_the_summary_counts_trials_and_names_the_best(reported) -> None:
    facts = json.loads((reported.search.folder / "summary.json").read_text())
    assert facts == summary(reported.search)
    assert facts["trials"] == {"sampled": 8, "finished": 4, "stopped": 1, "failed": 1, "retried": 0}
    assert facts["best"]["accuracy"] == 0.6
    assert facts["faces"] == 200


def test_only_trials_in_one_go_count_for_the_time_beside_training(tmp_path) -> None:
    trials = [("finished", [0.3, 0.5]), ("finished", [0.1, 0.2]), ("finished", [0.1, 0.2])]
    search = read_search(write_search(tmp_path / "s", parse_space(TINY), trials))
    whole, resumed, retried = search.trials.values()
    # 20 s of training each.
    whole.placed, resumed.placed, retried.placed = 22.0, 12.0, 13.0
    resumed.attempts = 2
    retried.lost = ["killed"]
    facts = summary(search)
    assert (facts["trials_timed"], facts["seconds_beside_training_per_trial"]) == (1, 2.0)
    assert facts["training_seconds"] == 60.0


def test_a_trial_is_placed_from_its_start_to_its_end(tmp_path) -> None:
    before = time.time()
    trial = read_search(write_search(tmp_path / "s", parse_space(TINY), [("finished", [0.3])])).trials[0]
    assert 0 < trial.placed < trial.ended - before + 1e-3
    assert before < trial.ended < time.time()


@pytest.mark.parametrize(
    ("limit", "lines"),
    [
        ({}, []),
        ({"max_epochs": 5}, []),
        (
            {"max_epochs": 4},
            ["3 of 5 trials were not started: --max-epochs 4 reached; --resume accepts higher limits"],
        ),
        (
            {"max_hours": 0.01},
            ["3 of 5 trials were not started: --max-hours 0.01 reached; --resume accepts higher limits"],
        ),
    ],
)
def test_trials_that_the_budget_excluded_are_counted(tmp_path, limit, lines) -> None:
    found = read_search(
        write_search(tmp_path / "s", parse_space(TINY), [("finished", [0.3, 0.4]), ("failed", [0.1, 0.2])])
    )
    assert shortfall(replace(found, settings=replace(found.settings, trials=5, **limit))) == lines


def test_every_picture_has_its_numbers_beside_it(reported) -> None:
    folder = reported.search.folder / "pictures"
    names = {"best-so-far", "accuracy-mmac", "parallel-coordinates", "importance"}
    # The numbers of the parallel coordinates are those of the leaderboard.
    assert {p.name for p in folder.iterdir()} == {f"{n}.png" for n in names} | {
        f"{n}.csv" for n in names - {"parallel-coordinates"}
    }
    for name in names:
        picture = load_image(folder / f"{name}.png")
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 5  # not blank
    for name in names - {"parallel-coordinates"}:
        assert rows_of(folder / f"{name}.csv")
    shares = rows_of(folder / "importance.csv")
    assert sum(float(r["importance"]) for r in shares) == pytest.approx(1, abs=1e-4)


def test_pictures_leave_matplotlib_as_it_was(tmp_path) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    plt.switch_backend("svg")
    before = dict(mpl.rcParams)
    write_report(write_search(tmp_path / "s", parse_space(TINY), TRIALS))
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_a_search_without_finished_trials_notes_what_is_missing(tmp_path) -> None:
    found = write_report(write_search(tmp_path / "s", parse_space(TINY), [("waiting", [])] * 2))
    assert [path.name for path in found.files] == ["leaderboard.csv", "summary.json"]
    assert any("no trial finished" in line for line in found.notes)
    assert len(leaderboard(found.search)) == 2


def test_one_finished_trial_is_enough_for_a_winner_but_not_for_comparisons(tmp_path) -> None:
    found = write_report(write_search(tmp_path / "s", parse_space(TINY), [("finished", [0.5])]))
    names = {path.name for path in found.files}
    assert {"winner.toml", "best-so-far.png", "accuracy-mmac.png"} <= names
    assert "parallel-coordinates.png" not in names
    assert any("no importance" in line for line in found.notes)


@pytest.mark.parametrize("name", ["compact", "seed", "study-2021"])
def test_every_shipped_space_has_pictures(tmp_path, name: str) -> None:
    trials = [("finished", [0.3 + 0.01 * k]) for k in range(8)]
    found = write_report(write_search(tmp_path / "s", load_space(name), trials))
    assert (found.search.folder / "pictures" / "parallel-coordinates.png").is_file()
