"""``ferkit search``: hyperparameter search with a live table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import (
    DataOption,
    VotesOption,
    command_line,
    console,
    data_options,
    in_words,
    new_app,
    option,
    remark,
)

if TYPE_CHECKING:
    from ferkit.search.cluster import Machine
    from ferkit.search.report import Report
    from ferkit.search.study import Search, Trial

app = new_app()

_SHOWN = 12
"""Trials in the live table beside the running ones: the best."""


def _list_spaces(wanted: bool) -> None:
    """Print the shipped spaces and exit."""
    if not wanted:
        return
    from rich.table import Table

    from ferkit.search.space import load_space, shipped_spaces

    table = Table("space", "parameters", "from recipe", "description", box=None, pad_edge=False)
    for name in shipped_spaces():
        space = load_space(name)
        table.add_row(name, str(len(space.parameters)), space.base.name, space.description)
    console().print(table)
    raise typer.Exit


@app.command()
def search(
    data: DataOption,
    space: Annotated[
        str | None,
        typer.Argument(help="Name of a shipped space (see --list) or a TOML file.", show_default=False),
    ] = None,
    out: Annotated[Path | None, option("--out -o", "Folder of the search.", "runs/search-SPACE")] = None,
    trials: Annotated[int | None, option("--trials -n", "Number of configurations.", "20")] = None,
    votes: VotesOption = None,
    resume: Annotated[
        Path | None,
        option("--resume", "Continue this search; --trials, --max-epochs and --max-hours may change."),
    ] = None,
    retry_failed: Annotated[
        bool, option("--retry-failed", "With --resume: train failed trials again.")
    ] = False,
    method: Annotated[str | None, option("--method", "Sampler: random or tpe.", "random")] = None,
    asha: Annotated[bool, option("--asha", "Stop poor trials early.")] = False,
    grace: Annotated[int | None, option("--grace", "ASHA: epochs that every trial gets.", "1")] = None,
    reduction: Annotated[
        int | None, option("--reduction", "ASHA: one in so many trials passes each rung.", "3")
    ] = None,
    seed: Annotated[int | None, option("--seed", "Seed of the sampler.", "0")] = None,
    max_mmac: Annotated[
        float | None, option("--max-mmac", "Refuse networks of more million multiply-accumulates per face.")
    ] = None,
    max_params: Annotated[int | None, option("--max-params", "Refuse networks of more parameters.")] = None,
    max_hours: Annotated[
        float | None,
        option("--max-hours", "Start no further trial after so many hours of training in total."),
    ] = None,
    max_epochs: Annotated[
        int | None, option("--max-epochs", "Start no further trial after so many epochs in total.")
    ] = None,
    retries: Annotated[
        int | None, option("--retries", "Restarts of a trial whose worker was lost.", "3")
    ] = None,
    overrides: Annotated[
        list[str] | None, option("--set -s", "A recipe key for all trials: epochs=3", metavar="KEY=VALUE")
    ] = None,
    cores: Annotated[int, option("--cores", "Cores per trial.", default=True)] = 1,
    gpus: Annotated[float, option("--gpus", "GPUs per trial; a fraction shares one.", default=True)] = 0.0,
    parallel: Annotated[
        int | None, option("--parallel", "Trials at a time.", "as many as cores and GPUs allow")
    ] = None,
    address: Annotated[
        str | None, option("--address", "Ray cluster: auto on one of its nodes, or host:port.")
    ] = None,
    draw_only: Annotated[
        bool, option("--draw-only", "Show the trials of a random search without training.")
    ] = False,
    quiet: Annotated[bool, option("--quiet -q", "No progress; only the result.")] = False,
    spaces: Annotated[  # noqa: ARG001
        bool, option("--list", "List the shipped spaces.", callback=_list_spaces, is_eager=True)
    ] = False,
) -> None:
    """Search hyperparameters: sample configurations from a space and train each for a few epochs.

    Every trial is a run folder in OUT/trials. The search writes leaderboard.csv, pictures, and winner.toml,
    the recipe of the best trial for `ferkit train --recipe`. Ctrl-C keeps what is done; --resume continues.
    """
    from ferkit.core.errors import FerkitError, OutputError, SearchError
    from ferkit.data import load_data
    from ferkit.search import driver, report
    from ferkit.search.cluster import Machine
    from ferkit.search.space import load_space
    from ferkit.search.study import Settings

    given: dict[str, Any] = {
        "method": method, "asha": asha or None, "grace": grace, "reduction": reduction, "seed": seed,
        "max_mmac": max_mmac, "max_params": max_params, "retries": retries,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    budget: dict[str, Any] = {"max_hours": max_hours, "max_epochs": max_epochs}
    if (space is None) == (resume is None):
        raise SearchError("give a space to search (see --list), or a search to continue with --resume")
    if resume is not None and (given or overrides or out is not None or draw_only):
        raise SearchError(
            "--resume continues a search with the settings it has; it accepts only --trials, --max-hours, "
            "--max-epochs, --retry-failed and the options that say where trials run"
        )
    if retry_failed and resume is None:
        raise SearchError("--retry-failed needs --resume")
    if not asha and (grace is not None or reduction is not None):
        raise typer.BadParameter("--grace and --reduction need --asha")
    machine = Machine(cores=cores, gpus=gpus, parallel=parallel, address=address)
    ignored = (
        asha or any(x is not None for x in (out, max_hours, max_epochs, retries)) or machine != Machine()
    )
    if draw_only and (method == "tpe" or ignored):
        raise typer.BadParameter(
            "--draw-only shows the trials of a random search and trains nothing; it accepts only --trials, "
            "--seed, --max-mmac, --max-params and --set"
        )
    command = ["ferkit", *sys.argv[1:]]
    where = data_options(data, votes)
    progress = _Progress(quiet=quiet)
    if resume is None:
        settings = Settings(trials=20 if trials is None else trials, **given, **budget)
        loaded = load_space(str(space), overrides or ())
        dataset = load_data(data, votes=votes)
        if draw_only:
            _print_trials(driver.sample(loaded, dataset, settings))
            return
        folder = out or Path("runs") / f"search-{loaded.name}"
    else:
        folder, dataset = resume, load_data(data, votes=votes)
    how: dict[str, Any] = {"machine": machine, "callbacks": [progress], "command": command}
    try:
        if resume is None:
            driver.search(loaded, dataset, folder, settings, **how)
        else:
            driver.resume(folder, dataset, trials=trials, **budget, retry_failed=retry_failed, **how)
    except (KeyboardInterrupt, FerkitError) as error:
        progress.close()
        # An error before the first trial leaves nothing to report.
        if progress.search is not None:
            try:
                _print_report(report.write_report(folder), where)
            except OutputError as unwritten:
                remark(f"no report: {unwritten}")
            how_it_ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended by an error"
            again = ["ferkit", "search", "--resume", str(folder), *where, *_machine_options(machine)]
            remark(f"{how_it_ended}; continue with: {command_line(again)}")
        raise
    finally:
        progress.close()
    _print_report(report.write_report(folder), where)


def _machine_options(machine: Machine) -> list[str]:
    """Return the options that say where trials run, without defaults."""
    from dataclasses import fields

    words = []
    for field in fields(machine):
        value = getattr(machine, field.name)
        if value != field.default:
            words += [f"--{field.name}", f"{value:g}" if field.name == "gpus" else str(value)]
    return words


def _print_report(found: Report, where: Sequence[str]) -> None:
    """Print the result of a search; ``where`` are the options of the data."""
    from ferkit.search.report import LEADERBOARD, WINNER, summary

    facts = summary(found.search)
    counts = ", ".join(f"{count} {what}" for what, count in facts["trials"].items() if count)
    print(f"{found.search.folder}: {counts}; {facts['refused']['all']} configurations refused")
    for line in found.notes:
        remark(line)
    best = facts["best"]
    if best is None:
        print("no trial finished")
        return
    low, high = (100 * (end or 0) for end in best["interval"])
    print(
        f"best: trial {best['trial']}, {100 * best['accuracy']:.2f} % on {facts['split']} "
        f"({low:.2f}-{high:.2f}; {best['protocol']}), {best['mmac']:.1f} MMAC, "
        f"{best['parameters']:,} parameters"
    )
    print(f"table: {found.search.folder / LEADERBOARD}")
    training = ["ferkit", "train", "--recipe", str(found.search.folder / WINNER), *where]
    print(f"train it fully: {command_line(training)}")


def _print_trials(trials: Sequence[Trial]) -> None:
    """Print the trials of a random search."""
    from rich.table import Table

    from ferkit.search.space import format_values

    table = Table("trial", "MMAC", "parameters", "configuration", box=None, pad_edge=False)
    for t in trials:
        table.add_row(str(t.number), f"{t.mmac:.1f}", f"{t.parameters:,}", format_values(t.values))
    console().print(table)
    print(f"{sum(len(t.refused) for t in trials)} configurations refused")


class _Progress:
    """A callback that shows a live table on a terminal, elsewhere a line per event; quiet: remarks only."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.live import Live

        self.search: Search | None = None
        self.slots, self.quiet = 1, quiet
        self.console = console(stderr=True)
        self.live = Live(
            console=self.console, get_renderable=self.table, refresh_per_second=2, transient=True
        )

    def on_search_begin(self, search: Search, slots: int) -> None:
        """Print what is searched and show the table."""
        from ferkit.search.report import method_of

        self.search, self.slots = search, slots
        if self.quiet:
            return
        self._print(
            f"{search.space.name}: {method_of(search)}, {search.settings.trials} trials, {slots} at a time, "
            f"seed {search.settings.seed}; {len(search.refused)} configurations refused; {search.folder}"
        )
        if self.console.is_terminal:
            self.live.start()

    def on_trial_begin(self, trial: Trial) -> None:
        """Print the trial, unless the table shows it."""
        from ferkit.search.space import format_values

        if not self.live.is_started:
            self._print(f"trial {trial.number} started: {trial.mmac:.1f} MMAC; {format_values(trial.values)}")

    def on_epoch_end(self, trial: Trial) -> None:
        """Leave it to the table."""

    def on_trial_retry(self, trial: Trial) -> None:
        """Print which worker was lost."""
        self._print(f"trial {trial.number} is retried ({len(trial.lost)}): {trial.lost[-1]}")

    def on_trial_end(self, trial: Trial) -> None:
        """Print the result, unless the table shows it."""
        if self.live.is_started and trial.state != "failed":
            return
        line = f"trial {trial.number} {trial.state}"
        if trial.accuracy is not None:
            line += f": {100 * trial.accuracy:.2f} % after epoch {len(trial.history)}"
        self._print(f"{line}{f' ({trial.reason})' if trial.reason else ''}; {self.head()}")

    def log(self, message: str) -> None:
        """Print a line above the table."""
        self.console.print(message, soft_wrap=True)

    def _print(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Remove the table."""
        if self.live.is_started:
            self.live.stop()

    def head(self) -> str:
        """Return the progress of the whole search, with an estimate of the time left."""
        from ferkit.search.study import ENDS

        assert self.search is not None
        settings, trials = self.search.settings, list(self.search.trials.values())
        text = f"{sum(t.state in ENDS for t in trials)} of {settings.trials} done"
        if best := self.search.finished()[:1]:
            text += f", best {100 * (best[0].accuracy or 0):.2f} % (trial {best[0].number})"
        seconds = [row["seconds"] for t in trials for row in t.history]
        if not seconds:
            return text
        # The epochs that are left, at the mean time of those done.
        usual = sum(t.epochs for t in trials) / len(trials)
        open_epochs = sum(t.epochs - len(t.history) for t in trials if t.state not in ENDS)
        epochs = open_epochs + usual * max(settings.trials - len(trials), 0)
        left = epochs * sum(seconds) / len(seconds) / self.slots
        early = settings.asha or settings.max_hours is not None or settings.max_epochs is not None
        return f"{text}, {'at most' if early else 'about'} {in_words(left)} left"

    def table(self) -> Any:
        """Return the table: running trials, then the best."""
        from rich.table import Table
        from rich.text import Text

        from ferkit.search.space import format_values
        from ferkit.search.study import ENDS

        if self.search is None:
            return Text("")
        table = Table(box=None, pad_edge=False, title=self.head(), title_justify="left", expand=True)
        table.add_column("trial", justify="right")
        table.add_column("configuration", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("parameters", "MMAC", "epoch", "accuracy", "state", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        trials = list(self.search.trials.values())
        ended = [t for t in trials if t.state in ENDS]
        ended.sort(key=lambda t: (ENDS.index(t.state), -(t.accuracy or 0.0)))
        for t in [*(t for t in trials if t.state == "running"), *ended[:_SHOWN]]:
            table.add_row(
                str(t.number),
                Text(format_values(t.values)),
                f"{t.parameters:,}",
                f"{t.mmac:.1f}",
                f"{len(t.history)}/{t.epochs}",
                "" if t.accuracy is None else f"{100 * t.accuracy:.2f} %",
                t.state + (f", {len(t.lost)} retries" if t.lost else ""),
                _left(t),
            )
        if len(ended) > _SHOWN:
            table.caption = f"and {len(ended) - _SHOWN} more that ended"
        return table


def _left(trial: Trial) -> str:
    """Return the time that a running trial needs, or how long it has been starting."""
    if trial.state != "running":
        return ""
    if not trial.history:
        return f"since {in_words(time.time() - trial.began)}"
    return in_words((trial.epochs - len(trial.history)) * trial.history[-1]["seconds"])
