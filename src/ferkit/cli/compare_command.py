"""``ferkit compare``: two models on the same faces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ferkit.cli.common import (
    MODEL_HELP,
    DataOption,
    DropFlatOption,
    JsonFileOption,
    RuntimeThreadsOption,
    TtaOption,
    VotesOption,
    as_tta_mode,
    load_keras,
    new_app,
    option,
    refuse_options,
    remark,
)

app = new_app()


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    *,
    data: DataOption,
    votes: VotesOption = None,
    split: Annotated[
        str, option("--split", "Training, PublicTest, PrivateTest, or all.", "PublicTest")
    ] = "PublicTest",
    tta: TtaOption = "none",
    taxonomy: Annotated[
        str | None, option("--taxonomy", "Compare in this label set alone.", "all that both models have")
    ] = None,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: Annotated[Path | None, option("--out", "Write text and JSON to this folder.")] = None,
    threads: RuntimeThreadsOption = None,
) -> None:
    """Test whether two models differ significantly on the same labelled faces.

    Accuracy and negative log-likelihood of both, the paired differences with their 95 % intervals, and
    McNemar's exact test. With --votes also on the FER+ labels.
    """
    mode = as_tta_mode(tta)
    if runs := [model for model in (first, second) if os.path.isdir(model)]:  # noqa: PTH112
        if len(runs) == 2:
            refuse_options(
                {"--threads": threads},
                "it is for model files; a run uses the threads of its backend",
            )
        load_keras()
    from ferkit.core import files
    from ferkit.evaluation.compare import compare as measure

    comparison = measure(
        first,
        second,
        data,
        votes=votes,
        split=split,
        tta=mode,
        taxonomy=taxonomy,
        drop_flat=drop_flat,
        threads=threads,
    )
    print(comparison)
    if json is not None:
        files.write_json(json, comparison.to_dict())
    if out is not None:
        files.write_text(out / "comparison.txt", f"{comparison}\n")
        files.write_json(out / "comparison.json", comparison.to_dict())
        remark(f"wrote 2 files to {out}")
