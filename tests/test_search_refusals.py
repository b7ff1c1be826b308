"""What a search refuses before anything starts, and what it counts as refused while it draws."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ferkit.core.errors import FerkitError, OutputError, SearchError

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.search.engine import _survey, draw, resume, search
from ferkit.search.propose import Gate, RandomProposer, TooLargeError
from ferkit.search.records import Settings

from ferkit.data import load_data
from ferkit.search.cluster import Machine, ray_running
from ferkit.search.space import parse_space
from ferkit.search.worker import Surveyor
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
        ("[fixed.distil]\nweight = 0.5", "a trial has no teacher"),
        ('[parameters.share]\nkey = "distil.weight"\nchoice = [0.0, 0.5]', "a trial has no teacher"),
        ("[fixed.progressive]\nsizes = [48]\nuntil = [0.5]", "must lie below the faces' 48 pixels"),
        (
            "[fixed.progressive]\nsizes = [24]\nuntil = [0.5]\n[fixed.model.params]\nview_size = 24",
            "do not go with a view_size",
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
def test_what_no_trial_could_do_is_refused_before_anything_starts(faces, tmp_path, more, message) -> None:
    space = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16]\n' + more
    )
    for start in (
        lambda: search(space, faces, tmp_path / "s", Settings(trials=2)),
        lambda: draw(space, faces, Settings(trials=2)),
    ):
        with pytest.raises(SearchError, match=re.escape(message)):
            start()
    assert not (tmp_path / "s").exists()


def test_a_folder_that_holds_a_search_is_refused_before_ray_is_asked(faces, tmp_path) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.5])])
    nowhere = Machine(address="127.0.0.1:1")  # Ray would try for a minute.
    with pytest.raises(SearchError, match="holds a search already; --resume"):
        search(SPACE, faces, folder, Settings(trials=2), machine=nowhere)


def searched_on(folder: Path, data: dict[str, object]) -> None:
    """Say in a search's folder which data it began with."""
    path = folder / "search.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ({"votes": True}, "with votes"),
        ({"votes": False}, "without votes"),
        ({}, "its votes are not known"),  # as an older version left it
    ],
)
def test_other_data_is_refused_with_what_the_search_began_with(faces, tmp_path, votes, words) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("waiting", [])])
    searched_on(folder, {"source": "mine.csv", "faces": 9, "fingerprint": "f", **votes})
    with pytest.raises(SearchError) as caught:
        resume(folder, faces)
    assert "searched on other data, so give the first --data and --votes" in str(caught.value)
    assert str(caught.value).endswith(
        f": mine.csv (9 faces), {words}. Received: cartoon:70:3 (70 faces), with votes"  # drawn with them
    )


@pytest.mark.parametrize("limits", [{"max_epochs": 9}, {"max_hours": 0.5}, {"trials": 2}])
def test_a_search_goes_on_with_other_limits(faces, tmp_path, limits) -> None:
    folder = write_search(tmp_path / "s", SPACE, [("finished", [0.1, 0.2, 0.5]), ("failed", [])])
    searched_on(folder, {"fingerprint": faces.fingerprint})
    found = resume(folder, faces, **limits)  # nothing is left to train
    assert found.settings == replace(Settings(trials=2, seed=1), **limits)


def test_a_network_too_large_to_be_counted_is_refused_and_the_others_are_drawn() -> None:
    def measure(recipe):
        if len(recipe.model.params["filters"]) == 2:
            raise TooLargeError(f"{OUT_OF_MEMORY}48 GB")
        return cost_of(recipe)

    gate = Gate(SPACE, Settings(trials=6), measure)
    _survey(gate)
    drawing = RandomProposer(gate)
    assert {drawing.propose(n).values["depth"] for n in range(1, 7)} == {1}
    assert f"{OUT_OF_MEMORY}48 GB" in {r.reason for r in drawing.refused}


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
def test_what_cannot_be_built_is_told_and_not_raised(change, reason) -> None:
    pytest.importorskip("keras", reason="needs ferkit[train]")
    recipe = load_recipe("seed").model_dump(mode="json")
    for part, values in change.items():
        recipe[part].update(values)
    answer = Surveyor().count(recipe, {"fer2013": 7}, 48)
    assert isinstance(answer, str)
    assert reason in answer


@pytest.mark.parametrize(
    ("folder", "error"), [("missing", OutputError), ("l" * 120, SearchError)], ids=["missing", "long"]
)
def test_where_ray_cannot_start_there_is_one_line(tmp_path, monkeypatch, folder, error) -> None:
    path: Path = tmp_path / folder
    if error is SearchError:
        path.mkdir()  # Sockets lie in it, whose paths may have 107 bytes.
    monkeypatch.setattr("tempfile.tempdir", str(path))
    with pytest.raises(FerkitError) as caught, ray_running(Machine(), None):
        pass
    assert type(caught.value) is error
    assert len(str(caught.value).splitlines()) == 1
