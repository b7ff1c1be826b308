"""``ferkit doctor``: versions of the installed libraries, and checks of what works on this machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Annotated

import typer

from ferkit import __version__
from ferkit.cli.checks import Check, run_checks
from ferkit.cli.common import JsonOption, new_app, option, print_json
from ferkit.core.extras import EXTRAS, LIBRARIES, Library, install_command

app = new_app()


@app.command()
def doctor(
    full: Annotated[bool, option("--full", "Start TensorFlow too (takes seconds).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which libraries are installed and what works on this machine.

    The exit status is 1 only if `ferkit predict` cannot work.
    """
    versions = {library: library.version() for library in LIBRARIES}
    checks = run_checks(full=full)
    works = not any(check.fatal for check in checks)
    if as_json:
        print_json(_as_json(versions, checks, works))
    else:
        print(_as_text(versions, checks, works))
    if not works:
        raise typer.Exit(1)


def _as_json(versions: dict[Library, str | None], checks: list[Check], works: bool) -> dict[str, object]:
    return {
        "ferkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "works": works,
        "libraries": [
            {
                "name": library.distributions[0],
                "extra": library.extra,
                "purpose": library.purpose,
                "version": version,
            }
            for library, version in versions.items()
        ],
        "checks": [asdict(check) for check in checks],
    }


def _as_text(versions: dict[Library, str | None], checks: list[Check], works: bool) -> str:
    lines = [
        f"ferkit {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    ]
    for extra in ("", *EXTRAS):
        lines += ["", f"{f'Extra {extra}' if extra else 'Base'}: {install_command(extra)}"]
        lines += [
            f"  {library.distributions[0]:<18} {version or 'missing':<12} {library.purpose}"
            for library, version in versions.items()
            if library.extra == extra
        ]
    lines += ["", "What works here"]
    for check in checks:
        lines.append(f"  {check.state:<8} {check.name:<15} {check.detail}")
        if check.remedy:
            lines.append(f"  {'':<8} {'':<15} -> {check.remedy}")
    lines += ["", "ferkit predict works here." if works else "ferkit predict does NOT work here; see above."]
    return "\n".join(lines)
