"""``ferkit compare``: two models on the same faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferkit.cli.common import (
    DataOption,
    DropFlatOption,
    JsonFileOption,
    VotesOption,
    as_tta_mode,
    load_keras,
    new_app,
    remark,
)

app = new_app()

FirstArgument = Annotated[
    str,
    typer.Argument(
        metavar="A",
        help="A model file, a run's folder, or the name of an embedded model.",
        show_default=False,
    ),
]
SecondArgument = Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)]
SplitOption = Annotated[
    str,
    typer.Option("--split", help="Training, PublicTest, PrivateTest, or all faces (all)."),
]
TtaOption = Annotated[str, typer.Option("--tta", help="Test-time augmentation: none, flip or ten-crop.")]
TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        "--taxonomy", help="Compare in this label set alone.", show_default="all that both answer in"
    ),
]
FolderOption = Annotated[
    Path | None, typer.Option("--out", help="Write text and JSON to this folder.", show_default=False)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Threads of ONNX Runtime; not for runs.", show_default="the usable cores"
    ),
]


@app.command()
def compare(
    first: FirstArgument,
    second: SecondArgument,
    *,
    data: DataOption,
    votes: VotesOption = None,
    split: SplitOption = "PublicTest",
    tta: TtaOption = "none",
    taxonomy: TaxonomyOption = None,
    drop_flat: DropFlatOption = False,
    json: JsonFileOption = None,
    out: FolderOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Say whether labelled faces tell two models apart.

    Both answer the same faces: accuracy and negative log-likelihood of each, the differences with 95 %
    intervals of the pairs, and McNemar's exact test. With --votes also on the FER+ labels.
    """
    as_tta_mode(tta)
    if runs := [model for model in (first, second) if Path(model).is_dir()]:
        if threads is not None and len(runs) == 2:
            raise typer.BadParameter(
                "it is for model files; a run's network takes its framework's threads", param_hint="--threads"
            )
        load_keras()

    from ferkit import __version__
    from ferkit.core import files
    from ferkit.core.errors import DataError
    from ferkit.data import load_dataset, select_faces
    from ferkit.evaluation.compare import (
        Comparison,
        comparison_as_json,
        format_comparison,
        shared_heads,
    )
    from ferkit.evaluation.compare import compare as measure
    from ferkit.evaluation.evaluate import EVERYTHING, faces_to_measure
    from ferkit.evaluation.model import knows_data, open_model, weights_fitted_here

    one, other = (open_model(model, threads=threads) for model in (first, second))
    heads = shared_heads(one.heads, other.heads, taxonomy)
    if one.input_size != other.input_size:
        raise DataError(
            f"{one.facts.name} takes faces of {one.input_size} pixels, {other.facts.name} of "
            f"{other.input_size}: they cannot answer the same faces"
        )
    whole = load_dataset(
        data,
        votes=votes,
        size=one.input_size,
        needed_by=one.facts.name,
        heads=tuple(heads.values()),
        tell_held_out=split != EVERYTHING,
    )
    dataset = select_faces(whole, drop_flat=drop_flat)
    differences = measure((one.predict, other.predict), dataset, heads=heads, split=split, tta=tta)
    comparison = Comparison(
        models=(one.facts, other.facts),
        source=Path(whole.source).name,
        fingerprint=whole.fingerprint,
        split=split,
        faces=len(faces_to_measure(dataset, split)),
        tta=tta,
        differences=differences,
        known_data=(knows_data(one.facts, whole), knows_data(other.facts, whole)),
        in_sample=(
            weights_fitted_here(one.facts, whole, split),
            weights_fitted_here(other.facts, whole, split),
        ),
        split_named=whole.split_named,
    )
    text = format_comparison(comparison)
    print(text, end="")
    content = {"ferkit_version": __version__, **comparison_as_json(comparison)}
    if json is not None:
        files.write_json(json, content)
    if out is not None:
        files.write_text(out / "comparison.txt", text)
        files.write_json(out / "comparison.json", content)
        remark(f"wrote 2 files to {out}")
