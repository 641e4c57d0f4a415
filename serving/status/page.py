"""The files of the status page, which need nothing from elsewhere, and how they are served.

The page itself holds no data, so it is open to all; what it shows comes from /v2/status, which asks for the token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from traces.errors import InputError

FILES = {
    "/": ("index.html", "text/html"),
    "/status.css": ("status.css", "text/css"),
    "/status.js": ("status.js", "text/javascript"),
    "/status.svg": ("status.svg", "image/svg+xml"),
}
HEADERS = {
    # Names of models and messages of refusals come from others: even if one became markup, nothing of it would run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(router: web.UrlDispatcher) -> None:
    """Serve the files."""
    for path, (name, content_type) in FILES.items():
        body = (Path(__file__).with_name("page") / name).read_bytes()

        async def handler(request: web.Request, body: bytes = body, content_type: str = content_type) -> web.Response:
            return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

        router.add_get(path, handler)


def read_since(query: Mapping[str, str]) -> float:
    """The time in ms after which a query asks.

    Raises:
        InputError: it is not a number of at least 0.
    """
    text = query.get("since", "0")
    try:
        since_ms = float(text)
    except ValueError:
        since_ms = math.nan
    if not 0.0 <= since_ms < math.inf:
        raise InputError(f"since: {text[:80]!r}; it must be a number of at least 0")
    return since_ms
