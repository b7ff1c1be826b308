"""``ferkit models``: what there is to train, to start from and to use."""

from __future__ import annotations

from typing import Any

import typer

from ferkit.cli import near_matches
from ferkit.cli.common import JsonOption, console, new_app, print_json

app = new_app()


@app.command()
def models(
    pattern: str = typer.Argument("*", help="A shell pattern over the names: 'se-*'."),
    as_json: JsonOption = False,
) -> None:
    """List architectures, recipes and embedded models."""
    import fnmatch

    from rich.table import Table

    from ferkit.core.errors import ModelError
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.models import get_architecture, list_architectures
    from ferkit.training.recipe import load_recipe, shipped_recipes
    from ferkit.weights import embedded_models, training_weights

    architectures = [
        {"name": a.name, "summary": a.summary, "parameters": sorted(a.params.model_fields)}
        for a in map(get_architecture, list_architectures(pattern))
    ]
    recipes = [
        {"name": r.name, "architecture": r.model.name, "epochs": r.epochs, "description": r.description}
        for r in map(load_recipe, shipped_recipes())
        if fnmatch.fnmatchcase(r.name, pattern)
    ]
    embedded: list[dict[str, Any]] = []
    for name in embedded_models():
        if fnmatch.fnmatchcase(name, pattern):
            path = resolve_model(name)
            info = read_model(path)[1]
            embedded.append(
                {
                    "name": name,
                    "architecture": info.architecture,
                    "taxonomies": [head.id for head in info.taxonomies],
                    "parameters": info.parameters,
                    "mmac": info.mmac,
                    "bytes": path.stat().st_size,
                    "fine_tunes": training_weights(name) is not None,
                }
            )
    if not architectures and not recipes and not embedded:
        names = [*list_architectures(), *shipped_recipes(), *embedded_models()]
        hint = near_matches(pattern, names) or "`ferkit models` lists all names"
        raise ModelError(f"no architecture, recipe or embedded model matches {pattern!r}; {hint}")
    if as_json:
        print_json({"architectures": architectures, "recipes": recipes, "embedded": embedded})
        return
    out = console()
    table = Table("architecture", "what it is", box=None, pad_edge=False)
    for a in architectures:
        table.add_row(str(a["name"]), str(a["summary"]))
    out.print(table)
    table = Table("recipe", "architecture", "epochs", "what it does", box=None, pad_edge=False)
    for r in recipes:
        table.add_row(str(r["name"]), str(r["architecture"]), str(r["epochs"]), str(r["description"]))
    out.print()
    out.print(table)
    out.print()
    if not embedded:
        out.print("no embedded model")
    for e in embedded:
        out.print(
            f"embedded: {e['name']}  {e['architecture']}, {e['parameters']:,} parameters, "
            f"{e['mmac']:.1f} MMAC, {e['bytes'] / 2**20:.2f} MiB, answers in {', '.join(e['taxonomies'])}"
            + (f"; train --init {e['name']}" if e["fine_tunes"] else "")
        )
