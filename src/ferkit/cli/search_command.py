"""``ferkit search``: many networks drawn from a space and trained, with a live table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkit.cli.common import DataOption, VotesOption, command_line, console, data_options, new_app, remark

app = new_app()

_SHOWN = 12
"""Trials that the live table shows beside those that run: the best ones."""


def _list_spaces(wanted: bool) -> None:
    """Print the shipped spaces and leave."""
    if not wanted:
        return
    from rich.table import Table

    from ferkit.search.space import load_space, shipped_spaces

    table = Table("space", "parameters", "from recipe", "what it searches", box=None, pad_edge=False)
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
        typer.Argument(help="A shipped space's name (see --list) or a TOML file.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The search's folder.  [default: runs/search-SPACE]")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", "-n", help="Configurations to train.  [default: 20]", show_default=False),
    ] = None,
    votes: VotesOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Go on with this search; --trials, --max-epochs and --max-hours may be changed.",
            show_default=False,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: start failed trials again.")
    ] = False,
    method: Annotated[
        str | None,
        typer.Option("--method", help="random, or tpe (Optuna).  [default: random]", show_default=False),
    ] = None,
    asha: Annotated[bool, typer.Option("--asha", help="Stop poor trials early.")] = False,
    grace: Annotated[
        int | None,
        typer.Option("--grace", help="ASHA: epochs for every trial.  [default: 1]", show_default=False),
    ] = None,
    reduction: Annotated[
        float | None,
        typer.Option("--reduction", help="ASHA: one in so many goes on.  [default: 3]", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of what is drawn.  [default: 0]", show_default=False),
    ] = None,
    max_mmac: Annotated[
        float | None,
        typer.Option(
            "--max-mmac", help="Refuse networks of more million multiplications.", show_default=False
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option("--max-params", help="Refuse networks of more parameters.", show_default=False),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(
            "--max-hours",
            help="Start no trial once all have trained so long together.",
            show_default=False,
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(
            "--max-epochs",
            help="Start no trial once all have done so many epochs together.",
            show_default=False,
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option("--retries", help="For a trial whose worker is lost.  [default: 3]", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A key of the recipe, for all trials: epochs=3", show_default=False),
    ] = None,
    cores: Annotated[int, typer.Option("--cores", help="Cores for each trial.")] = 1,
    gpus: Annotated[float, typer.Option("--gpus", help="GPUs for each trial; a fraction shares one.")] = 0.0,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel", help="Trials at a time.  [default: what cores and GPUs allow]", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="A Ray cluster: auto, on one of its nodes, or host:port.", show_default=False
        ),
    ] = None,
    draw_only: Annotated[
        bool, typer.Option("--draw-only", help="Show what random search would train, and leave.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the last lines.")] = False,
    spaces: Annotated[  # noqa: ARG001
        bool, typer.Option("--list", help="List the shipped spaces.", callback=_list_spaces, is_eager=True)
    ] = False,
) -> None:
    """Search networks and recipes: draw configurations from a space and train each for a few epochs.

    Every trial is a run's folder in OUT/trials. The search leaves leaderboard.csv, pictures with their
    numbers, and winner.toml, which `ferkit train --recipe` takes. Ctrl-C keeps what is done and --resume
    goes on.
    """
    from ferkit.core.errors import FerkitError, OutputError, SearchError
    from ferkit.data import load_data
    from ferkit.search import engine, report
    from ferkit.search.records import Settings
    from ferkit.search.space import load_space

    options: dict[str, Any] = {
        "method": method,
        "asha": asha or None,
        "grace": grace,
        "reduction": reduction,
        "seed": seed,
        "max_mmac": max_mmac,
        "max_params": max_params,
        "retries": retries,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    budget: dict[str, Any] = {"max_hours": max_hours, "max_epochs": max_epochs}
    if (space is None) == (resume is None):
        raise SearchError("name a space to search (see --list), or a search to go on with by --resume")
    if resume is not None and (chosen or overrides or out is not None or draw_only):
        raise SearchError(
            "--resume goes on with the search as it was; it takes only --trials, --max-hours, --max-epochs, "
            "--retry-failed and options that say where to run"
        )
    if not asha and (grace is not None or reduction is not None):
        raise typer.BadParameter("--grace and --reduction are ASHA's; they go with --asha")
    if draw_only and method == "tpe":
        raise typer.BadParameter(
            "--draw-only shows what random search would train; what TPE draws is known only as trials end"
        )
    if retry_failed and resume is None:
        raise SearchError("--retry-failed goes with --resume")
    machine = engine.Machine(cores=cores, gpus=gpus, parallel=parallel, address=address)
    of_training = any(value is not None for value in (out, max_hours, max_epochs, retries))
    if draw_only and (asha or of_training or machine != engine.Machine()):
        raise typer.BadParameter(
            "--draw-only trains and writes nothing; it takes only what decides the draw: --trials, --seed, "
            "--max-mmac, --max-params, --set"
        )
    command = ["ferkit", *sys.argv[1:]]
    watcher = _Quiet() if quiet else _Live()
    where = data_options(data, votes)
    if resume is None:
        settings = Settings(trials=20 if trials is None else trials, **chosen, **budget)
        what = load_space(str(space), overrides or ())
        folder = out or Path("runs") / f"search-{what.name}"
    else:
        folder = resume
    dataset = load_data(data, votes=votes)
    if resume is None and draw_only:
        _show_drawn(*engine.draw(what, dataset, settings))
        return
    try:
        if resume is None:
            engine.search(what, dataset, folder, settings, machine=machine, watcher=watcher, command=command)
        else:
            engine.resume(
                folder,
                dataset,
                trials=trials,
                **budget,
                retry_failed=retry_failed,
                machine=machine,
                watcher=watcher,
                command=command,
            )
    except (KeyboardInterrupt, FerkitError) as error:
        watcher.close()
        # What ends a search before it begins leaves nothing to report, or an earlier one.
        if watcher.search is not None:
            try:
                _say(report.write_report(folder), where)
            except OutputError as unwritten:
                remark(f"no report: {unwritten}")
            word = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended by an error"
            again = ["ferkit", "search", "--resume", str(folder), *where, *_machine_options(machine)]
            remark(f"{word}; go on with: {command_line(again)}")
        raise
    finally:
        watcher.close()
    _say(report.write_report(folder), where)


def _machine_options(machine: Any) -> list[str]:
    """Return the options that say where to run, but for those that are usual."""
    from dataclasses import fields

    words = []
    for field in fields(machine):
        value = getattr(machine, field.name)
        if value != field.default:
            words += [f"--{field.name}", f"{value:g}" if field.name == "gpus" else str(value)]
    return words


def _say(found: Any, where: Sequence[str]) -> None:
    """Print what a search found; ``where`` names the data as options."""
    from ferkit.search.report import LEADERBOARD, WINNER, interval, summary

    facts = summary(found.search)
    counts = ", ".join(f"{count} {what}" for what, count in facts["trials"].items() if count)
    print(f"{found.search.folder}: {counts}; {facts['refused']['all']} configurations refused")
    for line in found.remarks:
        remark(line)
    if found.best is None:
        print("no trial finished")
        return
    best = found.best
    low, high = interval(best.accuracy, found.faces)
    print(
        f"best: trial {best.number}, {found.split} {100 * best.accuracy:.2f} % "
        f"({100 * (low or 0):.2f}-{100 * (high or 0):.2f}; single view, last epoch, on the split that "
        f"chose it), {best.mmac:.1f} MMAC, {best.parameters:,} parameters"
    )
    print(f"table: {found.search.folder / LEADERBOARD}")
    training = ["ferkit", "train", "--recipe", str(found.search.folder / WINNER), *where]
    print(f"train it to the end: {command_line(training)}")


def _show_drawn(proposals: Any, refused: Any) -> None:
    """Print what a random search would train."""
    from rich.table import Table

    from ferkit.search.space import spell

    table = Table("trial", "MMAC", "parameters", "configuration", box=None, pad_edge=False)
    for proposal in proposals:
        table.add_row(
            str(proposal.number),
            f"{proposal.cost.mmac:.1f}",
            f"{proposal.cost.parameters:,}",
            spell(proposal.values),
        )
    console().print(table)
    print(f"{len(refused)} configurations refused")


class _Quiet:
    """Says only what people must know."""

    def __init__(self) -> None:
        self.search: Any = None

    def began(self, search: Any, slots: int) -> None:  # noqa: ARG002
        """Keep the search."""
        self.search = search

    def changed(self, trial: Any, what: str) -> None:
        """Say nothing."""

    def remarked(self, text: str) -> None:
        """Say it."""
        remark(text)

    def close(self) -> None:
        """Leave nothing behind."""


class _Live(_Quiet):
    """A table that follows the trials; on a terminal in place, elsewhere a line per event."""

    def __init__(self) -> None:
        from rich.live import Live

        super().__init__()
        self.console = console(stderr=True)
        self.slots = 1
        self.live = Live(
            console=self.console, get_renderable=self.table, refresh_per_second=2, transient=True
        )

    def began(self, search: Any, slots: int) -> None:
        """Say what is searched and put the table up."""
        self.search, self.slots = search, slots
        settings = search.settings
        self.console.print(
            f"{search.space.name}: {settings.method}{' with ASHA' if settings.asha else ''}, "
            f"{settings.trials} trials, {slots} at a time, seed {settings.seed}; {len(search.refused)} "
            f"configurations refused; {search.folder}"
        )
        if self.console.is_terminal:
            self.live.start()

    def changed(self, trial: Any, what: str) -> None:
        """Print a line for what happened, but on a terminal only for what the table does not keep."""
        from ferkit.search.space import spell

        if what == "epoch" or (self.console.is_terminal and what in ("started", "stopped", "finished")):
            return
        line = f"trial {trial.number} {what}"
        if what == "started":
            line += f": {trial.mmac:.1f} MMAC; {spell(trial.values)}"
        elif what == "retried":
            line += f" ({trial.retries}): its worker was lost"
        else:
            if trial.accuracy is not None:
                line += f": {100 * trial.accuracy:.2f} % after epoch {len(trial.history)}"
            line += f" ({trial.reason})" if trial.reason else ""
            line += f"; {self.head()}"
        self.console.print(line, soft_wrap=True)

    def remarked(self, text: str) -> None:
        """Print it above the table."""
        self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Take the table down."""
        if self.live.is_started:
            self.live.stop()

    def head(self) -> str:
        """Return how far the whole search is."""
        from ferkit.search.records import ENDS

        trials = list(self.search.trials.values())
        done = sum(t.state in ENDS for t in trials)
        best = self.search.finished()[:1]
        text = f"{done} of {self.search.settings.trials} done"
        if best:
            text += f", best {100 * best[0].accuracy:.2f} % (trial {best[0].number})"
        left = self.seconds_left()
        if left is None:
            return text
        settings = self.search.settings
        early = settings.asha or settings.max_hours is not None or settings.max_epochs is not None
        return f"{text}, {'at most' if early else 'about'} {_duration(left)} left"

    def seconds_left(self) -> float | None:
        """Return an estimate for the whole search: the epochs left at the mean time of those done."""
        trials = list(self.search.trials.values())
        rows = [row["seconds"] for t in trials for row in t.history]
        if not rows:
            return None
        each = [t.epochs for t in trials if t.epochs]
        usual = sum(each) / len(each) if each else 0.0
        open_ones = [t for t in trials if t.state in ("running", "waiting")]
        epochs = sum((t.epochs or usual) - len(t.history) for t in open_ones)
        epochs += usual * max(self.search.settings.trials - len(trials), 0)
        return float(epochs * (sum(rows) / len(rows)) / self.slots)

    def table(self) -> Any:
        """Return the table as it is now."""
        from rich.table import Table
        from rich.text import Text

        from ferkit.search.records import ENDS
        from ferkit.search.space import spell

        if self.search is None:
            return Text("")
        table = Table(box=None, pad_edge=False, title=self.head(), title_justify="left", expand=True)
        table.add_column("trial", justify="right")
        table.add_column("configuration", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("weights", justify="right")
        table.add_column("MMAC", justify="right")
        for name in ("epoch", "accuracy", "state", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        trials = list(self.search.trials.values())
        running = [t for t in trials if t.state == "running"]
        ended = [t for t in trials if t.state in ENDS]
        order = {"finished": 0, "stopped": 1, "failed": 2}
        ended.sort(key=lambda t: (order[t.state], -(t.accuracy or 0.0)))
        for trial in [*running, *ended[:_SHOWN]]:
            table.add_row(
                str(trial.number),
                Text(spell(trial.values)),
                f"{trial.parameters:,}",
                f"{trial.mmac:.1f}",
                f"{len(trial.history)}/{trial.epochs}",
                "" if trial.accuracy is None else f"{100 * trial.accuracy:.2f} %",
                trial.state + (f", {trial.retries} retries" if trial.retries else ""),
                _left(trial),
            )
        if len(ended) > _SHOWN:
            table.caption = f"and {len(ended) - _SHOWN} more that ended"
        return table


def _left(trial: Any) -> str:
    """Return a running trial's time left, or how long it has been starting."""
    if trial.state != "running":
        return ""
    if not trial.history:
        return f"since {_duration(time.time() - trial.began)}"
    return _duration((trial.epochs - len(trial.history)) * trial.history[-1]["seconds"])


def _duration(seconds: float) -> str:
    """Return a duration with two units at most."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
