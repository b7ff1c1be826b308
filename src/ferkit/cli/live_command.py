"""``ferkit live``: the service on this machine, and a browser at its webcam page."""

from __future__ import annotations

from ferkit.cli.common import new_app
from ferkit.cli.serve_command import with_settings
from ferkit.service.settings import Settings

app = new_app()


@app.command()
@with_settings
def live(settings: Settings) -> None:
    """Start the service and open the page at the webcam, until Ctrl-C. Takes the options of ferkit serve.

    The camera is the browser's; frames go to this server and nowhere else, and are not stored.
    """
    from ferkit.service.server import serve

    serve(settings, browse="#camera")
