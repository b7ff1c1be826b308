"""A search from its first draw to its last trial, and how it goes on after an interruption."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ferkit import __version__
from ferkit.data import FaceDataset
from ferkit.errors import ModelError, OutputError, SearchError
from ferkit.search.cluster import (
    Machine,
    check_nodes,
    count_cores,
    count_places,
    ray_running,
    require_libraries,
)
from ferkit.search.conductor import (
    LOCKS,
    RAY,
    Conductor,
    Halted,
    Silent,
    Watcher,
    WoundDown,
    log_proposal,
    log_refusal,
    more_allowed,
    run_tune,
    signals_kept,
)
from ferkit.search.propose import Cost, Gate, GuidedProposer, Proposal, Proposer, RandomProposer
from ferkit.search.records import (
    JOURNAL,
    Journal,
    Refusal,
    Search,
    Settings,
    create_search,
    locked,
    mark_run,
    read_search,
    write_settings,
)
from ferkit.search.space import Space, spell
from ferkit.search.worker import Surveyor
from ferkit.training.recipe import Recipe
from ferkit.training.targets import heads_of

__all__ = ["Machine", "Silent", "Watcher", "draw", "ray_running", "resume", "search"]


def search(
    space: Space,
    dataset: FaceDataset,
    out: str | Path,
    settings: Settings,
    *,
    machine: Machine | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Search:
    """Search a space.

    Before anything is trained, networks with every choice and both ends of every range are built; in random
    search, those of all trials.

    Args:
        space: What to search.
        dataset: Faces with the recipe's splits. Ray's object store hands them to the trials of every node.
        out: The search's folder; it must not hold a search. On a cluster every node sees it by this path.
        settings: How to search.
        machine: Where; None: this machine, one core a trial.
        watcher: Hears of the progress.
        command: The command line, for the record.

    Returns:
        The folder as it was left.

    Raises:
        SearchError: If the space, the data or the machine do not fit together, or nothing can be drawn.
        OutputError: If the folder cannot be written; what is done stays.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after what was running is recorded as interrupted.
    """
    require_libraries()
    folder, machine = Path(out).absolute(), machine or Machine()
    facts = {
        "space": space.name,
        "command": list(command),
        "data": {
            "source": Path(dataset.source).name,
            "fingerprint": dataset.fingerprint,
            "faces": len(dataset),
        },
        "versions": _versions(),
        "machine": {"cores": count_cores(), "python": platform.python_version()},
    }
    _check_data(space, dataset)
    with locked(folder / ".lock", 0.0, "search"):
        try:
            with ray_running(machine, dataset) as owned, _Counter(dataset) as counter:
                gate = Gate(space, settings, counter)
                _survey(gate)
                proposals, refused = _draw_all(gate, range(1, settings.trials + 1))
                create_search(folder, space, settings, facts)
                _write_drawn(folder, proposals, refused)
                _conduct(folder, dataset, machine, watcher or Silent(), command, counter, owned)
        finally:
            _remove_if_empty(folder)
    return read_search(folder)


def resume(
    out: str | Path,
    dataset: FaceDataset,
    *,
    trials: int | None = None,
    retry_failed: bool = False,
    machine: Machine | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Search:
    """Go on with a search: trials that were interrupted go on from their last epoch, finished ones stay.

    Args:
        out: The search's folder.
        dataset: The same faces.
        trials: More trials than it began with, or None.
        retry_failed: Whether failed trials are started again.
        machine: As in :func:`search`.
        watcher: As in :func:`search`.
        command: As in :func:`search`.

    Raises:
        SearchError: If the folder holds no search, or one over other data.
        OutputError: As in :func:`search`.
        KeyboardInterrupt: As in :func:`search`.
    """
    require_libraries()
    folder, machine = Path(out).absolute(), machine or Machine()
    found = read_search(folder)
    if found.facts["data"]["fingerprint"] != dataset.fingerprint:
        raise SearchError(f"{folder} searched on other data: the fingerprints differ")
    if trials is not None and trials < len(found.trials):
        raise SearchError(f"{folder} has {len(found.trials)} trials already. Received: --trials {trials}")
    with locked(folder / ".lock", 0.0, "search"):
        if trials is not None and trials != found.settings.trials:
            write_settings(folder, replace(found.settings, trials=trials), found.facts)
        if retry_failed:
            with contextlib.closing(Journal(folder / JOURNAL)) as journal:
                for trial in found.trials.values():
                    if trial.state == "failed":
                        journal.write("again", trial=trial.number)
        found = read_search(folder)
        if any(t.state == "waiting" for t in found.trials.values()) or more_allowed(found):
            with ray_running(machine, dataset) as owned, _Counter(dataset) as counter:
                gate = Gate(found.space, found.settings, counter)
                gate.remember(trial.values for trial in found.trials.values())
                missing = range(len(found.trials) + 1, found.settings.trials + 1)
                _write_drawn(folder, *_draw_all(gate, missing))
                _conduct(folder, dataset, machine, watcher or Silent(), command, counter, owned)
    return read_search(folder)


def draw(space: Space, dataset: FaceDataset, settings: Settings) -> tuple[list[Proposal], list[Refusal]]:
    """Return what a random search would train, and what it would refuse, without training anything.

    Raises:
        SearchError: As :func:`search`.
    """
    _check_data(space, dataset)
    require_libraries()
    with ray_running(Machine(), None), _Counter(dataset) as counter:
        gate = Gate(space, replace(settings, method="random"), counter)
        _survey(gate)
        return _draw_all(gate, range(1, settings.trials + 1))


def _check_data(space: Space, dataset: FaceDataset) -> None:
    """Refuse a space whose recipes ask for splits or votes that the data does not have."""
    splits = set()
    for _, values in space.probes():
        recipe = space.recipe(values, space.name)
        heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
        splits |= {recipe.data.train_split, recipe.data.validation_split}
    for split in sorted(splits):
        dataset.of_split(split)


class _Counter:
    """Counts networks in a process of its own, which lives until it is closed or leaves its block.

    Where Keras is loaded already, there is no memory to save, and it counts here.

    Args:
        dataset: Decides heads and size.
    """

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset
        self.known: dict[str, Cost | str] = {}
        self.here = Surveyor()
        self.actor: Any = None

    def __call__(self, recipe: Recipe) -> Cost:
        """Return what a recipe's network costs.

        Raises:
            ModelError: If it cannot be built.
        """
        heads = {
            head.taxonomy.id: len(head.taxonomy)
            for head in heads_of(recipe, self.dataset.taxonomy, self.dataset.votes is not None)
        }
        content = recipe.model_dump(mode="json")
        key = json.dumps([content["model"], heads], sort_keys=True)
        if key not in self.known:
            answer = self._count(content, heads)
            self.known[key] = answer if isinstance(answer, str) else Cost(*answer)
        found = self.known[key]
        if isinstance(found, str):
            raise ModelError(found)
        return found

    def _count(self, recipe: dict[str, Any], heads: dict[str, int]) -> tuple[int, float] | str:
        import ray

        if "keras" in sys.modules:
            return self.here.count(recipe, heads, self.dataset.size)
        if self.actor is None:
            options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3}
            self.actor = ray.remote(Surveyor).options(**options).remote()
        try:
            counted: tuple[int, float] | str = ray.get(
                self.actor.count.remote(recipe, heads, self.dataset.size)
            )
        except ray.exceptions.RayActorError:
            self.actor = None
            return "building it ended the process; it may need more memory than there is"
        return counted

    def close(self) -> None:
        """End the process; it starts again where it is needed."""
        import ray

        if self.actor is not None and ray.is_initialized():
            ray.kill(self.actor)
        self.actor = None

    def __enter__(self) -> _Counter:
        """Return itself; the process starts with the first network."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()


def _survey(gate: Gate) -> None:
    """Build networks with everything that the space can ask for, one thing after the other.

    Raises:
        SearchError: If one of them cannot be built.
    """
    for parameter, values in gate.space.probes():
        if parameter.key and parameter.key[0] not in ("model", "heads"):
            continue  # It is no part of the network, and recipes with it were tried when the space was read.
        try:
            gate.measure(gate.space.recipe(values, gate.space.name))
        except ModelError as error:
            raise SearchError(
                f"{gate.space.source}: no network can be built for {spell(values)} (tried for "
                f"{parameter.name!r}): {error}"
            ) from error


def _draw_all(gate: Gate, numbers: Iterable[int]) -> tuple[list[Proposal], list[Refusal]]:
    """Return the configurations of these trials; in guided search none, since they depend on results."""
    if gate.settings.method != "random":
        return [], []
    proposer = RandomProposer(gate)
    return [proposer.propose(number) for number in numbers], proposer.refused


def _write_drawn(folder: Path, proposals: Iterable[Proposal], refused: Iterable[Refusal]) -> None:
    with contextlib.closing(Journal(folder / JOURNAL)) as journal:
        for refusal in refused:
            log_refusal(journal, refusal)
        for proposal in proposals:
            log_proposal(journal, proposal)


def _conduct(
    folder: Path,
    dataset: FaceDataset,
    machine: Machine,
    watcher: Watcher,
    command: Sequence[str],
    counter: _Counter,
    stops_ray: bool,
) -> None:
    """Let Tune work through the trials that are left."""
    import ray

    found = read_search(folder)
    if machine.address:
        check_nodes(folder)
    gate = Gate(found.space, found.settings, counter)
    gate.remember(trial.values for trial in found.trials.values())
    proposer: Proposer = RandomProposer(gate)
    if found.settings.method == "tpe":
        proposer = GuidedProposer(gate, list(found.trials.values()))
    else:
        counter.close()  # All are drawn; the trials can use its memory.
    slots = count_places(machine)
    with contextlib.closing(Journal(folder / JOURNAL)) as journal:
        journal.write("session", command=list(command), slots=slots, version=__version__)
        conductor = Conductor(found, journal, proposer, watcher, stops_ray)
        watcher.began(found, slots)
        try:
            with signals_kept(conductor):
                run_tune(conductor, dataset, machine, command, slots)
        except WoundDown:
            pass
        except Halted:
            # Workers first, so that none of them writes into a run that is being marked.
            ray.shutdown()
        finally:
            for trial in found.trials.values():
                # A full disk is told by the error that ended the search.
                if trial.state == "running":
                    with contextlib.suppress(OutputError):
                        mark_run(found.trial_folder(trial.number), "interrupted")
            for name in (RAY, LOCKS):
                shutil.rmtree(folder / name, ignore_errors=True)
    if conductor.wrong is not None:
        raise conductor.wrong


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but our lock; a search that was refused leaves nothing."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"ferkit": __version__, **{name: version(name) for name in ("ray", "optuna", "keras", "numpy")}}
