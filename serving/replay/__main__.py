"""Shows a recording on the status page that a live server has.

Examples:
  python serve.py --record run                         record
  python -m serving.replay --view run                  then open http://127.0.0.1:8080
  python -m serving.replay --view run/0002 --speed 5   one part, five times as fast
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web

from serving.replay.recording import Playback, read_recording
from serving.status.page import add_page, read_since
from traces.command import run_command
from traces.errors import InputError


@dataclass
class ViewSettings:
    """What to show, and where.

    Attributes:
        view: folder that serve.py --record wrote, of which the latest part is shown, or one part.
        speed: seconds of the recording in a second.
        host: address to listen on.
        port: port of HTTP.

    Raises:
        InputError: a setting is out of range.
    """

    view: str
    speed: float = 1.0
    host: str = "127.0.0.1"
    port: int = 8080

    def __post_init__(self) -> None:
        if not 0 < self.speed < math.inf:
            raise InputError(f"--speed: {self.speed!r}; it must be a number above 0")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port: {self.port!r}; it must be from 0 to 65535")


def view_app(playback: Playback) -> web.Application:
    """The page, and what it shows."""

    async def status(request: web.Request) -> web.Response:
        try:
            answer = playback.status(read_since(request.query))
        except InputError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    app = web.Application()
    add_page(app.router)
    app.router.add_get("/v2/status", status)
    return app


def view(settings: ViewSettings) -> None:
    """Show the recording until the process is stopped."""
    app = view_app(Playback(read_recording(Path(settings.view)), settings.speed))
    web.run_app(app, host=settings.host, port=settings.port)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(view, ViewSettings, argv, "python -m serving.replay", __doc__)


if __name__ == "__main__":
    sys.exit(main())
