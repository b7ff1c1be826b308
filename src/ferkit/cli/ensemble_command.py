"""``ferkit ensemble``: join models into one file that votes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import DropFlatOption, VotesOption, new_app, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ferkit.export.ensemble_fit import SplitVote

app = new_app()

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="Two or more model files, or names of embedded models.", show_default=False
    ),
]
OutputOption = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="One number per model, such as 1,2,1.", show_default="equal"),
]
FitOption = Annotated[bool, typer.Option("--fit", help="Fit the weights on --data.")]
FitDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Labelled faces to fit the temperature on, and with --fit the weights.",
        show_default=False,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split", help="Of --data: Training, PublicTest or PrivateTest.", show_default="PublicTest"
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the ensemble.", show_default="the file's")
]
TaxonomyOption = Annotated[
    str | None,
    typer.Option("--taxonomy", help="The output that users meet.", show_default="the first model's"),
]
CardOption = Annotated[
    Path | None, typer.Option("--card", help="Write the model card as well (Markdown).", show_default=False)
]
JsonFileOption = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file as well.", show_default=False)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads of ONNX Runtime, with --data.", show_default="the usable cores"
    ),
]


@app.command()
def ensemble(
    models: ModelsArgument,
    *,
    out: OutputOption,
    weights: WeightsOption = None,
    fit: FitOption = False,
    data: FitDataOption = None,
    votes: VotesOption = None,
    split: SplitOption = None,
    drop_flat: DropFlatOption = False,
    name: NameOption = None,
    taxonomy: TaxonomyOption = None,
    card: CardOption = None,
    json: JsonFileOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Join models into one file that votes: the weighted mean of their probabilities.

    With --data the vote gets a temperature of its own, with --fit also fitted weights; what that is worth is
    measured on faces that each fit had not seen.
    """
    from ferkit.core import files
    from ferkit.data import faces_digest, load_data, select_faces
    from ferkit.evaluation.ensemble_weights import LEAST_FACES
    from ferkit.evaluation.evaluate import SELECTION_SPLIT
    from ferkit.evaluation.report import MIB
    from ferkit.export.card import render_card
    from ferkit.export.ensemble import (
        combine,
        default_name,
        default_of,
        load_member,
        shared_taxonomies,
        write_ensemble,
    )
    from ferkit.export.ensemble_fit import metrics_of, vote_on_split, votes_as_json, weights_of

    given = _parse_weights(weights)
    if len(models) < 2:
        raise typer.BadParameter("two or more are needed", param_hint="MODEL...")
    if given is not None and len(given) != len(models):
        raise typer.BadParameter(f"{len(models)} models, {len(given)} weights", param_hint="--weights")
    if fit and given is not None:
        raise typer.BadParameter("--fit finds the weights; leave out --weights", param_hint="--fit")
    wanting = {
        "--fit": fit,
        "--votes": votes,
        "--json": json,
        "--split": split,
        "--drop-flat": drop_flat,
        "--threads": threads,
    }
    if data is None and (given_without := [option for option, value in wanting.items() if value]):
        raise typer.BadParameter(
            f"without it there is no use for {', '.join(given_without)}", param_hint="--data"
        )
    split = SELECTION_SPLIT if split is None else split
    _refuse_overwriting(models, [path for path in (out, card, json) if path is not None])
    members = [load_member(model) for model in models]
    default = default_of(members, taxonomy)
    fitted: tuple[SplitVote, ...] = ()
    source: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    if data is not None:
        side, by = members[0].info.input_size, members[0].info.name
        whole = load_data(data, votes=votes, size=side, needed_by=by, heads=shared_taxonomies(members))
        dataset = select_faces(whole, drop_flat=drop_flat)
        fitted = vote_on_split(
            members, dataset, split=split, weights=given, fit_weights=fit, threads=threads, progress=remark
        )
        source = {
            "source": Path(whole.source).name,
            "fingerprint": whole.fingerprint,
            "faces": faces_digest(whole),
            "fitted": {vote.taxonomy: vote.fit for vote in fitted},
        }
        if any(vote.fit != "nothing" for vote in fitted):
            source["fitted_on"] = split
        rows = metrics_of(members, fitted, dataset, split)
    content, info = combine(
        members,
        name=name or default_name(out),
        weights=weights_of(members, fitted, given),
        temperatures={vote.taxonomy: vote.fitted.vote.temperature for vote in fitted},
        default_taxonomy=default,
        metrics=rows,
        data=source,
    )
    write_ensemble(content, info, members, out)
    fitted_to = {vote.taxonomy for vote in fitted}
    for head in info.taxonomies:
        if head.id not in fitted_to:
            lacks = "no --data" if data is None else f"no labels for it in {data}, {split}"
            shared = bool(fitted) and fitted[0].weights_fitted
            weighted = f"; its weights are those of {fitted[0].taxonomy}" if shared else ""
            remark(f"{head.id}: {lacks}, so the vote is not calibrated in it (temperature 1){weighted}")
    for vote in fitted:
        if vote.fit == "nothing":
            remark(
                f"{vote.labels}: to {vote.fitted.n} labelled faces in {split} nothing is fitted, which takes "
                f"{LEAST_FACES}, so the temperature is 1"
                + (f" and the weights are those of {fitted[0].taxonomy}" if fitted[0].weights_fitted else "")
            )
        elif vote.fitted.vote.temperature == 1:
            remark(
                f"{vote.labels}: the labelled faces in {split} do not determine a temperature (all are told "
                "apart, or none), so it is 1"
            )
        print(_format_vote(models, vote, split) + "\n")
    print(
        f"wrote {out}: {len(info.members)} of {len(members)} members, {info.parameters:,} parameters, "
        f"{info.mmac:.4g} MMAC, {out.stat().st_size / MIB:.2f} MiB"
    )
    if card is not None:
        files.write_text(card, render_card(info, out.stat().st_size))
        print(f"{card}: the model card")
    if json is not None:
        files.write_json(json, {"split": split, "data": source, "votes": votes_as_json(members, fitted)})


def _refuse_overwriting(models: Sequence[str], outputs: Sequence[Path]) -> None:
    """Refuse to write over what votes.

    Raises:
        OutputError: If an output is the file of a member, by whatever name.
        ModelFileError: If there is no such member.
    """
    from ferkit.core.errors import OutputError
    from ferkit.core.modelfile import resolve_model

    for model in models:
        member = resolve_model(model)
        for path in outputs:
            if path.exists() and path.samefile(member):
                raise OutputError(
                    f"{path} is the member {model}, which would be overwritten; write to another file, or "
                    "leave this one out of the members"
                )


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 1,2,1", param_hint="--weights"
        ) from None


def _format_vote(models: Sequence[str], vote: SplitVote, split: str) -> str:
    from ferkit.evaluation.ensemble_weights import Figures
    from ferkit.evaluation.report import split_label
    from ferkit.evaluation.text import percent, table

    def line(what: str, weight: str, figures: Figures) -> tuple[str, ...]:
        low, high = vote.fitted.interval(figures)
        return (
            what,
            weight,
            percent(figures.accuracy),
            f"{percent(low)}-{percent(high)}",
            f"{figures.nll:.4f}",
            f"{figures.ece:.4f}",
        )

    fitted = vote.fitted
    rows: list[Sequence[str]] = [("", "weight", "accuracy %", "95 % interval", "NLL", "ECE")]
    rows += [
        line(models[k], f"{weight:.3f}", figures)
        for k, weight, figures in zip(vote.voters, fitted.vote.weights, fitted.members, strict=True)
    ]
    if vote.weights_fitted and fitted.equal is not None:
        rows.append(line("vote, equal weights, temperature out of fold", "", fitted.equal))
    if fitted.out_of_fold is None:
        rows.append(line("vote, nothing fitted", "", fitted.in_sample))
    else:
        rows.append(line(f"vote, {vote.fit} out of fold", "", fitted.out_of_fold))
        rows.append(line(f"vote, {vote.fit} in sample (not to be quoted)", "", fitted.in_sample))
    return (
        f"{vote.labels}, {split_label(split)}, {fitted.n:,} faces, single view, "
        f"temperature {fitted.vote.temperature:.3f}\n{table(rows)}"
    )
