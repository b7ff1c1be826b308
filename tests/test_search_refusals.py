"""What a search refuses before anything starts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ferkit.core.errors import DataError, FerkitError, OutputError, SearchError

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.data import load_data
from ferkit.search.cluster import Machine, ray_running
from ferkit.search.driver import _check_networks, resume, sample, search
from ferkit.search.sampling import CostFilter, NetworkTooLargeError, propose
from ferkit.search.space import parse_space
from ferkit.search.study import Settings, read_search
from ferkit.search.worker import count_network
from ferkit.training.memory import OUT_OF_MEMORY
from ferkit.training.recipe import load_recipe
from searchfiles import TINY, cost_of, write_search

SPACE = parse_space(TINY)


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:70:3", cache=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[fixed.distil]\nweight = 0.5", "trials have no teacher"),
        ('[parameters.share]\nkey = "distil.weight"\nchoice = [0.0, 0.5]', "trials have no teacher"),
        ("[fixed.progressive]\nsizes = [48]\nuntil = [0.5]", "must lie below the faces' 48 pixels"),
        (
            "[fixed.progressive]\nsizes = [24]\nuntil = [0.5]\n[fixed.model.params]\nview_size = 24",
            "exclude a view_size",
        ),
        (
            '[parameters.split]\nkey = "data.validation_split"\nchoice = ["PublicTest", "PrivateTest"]',
            "'split' varies data.validation_split",
        ),
        (
            '[parameters.split]\nkey = "data.train_split"\nchoice = ["Training", "PrivateTest"]',
            "'split' varies data.train_split",
        ),
    ],
)
def test_a_space_that_no_trial_could_train_is_refused_before_anything_starts(
    faces, tmp_path, more, message
) -> None:
    space = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16]\n' + more
    )
    for start in (
        lambda: search(space, faces, tmp_path / "s", Settings(trials=2)),
        lambda: sample(space, faces, Settings(trials=2)),
    ):
        with pytest.raises(SearchError, match=re.escape(message)):
            start()
    assert not (tmp_path / "s").exists()


def test_a_label_without_training_faces_is_refused_before_anything_starts(faces, tmp_path) -> None:
    untrained = faces.select((faces.labels != 3) | (faces.split != 0))
    for start in (
        lambda: search(SPACE, untrained, tmp_path / "s", Settings(trials=2)),
        lambda: sample(SPACE, untrained, Settings(trials=2)),
    ):
        with pytest.raises(DataError, match="no Training face has the label 'happy'"):
            start()
    assert not (tmp_path / "s").exists()


def test_a_folder_that_holds_a_search_is_refused_before_ray_starts(faces, tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.5])])
    nowhere = Machine(address="127.0.0.1:1")  # Ray would try for a minute.
    with pytest.raises(SearchError, match=r"holds a search already.* --resume"):
        search(SPACE, faces, folder, Settings(trials=2), machine=nowhere)


@pytest.mark.parametrize(("votes", "words"), [(True, "with votes"), (False, "without votes")])
def test_other_data_is_refused_with_what_the_search_was_started_with(faces, tmp_path, votes, words) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("waiting", [])])
    data = {"source": "mine.csv", "faces": 9, "fingerprint": "f", "votes": votes}
    read_search(folder).study.set_user_attr("data", data)
    with pytest.raises(SearchError) as caught:
        resume(folder, faces)
    assert "use the same --data and --votes" in str(caught.value)
    assert f"mine.csv (9 faces, {words})" in str(caught.value)
    assert "cartoon:70:3 (70 faces, with votes)" in str(caught.value)


@pytest.mark.parametrize("limits", [{"max_epochs": 9}, {"max_hours": 0.5}, {"trials": 2}])
def test_limits_may_change_when_a_search_is_resumed(faces, tmp_path, limits) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.1, 0.2, 0.5]), ("failed", [])])
    read_search(folder).study.set_user_attr("data", {"fingerprint": faces.fingerprint})
    found = resume(folder, faces, **limits)  # nothing is left to train
    assert found.settings == replace(Settings(trials=2, seed=1), **limits)
    with pytest.raises(SearchError, match="has 2 trials already"):
        resume(folder, faces, trials=1)


def test_networks_that_exceed_the_memory_are_refused_and_others_sampled() -> None:
    def profile(recipe):
        if len(recipe.model.params["filters"]) == 2:
            raise NetworkTooLargeError(f"{OUT_OF_MEMORY}48 GB")
        return cost_of(recipe)

    cost_filter = CostFilter(SPACE, Settings(trials=6), profile)
    _check_networks(cost_filter)
    trials = [propose(n, cost_filter) for n in range(6)]
    assert {trial.values["depth"] for trial in trials} == {1}
    assert f"{OUT_OF_MEMORY}48 GB" in {r["reason"] for trial in trials for r in trial.refused}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # 24 x 24 x 2 x 4e9 weights are 18 TB.
        ({"model": {"params": {"filters": [2], "dense": [4_000_000_000]}}}, OUT_OF_MEMORY),
        (
            {"model": {"params": {"filters": [2] * 5, "dense": [8]}}, "progressive": {"sizes": [16]}},
            "cannot be trained on faces of 16 pixels",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_a_reason_and_no_exception(monkeypatch, change, reason) -> None:
    pytest.importorskip("keras", reason="needs ferkit[train]")
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "")  # So that they are restored.
    recipe = load_recipe("seed").model_dump(mode="json")
    for part, values in change.items():
        recipe[part].update(values)
    counted = count_network(recipe, {"fer2013": 7}, 48)
    assert isinstance(counted, str)
    assert reason in counted


@pytest.mark.parametrize(
    ("folder", "error"), [("missing", OutputError), ("l" * 120, SearchError)], ids=["missing", "long"]
)
def test_where_ray_cannot_start_there_is_an_error_in_one_line(
    faces, tmp_path, monkeypatch, folder, error
) -> None:
    path: Path = tmp_path / folder
    if error is SearchError:
        path.mkdir()  # Sockets lie in it, whose paths may have 107 bytes.
    monkeypatch.setattr("tempfile.tempdir", str(path))
    with pytest.raises(FerkitError) as caught, ray_running(Machine(), faces, print):
        pass
    assert type(caught.value) is error
    assert len(str(caught.value).splitlines()) == 1


def test_ray_address_in_the_environment_is_ignored_with_a_message(faces, tmp_path, monkeypatch) -> None:
    """A known fault: the search joined that cluster, or failed where there was none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))  # Ray does not start.
    monkeypatch.setenv("RAY_ADDRESS", "10.9.8.7:6379")
    messages: list[str] = []
    with pytest.raises(OutputError), ray_running(Machine(), faces, messages.append):
        pass
    assert len(messages) == 1
    assert "10.9.8.7:6379" in messages[0]
    assert "--address" in messages[0]


def test_usage_statistics_of_ray_are_off(faces, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with pytest.raises(OutputError), ray_running(Machine(), faces, print):
        pass
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"cores": 0}, "cores and parallel must be 1 or more"),
        ({"gpus": -1.0}, "gpus 0 or more"),
        ({"parallel": 0}, "parallel 0"),
        ({"gpus": 1.5}, "whole number"),
        ({"address": "ray://head:10001"}, "Ray's client protocol"),
    ],
)
def test_a_machine_out_of_range_is_refused(machine, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Machine(**machine)
