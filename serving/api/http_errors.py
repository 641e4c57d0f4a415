"""Answers in JSON, refusals among them, and those to a head that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from serving.api.answer import Caller
from serving.api.plane import Plane
from serving.api.refusal import Kind, Refusal

PLANE = web.AppKey("plane", Plane)
RETRY_AFTER_S = "1"


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


def refused_answer(refusal: Refusal, headers: Mapping[str, str]) -> web.Response:
    """The answer to what is refused."""
    kind, headers = refusal.kind, dict(headers)
    if kind.retry:
        headers["Retry-After"] = RETRY_AFTER_S
    if kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    response = json_answer({"error": str(refusal)}, kind.status, headers)
    if kind in (Kind.TOO_LARGE, Kind.TOO_SLOW):
        response.force_close()  # the rest of the body is not waited for
    return response


class Runner(web.AppRunner):
    """Runs an application, with its data plane under PLANE, that answers in JSON where a request's head cannot be read."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no setting for it
        assert isinstance(server, _Server)
        server.plane = self.app[PLANE]
        return server


class _Server(web.Server):
    plane: Plane

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError) or not isinstance(self._manager, _Server):
            return super().handle_error(request, status, exc, message)
        words = (message or "").partition("\n")[0][:120]
        refusal = Refusal(Kind.BAD_INPUT, f"the request's head is not as HTTP has it: {words}")
        self._manager.plane.refused(refusal, Caller("http", request.remote or ""))
        response = refused_answer(refusal, {})
        response.force_close()
        return response
