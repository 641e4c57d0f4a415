"""HTTP: Open Inference Protocol v2 with binary tensors, statistics, the repository, metrics and OpenAPI.

A request's parameters `priority` and `timeout` may also come in the headers X-Priority and X-Timeout-Us; the body's win.
Every error is a JSON object with one field, `error`, of one line.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from aiohttp import StreamReader, web

from serving.api.dataplane import NO_TOKEN, DataPlane, Listener, allowed
from serving.api.http_codec import HEADER_LENGTH, decompress, read_infer, read_json, write_infer
from serving.api.model_view import ModelView
from serving.api.refusal import Kind, Refusal, too_large
from traces.errors import InputError

log = logging.getLogger(__name__)

ENCODINGS = ("identity", "gzip", "deflate")
BIG = 256 * 1024  # bytes whose parsing would keep the engine's loop from its work for too long
OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")  # probes carry no token
RETRY_AFTER_S = "1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def start_http(plane: DataPlane, tls: ssl.SSLContext | None = None) -> Listener:
    """Serve HTTP where the settings of the data plane say.

    Args:
        plane: answers.
        tls: with the server's certificate, for HTTPS.

    Raises:
        InputError: the address cannot be listened on.
    """
    config = plane.config
    app = web.Application(client_max_size=config.max_body_bytes, middlewares=[_middleware(config.token)])
    _Routes(plane).add_to(app.router)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that leaves takes its requests with it
        access_log=None,
        auto_decompress=False,  # a small body may decompress to gigabytes; our own way of decompressing has a limit
        keepalive_timeout=config.keepalive_s,
        shutdown_timeout=config.close_timeout_s,
        lingering_time=1.0,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port, ssl_context=tls, backlog=1024).start()
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        raise InputError(f"cannot listen on {config.host}:{config.port}: {error}") from None
    return Listener(runner.addresses[0][1], runner.cleanup)


def api_document(version: str) -> dict[str, Any]:
    """The OpenAPI document of all routes, in the file beside this one; a test compares them."""
    document = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
    document["info"]["version"] = version
    return document


def _middleware(token: str | None) -> Any:
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in OPEN_PATHS and not allowed(token, request.headers.get("Authorization")):
                raise Refusal(Kind.UNAUTHENTICATED, NO_TOKEN)
            return await handler(request)
        except Refusal as refusal:
            return _refused(refusal.kind, str(refusal))
        except InputError as error:
            return _refused(Kind.BAD_INPUT, str(error))
        except web.HTTPException as error:  # no such path or method, or a body that is too large
            message = f"{error.reason}: {request.method} {request.path[:200]}"
            if isinstance(error, web.HTTPRequestEntityTooLarge):
                message = "the body is larger than this server takes"
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return _json({"error": message}, error.status, headers)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return _refused(Kind.FAULT, "internal error; the server's log says more")

    return answer


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


async def _read(content: StreamReader, most: int) -> bytearray:
    """A body as it arrives, in one piece of memory: large ones are many at once when the device is busy."""
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > most:
            raise too_large(most)
    return body


def _refused(kind: Kind, message: str) -> web.Response:
    headers = {}
    if kind.retry:
        headers["Retry-After"] = RETRY_AFTER_S
    if kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    response = _json({"error": message}, kind.status, headers)
    if kind in (Kind.TOO_LARGE, Kind.TOO_SLOW):
        response.force_close()  # the rest of the body is not waited for
    return response


class _Routes:
    """The routes, and a method for each that is more than a look at the data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.api = api_document(plane.server_metadata()["version"])

    def add_to(self, router: web.UrlDispatcher) -> None:
        plane = self.plane

        def get(path: str, answer: Callable[[web.Request], Any]) -> None:
            async def handler(request: web.Request) -> web.Response:
                return _json(answer(request))

            router.add_get(path, handler)

        def post(path: str, handler: Handler) -> None:
            router.add_post(path, handler, expect_handler=_expect)

        get("/v2", lambda request: plane.server_metadata())
        get("/v2/health/live", lambda request: {"live": True})
        router.add_get("/v2/health/ready", self.ready)
        get("/v2/models/stats", lambda request: {"model_stats": plane.model_statistics()})
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            post(f"{model}/infer", self.infer)
            get(model, lambda request: self._model(request).metadata())
            router.add_get(f"{model}/ready", self.model_ready)
            get(f"{model}/config", lambda request: self._model(request).config(plane.most_items))
            get(f"{model}/stats", lambda request: {"model_stats": plane.model_statistics(*_model_of(request))})
        post("/v2/repository/index", self.index)
        post("/v2/repository/models/{model}/load", self.load)
        post("/v2/repository/models/{model}/unload", self.unload)
        router.add_get("/metrics", self.metrics)
        get("/openapi.json", lambda request: self.api)

    async def ready(self, request: web.Request) -> web.Response:
        ready = self.plane.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: web.Request) -> web.Response:
        view, ready = self._model(request), self.plane.ready
        return _json({"name": view.name, "ready": ready}, 200 if ready else 503)

    def _model(self, request: web.Request) -> ModelView:
        return self.plane.model(*_model_of(request))

    # Inference.

    async def infer(self, request: web.Request) -> web.Response:
        view = self._model(request)
        body = await self._body(request)
        call = await self._apart(
            len(body), read_infer, body, request.headers.get(HEADER_LENGTH), view, self.plane.most_items
        )
        parameters = {**_header_parameters(request), **call.parameters}
        priority, deadline_ms = self.plane.schedule(view, parameters, len(call.values))
        answer = await self.plane.infer(view, call.values, priority, deadline_ms, request.remote or "")
        data, headers = await self._apart(answer.output.nbytes, write_infer, view, call, answer)
        return web.Response(body=data, headers=headers)

    async def _apart(self, n_bytes: int, work: Callable[..., Any], *args: Any) -> Any:
        """Do work on this loop, or on a thread when it is long."""
        if n_bytes < BIG:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(None, work, *args)

    async def _body(self, request: web.Request) -> bytes | bytearray:
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ENCODINGS:
            raise Refusal(
                Kind.UNSUPPORTED, f"Content-Encoding {encoding[:80]!r} is not supported; gzip and deflate are"
            )
        most = self.plane.config.max_body_bytes
        if (request.content_length or 0) > most:
            raise Refusal(Kind.TOO_LARGE, f"the body has {request.content_length} bytes; {most} are allowed")
        limit_s = self.plane.config.body_timeout_s
        body: bytes | bytearray
        try:
            if request.content.is_eof():  # it came with the head, as small ones do, and a time limit has its cost
                body = await request.read()
            else:
                async with asyncio.timeout(limit_s):
                    body = await _read(request.content, most)
        except TimeoutError:
            raise Refusal(Kind.TOO_SLOW, f"the body did not arrive in {limit_s:g} s") from None
        except web.HTTPRequestEntityTooLarge:
            raise too_large(most) from None
        if encoding != "identity":
            body = await self._apart(len(body), decompress, body, encoding, most)
        return body

    # The repository and metrics.

    async def index(self, request: web.Request) -> web.Response:
        ready = (await self._optional_json(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InputError("ready is not true or false")
        return _json(self.plane.repository_index(ready))

    async def load(self, request: web.Request) -> web.Response:
        await self._optional_json(request)
        await self.plane.load(request.match_info["model"])
        return _json({})

    async def unload(self, request: web.Request) -> web.Response:
        await self._optional_json(request)
        await self.plane.unload(request.match_info["model"])
        return _json({})

    async def _optional_json(self, request: web.Request) -> dict[str, Any]:
        body = await self._body(request)
        return read_json(body) if body.strip() else {}

    async def metrics(self, request: web.Request) -> web.Response:
        if self.plane.metrics is None:
            raise Refusal(Kind.NOT_FOUND, "this server keeps no metrics")
        body, content_type = self.plane.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})


def _model_of(request: web.Request) -> tuple[str, str]:
    """Name and version of the model in the path."""
    return request.match_info["model"], request.match_info.get("version", "")


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Answers the header Expect; the token is checked afterwards, as always."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return _json({"error": "the header Expect may be 100-continue only"}, 417)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None


def _header_parameters(request: web.Request) -> dict[str, int]:
    found: dict[str, int] = {}
    for header, parameter in (("X-Priority", "priority"), ("X-Timeout-Us", "timeout")):
        text = request.headers.get(header)
        if text is not None:
            if not (text.isascii() and text.isdigit()):
                raise InputError(f"{header} is {text[:80]!r}; it must be a whole number")
            found[parameter] = int(text[:18])
    return found
