"""``ferkit models``: the architectures, recipes and embedded models."""

from __future__ import annotations

from typing import Any

import typer

from ferkit.cli.common import JsonOption, console, new_app, print_json

app = new_app()


@app.command()
def models(
    pattern: str = typer.Argument("*", help="A shell pattern for the names: 'se-*'."),
    as_json: JsonOption = False,
) -> None:
    """List architectures, recipes and embedded models."""
    from fnmatch import fnmatchcase

    from rich.table import Column, Table

    from ferkit.core.errors import ModelError, near_matches
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.models import get_architecture, list_architectures
    from ferkit.training.recipe import load_recipe, shipped_recipes
    from ferkit.weights import embedded_models, training_weights

    architectures: list[dict[str, Any]] = [
        {"name": a.name, "summary": a.summary, "parameters": sorted(a.params.model_fields)}
        for a in map(get_architecture, list_architectures(pattern))
    ]
    recipes: list[dict[str, Any]] = [
        {"name": r.name, "architecture": r.model.name, "epochs": r.epochs, "description": r.description}
        for r in map(load_recipe, shipped_recipes())
        if fnmatchcase(r.name, pattern)
    ]
    embedded: list[dict[str, Any]] = []
    for name in (name for name in embedded_models() if fnmatchcase(name, pattern)):
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
    if not (architectures or recipes or embedded):
        names = [*list_architectures(), *shipped_recipes(), *embedded_models()]
        hint = near_matches(pattern, names) or "`ferkit models` lists all names"
        raise ModelError(f"no architecture, recipe or embedded model matches {pattern!r}; {hint}")
    if as_json:
        print_json({"architectures": architectures, "recipes": recipes, "embedded": embedded})
        return
    tables: dict[str, list[dict[str, str]]] = {
        "architectures": [{"name": a["name"], "summary": a["summary"]} for a in architectures],
        "recipes": [{name: str(value) for name, value in recipe.items()} for recipe in recipes],
        "embedded models": [
            {
                "name": model["name"],
                "network": model["architecture"],
                "taxonomies": ", ".join(model["taxonomies"]),
                "parameters": f"{model['parameters'] / 1e6:.2f} M",
                "MMAC": f"{model['mmac']:.1f}",
                "MiB": f"{model['bytes'] / 2**20:.1f}",
                "--init": "yes" if model["fine_tunes"] else "no",
            }
            for model in embedded
        ],
    }
    for title, rows in tables.items():
        if rows:
            name, *columns = rows[0]
            table = Table(Column(name, no_wrap=True), *columns, title=title, title_justify="left")
            table.box, table.pad_edge = None, False
            for row in rows:
                table.add_row(*row.values())
            console().print(table)
            print()
