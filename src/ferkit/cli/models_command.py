"""``ferkit models``: the models, architectures and recipes by name."""

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
    """List the models, architectures and recipes.

    The accuracy is that on FER2013's PublicTest, the selection split, without test-time augmentation.
    """
    from fnmatch import fnmatchcase

    from rich.table import Column, Table

    from ferkit.core.errors import ModelError, near_matches
    from ferkit.models import get_architecture, list_architectures
    from ferkit.training.recipe import load_recipe, shipped_recipes
    from ferkit.weights import PURPOSES, embedded_models, zoo_models

    architectures: list[dict[str, Any]] = [
        {"name": a.name, "summary": a.summary, "parameters": sorted(a.params.model_fields)}
        for a in map(get_architecture, list_architectures(pattern))
    ]
    recipes: list[dict[str, Any]] = [
        {"name": r.name, "architecture": r.model.name, "epochs": r.epochs, "description": r.description}
        for r in map(load_recipe, shipped_recipes())
        if fnmatchcase(r.name, pattern)
    ]
    embedded = [_facts(name) for name in embedded_models() if fnmatchcase(name, pattern)]
    zoo = [_facts(name) for name in zoo_models() if fnmatchcase(name, pattern)]
    if not (architectures or recipes or embedded or zoo):
        names = [*list_architectures(), *shipped_recipes(), *embedded_models(), *zoo_models()]
        hint = near_matches(pattern, names) or "`ferkit models` lists all names"
        raise ModelError(f"no model, architecture or recipe matches {pattern!r}; {hint}")
    if as_json:
        found = {"embedded": embedded, "zoo": zoo, "architectures": architectures, "recipes": recipes}
        print_json(found)
        return
    tables: dict[str, list[dict[str, str]]] = {
        "models (--model)": [
            {"name": one["name"], "choose it for": PURPOSES.get(one["name"], "")} | _figures(one)
            for one in embedded
        ],
        "models in zoo/": [
            {"name": one["name"], "network": one["architecture"]} | _figures(one) for one in zoo
        ],
        "architectures": [{"name": a["name"], "summary": a["summary"]} for a in architectures],
        "recipes": [{name: str(value) for name, value in recipe.items()} for recipe in recipes],
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


def _facts(name: str) -> dict[str, Any]:
    """Return what is listed of a model; the accuracy, in 0..1, is None if it was not measured."""
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.weights import training_weights

    path = resolve_model(name)
    info = read_model(path)[1]
    measured = (m for m in info.metrics if (m.labels, m.tta, m.without_leaks) == ("fer2013", "none", False))
    return {
        "name": name,
        "architecture": info.architecture,
        "taxonomies": [head.id for head in info.taxonomies],
        "parameters": info.parameters,
        "mmac": info.mmac,
        "bytes": path.stat().st_size,
        "accuracy": next((metric.accuracy for metric in measured), None),
        "fine_tunes": training_weights(name) is not None,
    }


def _figures(model: dict[str, Any]) -> dict[str, str]:
    """Return the columns that the tables of models share."""
    accuracy = model["accuracy"]
    return {
        "parameters": f"{model['parameters'] / 1e6:.2f} M",
        "MMAC": f"{model['mmac']:.1f}",
        "MiB": f"{model['bytes'] / 2**20:.1f}",
        "FER2013 %": "" if accuracy is None else f"{100 * accuracy:.1f}",
        "--init": "yes" if model["fine_tunes"] else "no",
    }
