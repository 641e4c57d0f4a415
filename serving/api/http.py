"""HTTP: Open Inference Protocol v2 with binary tensors, statistics, the repository, metrics and OpenAPI.

A request's parameters `priority` and `timeout` may also come in the headers X-Priority and X-Timeout-Us; the body's win.
Every error is a JSON object with one field, `error`, of one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from aiohttp import web

from serving.api.answer import Caller
from serving.api.config import allowed
from serving.api.http_codec import HEADER_LENGTH, accepted_encoding, decompress, split, write_answer
from serving.api.http_errors import PLANE, Runner, json_answer, refused_answer
from serving.api.infer_call import check_fields, read_call, read_id
from serving.api.model_view import ModelView
from serving.api.plane import BIG, NO_TOKEN, Listener, Plane
from serving.api.processes.large_json import SMALL, JsonProcesses
from serving.api.protocol.json_codec import json_numbers, read_json
from serving.api.refusal import Kind, Refusal, too_large
from serving.api.tensors import plain_values
from serving.engine.request import UNNAMED
from serving.models.processes.pool import Buffer
from serving.status.page import FILES, add_page, read_since
from traces.errors import InputError

log = logging.getLogger(__name__)

ENCODINGS = {"x-gzip": "gzip"}  # another name, which HTTP keeps
CALLER = web.RequestKey("caller", Caller)
WORTH_COMPRESSING = 1024  # bytes of an answer
OPEN_PATHS = ("/v2/health/live", "/v2/health/ready", *FILES)  # neither probes nor a browser carry a token

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def start_http(plane: Plane, tls: ssl.SSLContext | None = None) -> Listener:
    """Serve HTTP where the settings of the data plane say.

    Args:
        plane: answers.
        tls: with the server's certificate, for HTTPS.

    Raises:
        InputError: the address cannot be listened on.
    """
    config = plane.config
    app = web.Application(client_max_size=config.max_body_bytes, middlewares=[_middleware(plane)])
    app[PLANE] = plane
    routes = _Routes(plane)
    routes.add_to(app.router)
    runner = Runner(
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

    async def close() -> None:
        await runner.cleanup()
        routes.processes.close()

    return Listener(runner.addresses[0][1], close)


def api_document(version: str) -> dict[str, Any]:
    """The OpenAPI document of all routes, in the file beside this one; a test compares them."""
    document = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
    document["info"]["version"] = version
    return document


def _middleware(plane: Plane) -> Any:
    token = plane.config.token

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers: dict[str, str] = {}
        caller = request[CALLER] = Caller.of("http", request.remote or "", request.headers.get)
        try:
            if request.path not in OPEN_PATHS and not allowed(token, request.headers.get("Authorization")):
                raise Refusal(Kind.UNAUTHENTICATED, NO_TOKEN)
            response = await handler(request)
            if caller.origin is not UNNAMED and not response.prepared:
                response.headers.update(caller.headers())
            return response
        except Refusal as refused:
            refusal = refused
        except InputError as error:
            refusal = Refusal(Kind.BAD_INPUT, str(error))
        except web.HTTPException as error:  # no such path or method
            kind = Kind.NO_METHOD if error.status == 405 else Kind.NOT_FOUND
            refusal = Refusal(kind, f"{error.reason}: {request.method} {request.path[:200]}")
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        except ConnectionError:  # the client left in the middle of a large answer
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            refusal = Refusal(Kind.FAULT, "internal error; the server's log says more")
        plane.refused(refusal, caller)
        return refused_answer(refusal, headers | caller.headers())

    return answer


async def _read(request: web.Request, most: int) -> Buffer:
    """A body as it arrives, in one piece of memory: large ones are many at once when the device is busy."""
    # Memory that nobody has touched before it is filled, bit by bit, holds nobody up.
    body, size = np.empty(request.content_length or BIG, np.uint8), 0
    async for chunk in request.content.iter_any():
        end = size + len(chunk)
        if end > most:
            raise too_large(most)
        if end > len(body):  # without Content-Length
            body.resize(2 * end, refcheck=False)
        body[size:end] = np.frombuffer(chunk, np.uint8)
        size = end
    return body[:size].data


class _Response(web.Response):
    """One whose body is given up once it is sent: a connection keeps its last response until the next one."""

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self.body = None


async def _send(request: web.Request, parts: list[Buffer], headers: dict[str, str]) -> web.StreamResponse:
    """Answer with a body of several parts; large ones go out bit by bit."""
    size, encoding = sum(map(len, parts)), None
    if size >= WORTH_COMPRESSING:
        encoding = accepted_encoding(request.headers.get("Accept-Encoding", ""))
    if size < BIG:
        response: web.StreamResponse = _Response(body=b"".join(parts), headers=headers)
        if encoding:
            response.enable_compression(encoding)
        return response
    response = web.StreamResponse(headers=headers | request[CALLER].headers())
    response.content_length = size
    if encoding:
        response.enable_compression(encoding)
    await response.prepare(request)
    for part in parts:
        for at in range(0, len(part), BIG):
            await response.write(memoryview(part)[at : at + BIG])
    await response.write_eof()
    return response


async def _apart(work: Callable[[], T]) -> T:
    """Do on a thread what takes long without Python's lock."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


class _Routes:
    """The routes, and a method for each that is more than a look at the data plane."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.processes = JsonProcesses()
        self.api = api_document(plane.server_metadata()["version"])

    def add_to(self, router: web.UrlDispatcher) -> None:
        plane = self.plane

        def get(path: str, answer: Callable[[web.Request], Any]) -> None:
            async def handler(request: web.Request) -> web.Response:
                return json_answer(answer(request))

            router.add_get(path, handler)

        def post(path: str, handler: Handler) -> None:
            router.add_post(path, handler, expect_handler=self.expect)

        get("/v2", lambda request: plane.server_metadata())
        get("/v2/health/live", lambda request: {"live": True})
        router.add_get("/v2/health/ready", self.ready)
        get("/v2/models/stats", self.statistics)
        # Names with braces, too, which the pattern leaves out that aiohttp has by itself.
        for model in ("/v2/models/{model:[^/]+}", "/v2/models/{model:[^/]+}/versions/{version}"):
            post(f"{model}/infer", self.infer)
            get(model, lambda request: self._model(request).metadata())
            router.add_get(f"{model}/ready", self.model_ready)
            get(f"{model}/config", lambda request: plane.model_config(*_model_of(request)))
            get(f"{model}/quote", self.quote)
            get(f"{model}/stats", lambda request: {"model_stats": plane.model_statistics(*_model_of(request))})
        add_page(router)
        get("/v2/status", lambda request: plane.status(read_since(request.query)))
        get("/v2/schedule", lambda request: plane.scheduling())
        post("/v2/schedule", self.schedule)
        post("/v2/repository/index", self.index)
        post("/v2/repository/models/{model:[^/]+}/load", self.load)
        post("/v2/repository/models/{model:[^/]+}/unload", self.unload)
        router.add_get("/metrics", self.metrics)
        get("/openapi.json", lambda request: self.api)

    def statistics(self, request: web.Request) -> dict[str, Any]:
        # The path is also that of a model with this name.
        own = self.plane.model("stats").metadata() if self.plane.serves("stats") else {}
        return {"model_stats": self.plane.model_statistics()} | own

    def quote(self, request: web.Request) -> dict[str, Any]:
        """What a request could expect: `priority`, `timeout`, and `size`, that of its inputs which varies, are in the query."""
        check_fields(request.query, frozenset(["priority", "timeout", "size"]), "the query", "parameter")
        for name, value in request.query.items():
            if not value.isdecimal():
                raise InputError(f"{name}: {value[:80]!r}; it must be an integer of at least 0")
        parameters = {name: int(value) for name, value in request.query.items()}
        return self.plane.quotation(*_model_of(request), parameters)._asdict()

    async def schedule(self, request: web.Request) -> web.Response:
        """Change what a high-priority request counts, while requests are served."""
        asked = read_json(await self._body(request, SMALL))
        if not isinstance(asked, dict):
            raise InputError('the body must be an object such as {"high_weight": 8}')
        check_fields(asked, frozenset(["high_weight"]), "schedule", "field")
        value = asked.get("high_weight")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"high_weight: {str(value)[:80]}; it must be a number above 0")
        self.plane.set_high_weight(float(value))
        return json_answer(self.plane.scheduling())

    async def ready(self, request: web.Request) -> web.Response:
        ready = self.plane.ready
        return json_answer({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: web.Request) -> web.Response:
        view, ready = self._model(request), self.plane.ready
        return json_answer({"name": view.name, "ready": ready}, 200 if ready else 503)

    def _model(self, request: web.Request) -> ModelView:
        return self.plane.model(*_model_of(request))

    async def expect(self, request: web.Request) -> web.StreamResponse | None:
        """Answers the header Expect; the token is checked afterwards, as always."""
        if request.headers.get("Expect", "").lower() != "100-continue":
            refusal = Refusal(Kind.UNEXPECTED, "the header Expect may be 100-continue only")
            self.plane.refused(refusal, Caller.of("http", request.remote or "", request.headers.get))
            return refused_answer(refusal, {})
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
        return None

    # Inference.

    async def infer(self, request: web.Request) -> web.StreamResponse:
        plane, caller = self.plane, request[CALLER]
        try:
            view = self._model(request)
        except Refusal:
            with contextlib.suppress(Refusal, InputError):  # for the client's id, with which the refusal is logged
                text, _ = split(await self._body(request, SMALL), request.headers.get(HEADER_LENGTH))
                caller.named(read_id(read_json(text)))
            raise
        body = await self._body(request, plane.config.max_body_bytes)
        text, binary = split(body, request.headers.get(HEADER_LENGTH))
        if len(text) < SMALL:
            head = read_json(text)
            caller.named(read_id(head))
            work = partial(read_call, head, binary, view, plane.most_items(view))
            call = await _apart(work) if len(binary) > BIG else work()
        else:
            if len(binary):
                raise InputError(f"the JSON part has {len(text)} bytes; beside binary tensors, {SMALL} are allowed")
            call = await self.processes.read(body, view, plane.most_items(view), caller.named)
        view = view.bucket(call.size)
        parameters = {**_header_parameters(request), **call.parameters}
        priority, deadline_ms = plane.schedule(view, parameters, call.n_items)
        answer = await plane.infer(view, call, priority, deadline_ms, caller)
        numbers = [
            await self._numbers(array, view.outputs[wanted.place].datatype)
            for wanted, array in zip(call.outputs, answer.outputs)
            if not wanted.binary
        ]
        return await _send(request, *write_answer(view, call, answer, numbers))

    async def _numbers(self, array: np.ndarray, datatype: str) -> Buffer:
        """An output as JSON."""
        if array.nbytes < SMALL:
            return json_numbers(plain_values(array, datatype))
        return await self.processes.write(array, datatype)

    async def _body(self, request: web.Request, most: int) -> Buffer:
        encodings = [one.strip().lower() for one in request.headers.get("Content-Encoding", "").split(",")]
        encodings = [ENCODINGS.get(one, one) for one in encodings if one not in ("", "identity")]
        if len(encodings) > 1 or not {"gzip", "deflate"}.issuperset(encodings):
            raise Refusal(
                Kind.UNSUPPORTED,
                f"Content-Encoding {', '.join(encodings)[:80]!r} is not supported; gzip and deflate are",
            )
        if (request.content_length or 0) > most:
            raise too_large(most)
        limit_s = self.plane.config.body_timeout_s
        body: Buffer
        try:
            if request.content.is_eof():  # it came with the head, as small ones do, and a time limit has its cost
                # Not request.read(), which keeps it: a connection keeps its last request until the next one.
                body = request.content.read_nowait()
                if len(body) > most:
                    raise too_large(most)
            else:
                async with asyncio.timeout(limit_s):
                    body = await _read(request, most)
        except TimeoutError:
            raise Refusal(Kind.TOO_SLOW, f"the body did not arrive in {limit_s:g} s (--body_timeout_s)") from None
        return await _apart(partial(decompress, body, encodings[0], most)) if encodings else body

    # The repository and metrics.

    async def index(self, request: web.Request) -> web.Response:
        asked = await self._optional_json(request)
        check_fields(asked, frozenset(["ready"]), "the request")
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise InputError("ready is not true or false")
        return json_answer(self.plane.repository_index(ready))

    async def load(self, request: web.Request) -> web.Response:
        await self.plane.load(request.match_info["model"], await self._control(request))
        return json_answer({})

    async def unload(self, request: web.Request) -> web.Response:
        await self.plane.unload(request.match_info["model"], await self._control(request))
        return json_answer({})

    async def _optional_json(self, request: web.Request) -> dict[str, Any]:
        body = bytes(await self._body(request, min(SMALL, self.plane.config.max_body_bytes)))
        return read_json(body) if body.strip() else {}

    async def _control(self, request: web.Request) -> dict[str, Any]:
        asked = await self._optional_json(request)
        check_fields(asked, frozenset(["parameters"]), "the request")
        parameters = asked.get("parameters", {})
        if not isinstance(parameters, dict):
            raise InputError("parameters of the request is not a JSON object")
        return parameters

    async def metrics(self, request: web.Request) -> web.Response:
        if self.plane.metrics is None:
            raise Refusal(Kind.NOT_FOUND, "this server keeps no metrics")
        body, content_type = self.plane.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})


def _model_of(request: web.Request) -> tuple[str, str]:
    """Name and version of the model in the path."""
    return request.match_info["model"], request.match_info.get("version", "")


def _header_parameters(request: web.Request) -> dict[str, int]:
    found: dict[str, int] = {}
    for header, parameter in (("X-Priority", "priority"), ("X-Timeout-Us", "timeout")):
        text = request.headers.get(header)
        if text is not None:
            if not (text.isascii() and text.isdigit()):
                raise InputError(f"{header} is {text[:80]!r}; it must be a whole number")
            found[parameter] = int(text[:40])
    return found
