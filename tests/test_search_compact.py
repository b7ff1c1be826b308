"""The script that compares random search with TPE: equal compute, a share of the data, its page."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.data import load_data
from ferkit.search.cluster import Machine
from ferkit.search.space import load_space
from ferkit.search.study import read_search
from searchfiles import write_search

STUDIES = Path(__file__).resolve().parents[1] / "studies"
sys.path.insert(0, str(STUDIES))

import search_compact  # noqa: E402  # needs the folder on the path

ENGINE = [
    {
        "parallel": parallel,
        "seconds_until_the_first_trial_trains": 11.5,
        "seconds_between_two_trials_of_a_worker": 1.25,
        "seconds_beside_training_per_trial": 3.5,
        "seconds_from_the_last_trial_to_the_end": 2.0,
        "memory_mib": {"driver": {"at_most": 200, "processes": 1}},
    }
    for parallel in (1, 2)
]


def finished(count: int, epochs: int) -> list[tuple[str, list[float]]]:
    """Trials whose ranking after the first epoch is reversed after the last."""
    return [("finished", [0.5 - 0.01 * k] * (epochs - 1) + [0.5 + 0.01 * k]) for k in range(count)]


@pytest.fixture
def study(tmp_path):
    """Three searches: random with 4 x 4 epochs, TPE with as many, and two trials of the 2021 study."""
    found = search_compact.Study(
        data="/somewhere/fer2013.csv.gz", work=tmp_path / "work", out=tmp_path / "out", trials=4, epochs=4,
        share=1.0, study_trials=2, study_epochs=2, winner_epochs=None, best_epochs=12, best_width=0.125,
        note="Not alone.", machine=Machine(),
    )  # fmt: skip
    compact = search_compact.compact(found)
    quarter = load_space("study-2021", ["model.params.width=0.25", "epochs=2"])
    stopped = [("stopped", [0.3]), ("stopped", [0.2]), ("stopped", [0.3]), ("stopped", [0.4])]
    for name, space, trials in (
        ("random", compact, finished(4, 4)),
        ("tpe-asha", compact, [*finished(3, 4), *stopped]),
        ("study-2021", quarter, finished(2, 2)),
    ):
        folder = write_search(found.folder(name), space, trials, asha=name == "tpe-asha")
        search = read_search(folder)
        versions = dict.fromkeys(("ferkit", "ray", "optuna", "keras"), "1.2.3")
        search.study.set_user_attr("data", {"source": "fer2013.csv.gz"})
        search.study.set_user_attr("machine", {"cores": 2})
        search.study.set_user_attr("versions", versions)
        for run in folder.glob("trials/*/run.json"):
            facts = json.loads(run.read_text())
            facts["data"]["training"] = 1000
            run.write_text(json.dumps(facts))
    return found


def test_a_share_of_training_is_stratified_and_the_other_splits_are_complete() -> None:
    data = load_data("cartoon:700:1", cache=False)
    half = search_compact.thinned(data, 0.5)
    for split in ("PublicTest", "PrivateTest"):
        assert (half.of_split(split).images == data.of_split(split).images).all()
    before = np.bincount(data.of_split("Training").labels)
    assert np.bincount(half.of_split("Training").labels).tolist() == [round(n / 2) for n in before]
    again = search_compact.thinned(data, 0.5)
    assert (half.images == again.images).all()
    assert search_compact.thinned(data, 1.0) is data


def test_both_methods_have_the_same_epochs_and_the_table_lists_their_compute(study) -> None:
    searches = {name: read_search(study.folder(name)) for name in ("random", "tpe-asha")}
    random, guided = search_compact.comparison(searches)
    assert (random["epochs"], guided["epochs"]) == (16, 16)
    assert (guided["finished"], guided["stopped"]) == (3, 4)
    assert random["million_faces"] == 0.016
    mmac = sum(4 * trial.mmac for trial in searches["random"].trials.values())
    assert random["forward_tmac"] == round(mmac * 1000 / 1e6, 1)
    assert (random["best_accuracy"], guided["best_accuracy"]) == (0.53, 0.52)


def test_early_accuracies_are_correlated_with_the_last(study) -> None:
    rows = search_compact.agreement(read_search(study.folder("random")))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {row["spearman"] for row in rows} == {-1.0}
    assert {row["final_rank_of_the_leader"] for row in rows} == {4}


def test_stopped_trials_are_counted_by_epoch(study) -> None:
    assert search_compact.stops(read_search(study.folder("tpe-asha"))) == (
        "ASHA stopped 4 of 7 trials: 4 after epoch 1"
    )
    assert search_compact.stops(read_search(study.folder("random"))) == "ASHA stopped 0 of 4 trials"


def test_only_significant_correlations_are_named_with_their_direction() -> None:
    rows = [("batch_size", -0.5, 0.006), ("weights", 0.4, 0.01), ("MMAC", 0.36, 0.0507)]
    slopes = [{"what": what, "spearman": rho, "p_value": p} for what, rho, p in rows]
    assert search_compact.tendencies_text(slopes) == (
        "Accuracy rose with weights and fell with batch_size (p < 0.05). Its correlation with the others "
        "(MMAC) is not significant."
    )
    assert search_compact.tendencies_text(slopes[2:]).startswith(" Its correlation with the others (MMAC)")
    assert search_compact.tendencies_text([]) == ""


def test_the_report_is_complete_and_contains_no_local_path(study) -> None:
    study.work.mkdir(exist_ok=True)
    (study.work / "engine.json").write_text(json.dumps(ENGINE))
    search_compact.write_results(study)
    page = (study.out / "README.md").read_text()
    assert "python studies/search_compact.py --data fer2013.csv.gz --trials 4 --study-trials 2\n" in page
    assert "| random | 4 | 0 | 0 |" in page
    assert "Epochs done: random 16 and tpe-asha 16. " in page
    compute = page.partition("## At equal compute")[2].partition("## The best")[0]
    assert "study-2021" not in compute  # other epochs, another space
    assert "the best of 7 equal networks" in page  # four of random search and three of TPE finished
    assert "Keras 1.2.3. Not alone." in page
    assert "the same after 40 epochs" in page  # as [winner] of compact has it
    assert "small networks" not in page
    assert "| seconds between two trials of a worker | 1.25 | 1.25 |" in page
    assert "| driver, MiB at most (processes) | 200 (1) | 200 (1) |" in page
    with (study.out / "leaderboard.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 11
    assert [row["rank"] for row in rows][:8] == ["1", "2", "3", "4", "5", "6", "7", ""]
    assert rows[0]["search"] == "random"
    for name in ("random", "tpe-asha", "study-2021"):
        assert (study.out / name / "accuracy-mmac.png").is_file()
    for path in study.out.rglob("*"):
        if path.suffix in (".csv", ".json", ".md", ".toml"):
            assert "/somewhere" not in path.read_text()
            assert str(study.work) not in path.read_text()


@pytest.mark.parametrize(
    ("stage", "message"), [("tpe", "run the stage random first"), ("winner", "run the stages random and tpe")]
)
def test_a_stage_without_its_predecessor_is_refused(study, tmp_path, stage, message) -> None:
    for path in study.folder("random").iterdir():
        path.rename(tmp_path / f"gone-{path.name}")
    with pytest.raises(SystemExit, match=message):
        search_compact.STAGES[stage](study)


def test_a_search_with_other_settings_is_not_continued(study) -> None:
    with pytest.raises(SystemExit, match="begun with other settings"):
        search_compact.search_random(study)
