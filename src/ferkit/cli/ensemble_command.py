"""``ferkit ensemble``: join models into one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferkit.cli.common import DropFlatOption, JsonFileOption, VotesOption, new_app, option, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ferkit.core.modelfile import ModelInfo
    from ferkit.evaluation.ensemble_weights import EnsembleFit
    from ferkit.export.ensemble import Member

app = new_app()


@app.command()
def ensemble(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Two or more model files, or names of `ferkit models`.", show_default=False
        ),
    ],
    *,
    out: Annotated[Path, option("--out -o", "The file to write.")],
    weights: Annotated[
        str | None, option("--weights", "One number per model, such as 1,2,1.", "equal")
    ] = None,
    fit: Annotated[bool, option("--fit", "Fit the weights on --data.")] = False,
    data: Annotated[
        str | None, option("--data", "Labelled faces to fit the temperature on, and with --fit the weights.")
    ] = None,
    votes: VotesOption = None,
    split: Annotated[
        str | None, option("--split", "Of --data: Training, PublicTest or PrivateTest.", "PublicTest")
    ] = None,
    drop_flat: DropFlatOption = False,
    name: Annotated[str | None, option("--name", "Name of the ensemble.", "the file's")] = None,
    taxonomy: Annotated[str | None, option("--taxonomy", "The default output.", "the first model's")] = None,
    card: Annotated[Path | None, option("--card", "Write the model card as well (Markdown).")] = None,
    notes: Annotated[str, option("--notes", "Free text for the model card.")] = "",
    json: JsonFileOption = None,
    threads: Annotated[
        int | None, option("--threads", "Threads of ONNX Runtime, with --data.", "all cores", min=1)
    ] = None,
) -> None:
    """Join models into one file: the weighted mean of their probabilities.

    With --data the ensemble gets a temperature, with --fit fitted weights as well; both are evaluated out of
    fold. As `ferkit export` does, it then also fits the output basic, if there are FER+ votes, coverage
    curves, and temperatures for blurred and dark faces. Members are networks: an ensemble of which nothing
    was fitted is replaced by its members.
    """
    from ferkit.core import files
    from ferkit.data import load_data
    from ferkit.evaluation.evaluate import SELECTION_SPLIT
    from ferkit.export.card import render_card
    from ferkit.export.ensemble import export_ensemble, load_member, shared_taxonomies

    given = _parse_weights(weights)
    if len(models) < 2:
        raise typer.BadParameter("two or more are needed", param_hint="MODEL")
    if given is not None and len(given) != len(models):
        raise typer.BadParameter(f"{len(models)} models, {len(given)} weights", param_hint="--weights")
    if fit and given is not None:
        raise typer.BadParameter("--fit finds the weights; leave out --weights", param_hint="--fit")
    with_data = {
        "--fit": fit,
        "--votes": votes,
        "--json": json,
        "--split": split,
        "--drop-flat": drop_flat,
        "--threads": threads,
    }
    if data is None and (unused := [option for option, value in with_data.items() if value]):
        raise typer.BadParameter(f"required with {', '.join(unused)}", param_hint="--data")
    split = SELECTION_SPLIT if split is None else split
    _refuse_overwriting(models, [path for path in (out, card, json) if path is not None])
    members = [load_member(model) for model in models]
    dataset = None
    if data is not None:
        first = members[0].info
        heads = shared_taxonomies(members)
        dataset = load_data(data, votes=votes, size=first.input_size, needed_by=first.name, heads=heads)
    info, fits = export_ensemble(
        members,
        out,
        name=name or "",
        weights=given,
        default_taxonomy=taxonomy,
        dataset=dataset,
        split=split,
        drop_flat=drop_flat,
        fit_weights=fit,
        threads=threads,
        notes=notes,
        progress=remark,
    )
    for line in _notes(info, fits, "no --data" if data is None else f"no labels for it in {data}, {split}"):
        remark(line)
    for found in fits:
        print(_format_fit(models, found, split) + "\n")
    size = out.stat().st_size
    print(
        f"wrote {out}: {len(info.members)} networks from {len(models)} models, "
        f"{info.parameters:,} parameters, {info.mmac:.4g} MMAC, {size / 2**20:.2f} MiB"
    )
    if card is not None:
        files.write_text(card, render_card(info, size))
        print(f"{card}: the model card")
    if json is not None:
        files.write_json(json, _as_json(info, fits, split, members))


def _refuse_overwriting(models: Sequence[str], outputs: Sequence[Path]) -> None:
    """Refuse to overwrite a member, by whatever name.

    Raises:
        OutputError: If an output is the file of a member.
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


def _notes(info: ModelInfo, fits: Sequence[EnsembleFit], lacks: str) -> list[str]:
    """Return a line for each taxonomy that is not calibrated, with the reason."""
    from ferkit.evaluation.ensemble_weights import LEAST_FACES

    fitted = [fit.taxonomy for fit in fits if fit.fit == "weights and temperature"]
    first = f"; its weights are those of {fitted[0]}" if fitted else ""
    labelled = {fit.taxonomy for fit in fits}
    lines = [
        f"{head.id}: {lacks}, so it is not calibrated (temperature 1){first}"
        for head in info.taxonomies
        if head.id not in labelled and head.join is None
    ]
    for fit in fits:
        if fit.fit == "nothing":
            lines.append(
                f"{fit.labels}: {fit.in_sample.n} labelled faces are too few to fit anything ({LEAST_FACES} "
                f"are needed), so the temperature is 1{first}"
            )
        elif fit.weighting.temperature == 1:
            lines.append(
                f"{fit.labels}: the labelled faces do not determine a temperature (all predictions are "
                "right, or none), so it is 1"
            )
    return lines


def _format_fit(models: Sequence[str], fit: EnsembleFit, split: str) -> str:
    from ferkit.evaluation.report import split_label
    from ferkit.evaluation.text import percent, table

    weights = [f"{weight:.3f}" for weight in fit.weighting.weights]
    shown = list(zip([models[k] for k in fit.members], weights, fit.alone, strict=True))
    if fit.out_of_fold is None:
        shown.append(("ensemble, nothing fitted", "", fit.in_sample))
    else:
        if fit.equal is not None and fit.fit != "temperature":
            shown.append(("ensemble, equal weights, temperature out of fold", "", fit.equal))
        shown.append((f"ensemble, {fit.fit} out of fold", "", fit.out_of_fold))
        shown.append((f"ensemble, {fit.fit} in sample (not to be quoted)", "", fit.in_sample))
    rows: list[Sequence[str]] = [("", "weight", "accuracy %", "95 % interval", "NLL", "ECE")]
    for name, weight, scores in shown:
        interval = "-".join(percent(end) for end in scores.interval)
        figures = (percent(scores.accuracy), interval, f"{scores.nll:.4f}", f"{scores.ece:.4f}")
        rows.append((name, weight, *figures))
    return (
        f"{fit.labels}, {split_label(split)}, {fit.in_sample.n:,} faces, tta none, "
        f"temperature {fit.weighting.temperature:.3f}\n{table(rows)}"
    )


def _as_json(
    info: ModelInfo, fits: Sequence[EnsembleFit], split: str, members: Sequence[Member]
) -> dict[str, object]:
    """Return the figures as plain dicts and lists: shares in 0..1, unrounded."""
    from dataclasses import asdict

    return {
        "split": split,
        "data": info.training.model_dump(include={"source", "fingerprint", "faces", "fitted", "fitted_on"}),
        "models": [{"name": member.info.name, "sha256": member.sha256} for member in members],
        "fits": [
            {key: value for key, value in asdict(fit).items() if key not in ("predictions", "held_out")}
            for fit in fits
        ],
    }
