"""``ferkit recipes``: the shipped recipes, and every key of one."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ferkit.cli.common import JsonOption, console, new_app, print_json

app = new_app()


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe's name or a TOML file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped recipes; with a name, every key of it with its value, default and meaning.

    Any key can be changed with `ferkit train --set KEY=VALUE`.
    """
    from rich.table import Column, Table

    from ferkit.training.recipe import describe_recipe, load_recipe, shipped_recipes

    if name is None:
        rows = [
            {"recipe": r.name, "architecture": r.model.name, "epochs": r.epochs, "description": r.description}
            for r in map(load_recipe, shipped_recipes())
        ]
    else:
        rows = [dict(row) for row in describe_recipe(load_recipe(name))]
    if as_json:
        print_json(rows)
        return
    key, *columns = rows[0]
    table = Table(Column(key, no_wrap=True), *columns, box=None, pad_edge=False)
    for row in rows:
        changed = "default" in row and row["value"] != row["default"]
        cells = [one if isinstance(one, str) else json.dumps(one) for one in row.values()]
        table.add_row(*cells, style="bold" if changed else None)
    console().print(table)
