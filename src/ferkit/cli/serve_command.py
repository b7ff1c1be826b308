"""``ferkit serve``: the HTTP service and its page."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from ferkit.cli.common import new_app
from ferkit.service.settings import Settings, load_settings

app = new_app()

_CONFIG = Annotated[
    Path | None,
    typer.Option("--config", help="Settings as TOML, named as the options with _ for -.", show_default=False),
]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting; it is called with the settings as ``settings``."""

    def run(config: Path | None = None, **given: Any) -> None:
        command(settings=load_settings(config, **{k: v for k, v in given.items() if v not in (None, [])}))

    annotations: dict[str, Any] = {"config": _CONFIG}
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "" if default in (None, (), False) else str(default)
        annotations[name] = Annotated[
            _kind(field.annotation),
            typer.Option(
                f"--{name.replace('_', '-')}",
                help=field.description,
                show_default=shown or False,
            ),
        ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in annotations.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = annotations
    run.__doc__ = command.__doc__
    return run


def _kind(annotation: Any) -> Any:
    """Return the type of an option for the type of a setting; None means that it was not given."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is tuple:
        return list[str] | None
    if annotation not in (int, float, bool, Path):
        return str | None
    return annotation | None


@app.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve the page at / and the HTTP API at /v1 until Ctrl-C.

    Every option can also be an environment variable (FERKIT_PORT=9000) or a line of a TOML file
    (port = 9000), which --config or FERKIT_CONFIG names. Photos are not stored; clips
    are, until their job ends.
    """
    from ferkit.service.server import serve as run

    run(settings)
