"""``ferkit compare``: two models on the same faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferkit.cli.common import (
    DataOption,
    DropFlatOption,
    JsonFileOption,
    TtaOption,
    VotesOption,
    as_tta_mode,
    load_keras,
    new_app,
    refuse_options,
    remark,
)

app = new_app()


@app.command()
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A model file, a run's folder, or the name of an embedded model.",
            show_default=False,
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    *,
    data: DataOption,
    votes: VotesOption = None,
    split: Annotated[
        str, typer.Option("--split", help="Training, PublicTest, PrivateTest, or all faces (all).")
    ] = "PublicTest",
    tta: TtaOption = "none",
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy", help="Compare in this label set alone.", show_default="all that both models have"
        ),
    ] = None,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write text and JSON to this folder.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Threads of ONNX Runtime; not for runs.", show_default="the usable cores"
        ),
    ] = None,
) -> None:
    """Test whether two models differ significantly on the same labelled faces.

    Accuracy and negative log-likelihood of both, the paired differences with their 95 % intervals, and
    McNemar's exact test. With --votes also on the FER+ labels.
    """
    mode = as_tta_mode(tta)
    if runs := [model for model in (first, second) if Path(model).is_dir()]:
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
