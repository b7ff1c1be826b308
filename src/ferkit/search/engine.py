"""A search from its first draw to its last trial, and how it goes on after an interruption."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ferkit import __version__
from ferkit.core.errors import ModelError, OutputError, SearchError
from ferkit.data import FaceDataset
from ferkit.search.cluster import (
    Machine,
    check_nodes,
    count_cores,
    count_gpus,
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
from ferkit.search.propose import (
    Cost,
    Gate,
    GuidedProposer,
    Proposal,
    Proposer,
    RandomProposer,
    TooLargeError,
)
from ferkit.search.records import (
    ENDS,
    JOURNAL,
    LOCK,
    Journal,
    Refusal,
    Search,
    Settings,
    create_search,
    locked,
    mark_run,
    read_search,
    refuse_occupied,
    write_settings,
)
from ferkit.search.space import Space, spell
from ferkit.search.worker import Surveyor
from ferkit.training.memory import OUT_OF_MEMORY
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
            "votes": dataset.votes is not None,
        },
        "versions": _versions(),
        "machine": {"cores": count_cores(), "python": platform.python_version()},
    }
    _check_data(space, dataset)
    refuse_occupied(folder)
    watcher = watcher or Silent()
    with locked(folder / LOCK, 0.0, "search"):
        try:
            with _workplace(folder, machine, dataset, watcher) as owned, _Counter(dataset) as counter:
                gate = Gate(space, settings, counter)
                _survey(gate)
                proposals, refused = _draw_all(gate, range(1, settings.trials + 1))
                create_search(folder, space, settings, facts)
                _write_drawn(folder, proposals, refused)
                _conduct(folder, dataset, machine, watcher, command, counter, owned)
        finally:
            _remove_if_empty(folder)
    return read_search(folder)


def resume(
    out: str | Path,
    dataset: FaceDataset,
    *,
    trials: int | None = None,
    max_hours: float | None = None,
    max_epochs: int | None = None,
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
        max_hours: Another limit than it began with, or None.
        max_epochs: Another limit than it began with, or None.
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
    folder, machine, watcher = Path(out).absolute(), machine or Machine(), watcher or Silent()
    found = read_search(folder)
    _refuse_other_data(found, dataset)
    if trials is not None and trials < len(found.trials):
        raise SearchError(f"{folder} has {len(found.trials)} trials already. Received: --trials {trials}")
    with locked(folder / LOCK, 0.0, "search"):
        if retry_failed:
            with contextlib.closing(Journal(folder / JOURNAL)) as journal:
                for trial in found.trials.values():
                    if trial.state == "failed":
                        journal.write("again", trial=trial.number)
        found = read_search(folder)
        before = found.settings
        settings = replace(
            before,
            trials=before.trials if trials is None else trials,
            max_hours=before.max_hours if max_hours is None else max_hours,
            max_epochs=before.max_epochs if max_epochs is None else max_epochs,
        )
        wanted = replace(found, settings=settings)
        if any(t.state == "waiting" for t in found.trials.values()) or more_allowed(wanted):
            with _workplace(folder, machine, dataset, watcher) as owned, _Counter(dataset) as counter:
                gate = Gate(found.space, settings, counter)
                gate.remember(trial.values for trial in found.trials.values())
                drawn = _draw_all(gate, range(len(found.trials) + 1, settings.trials + 1))
                # Not before they are drawn: a wish that cannot be met must not stay.
                write_settings(folder, settings, found.facts)
                _write_drawn(folder, *drawn)
                _conduct(folder, dataset, machine, watcher, command, counter, owned)
        elif settings != before:
            write_settings(folder, settings, found.facts)
    return read_search(folder)


@contextlib.contextmanager
def _workplace(folder: Path, machine: Machine, dataset: FaceDataset, watcher: Watcher) -> Iterator[bool]:
    """Have Ray where trials are to run, and refuse nodes that cannot run them; yields as ``ray_running``."""
    with ray_running(machine, dataset) as owned:
        if machine.address:
            check_nodes(folder)
        idle = count_gpus() if not machine.gpus else 0
        if idle:
            watcher.remarked(f"{idle:g} GPUs are there, and trials don't see them; --gpus 1 uses them")
        yield owned


def _refuse_other_data(found: Search, dataset: FaceDataset) -> None:
    """Refuse other faces, or other votes, than a search began with."""
    data = found.facts["data"]
    if data["fingerprint"] != dataset.fingerprint:
        votes = {True: "with votes", False: "without votes", None: "its votes are not known"}
        first = f"{data.get('source', 'unknown')} ({data.get('faces', 'unknown')} faces)"
        now = f"{Path(dataset.source).name} ({len(dataset)} faces)"
        raise SearchError(
            f"{found.folder} searched on other data, so give the first --data and --votes: {first}, "
            f"{votes[data.get('votes')]}. Received: {now}, {votes[dataset.votes is not None]}"
        )


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
    """Refuse a space whose recipes ask for splits, votes or sides that are not there, or for a teacher."""
    for parameter in space.parameters:
        if parameter.key in (("data", "train_split"), ("data", "validation_split")):
            raise SearchError(
                f"{space.source}: parameter {parameter.name!r} varies {'.'.join(parameter.key)}, and "
                "accuracies on different splits cannot be ranked; fix it for all trials"
            )
    splits = set()
    for _, values in space.probes():
        recipe = space.recipe(values, space.name)
        if recipe.distil.weight:
            raise SearchError(
                f"{space.source}: a trial has no teacher, so distil.weight must be 0. Received: "
                f"{recipe.distil.weight:g}. Distil the winner with: ferkit distil"
            )
        sides = recipe.progressive.sizes
        if sides and (max(sides) >= dataset.size or recipe.model.params.get("view_size")):
            raise SearchError(
                f"{space.source}: progressive.sizes {list(sides)} must lie below the faces' {dataset.size} "
                "pixels, and do not go with a view_size"
            )
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
            TooLargeError: If memory does not suffice to build it.
            ModelError: If it cannot be built, or not for faces of a side that ``progressive`` names.
        """
        heads = {
            head.taxonomy.id: len(head.taxonomy)
            for head in heads_of(recipe, self.dataset.taxonomy, self.dataset.votes is not None)
        }
        content = recipe.model_dump(mode="json")
        key = json.dumps([content["model"], content["progressive"]["sizes"], heads], sort_keys=True)
        if key not in self.known:
            answer = self._count(content, heads)
            self.known[key] = answer if isinstance(answer, str) else Cost(*answer)
        found = self.known[key]
        if isinstance(found, str):
            raise (TooLargeError if found.startswith(OUT_OF_MEMORY) else ModelError)(found)
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
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            self.close()
            return f"{OUT_OF_MEMORY}building the network ended the process that counts"
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

    One that is too large for the memory says nothing about the space.

    Raises:
        SearchError: If one of them cannot be built.
    """
    for parameter, values in gate.space.probes():
        if parameter.key and parameter.key[0] not in ("model", "heads", "progressive"):
            continue  # It is no part of the network, and recipes with it were tried when the space was read.
        try:
            gate.measure(gate.space.recipe(values, gate.space.name))
        except TooLargeError:
            continue  # Where it is drawn, it is refused.
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
            shutil.rmtree(folder / RAY, ignore_errors=True)
            # Elsewhere on a cluster a worker may live on for a while; its lock keeps others out of its run.
            if all(trial.state in ENDS for trial in found.trials.values()):
                shutil.rmtree(folder / LOCKS, ignore_errors=True)
    if conductor.wrong is not None:
        raise conductor.wrong


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but our lock; a search that was refused leaves nothing."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"ferkit": __version__, **{name: version(name) for name in ("ray", "optuna", "keras", "numpy")}}
