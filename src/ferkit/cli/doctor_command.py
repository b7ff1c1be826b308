"""``ferkit doctor``."""

from __future__ import annotations

from ferkit.cli.common import new_app

app = new_app()


@app.command()
def doctor() -> None:
    """Say what is installed, what works and what is missing."""
