"""The replica's side: takes the requests of doors over frames and serves them by the plane of this process."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, cast

from envs.scheduling.state import PRIORITIES
from serving.api.answer import Answer, Caller
from serving.api.dataplane import DataPlane
from serving.api.infer_call import InferCall, Wanted, same_size
from serving.api.model_view import ModelView
from serving.api.plane import Listener
from serving.api.refusal import Kind, Refusal
from serving.api.tensors import check_shape
from serving.cluster.frames import (
    HEAD_BYTES,
    MOST_TOKEN,
    AnswerFrame,
    FrameError,
    FrameKind,
    FrameReader,
    InferFrame,
    RefusalFrame,
    SentTensor,
    Told,
    done_frame,
    pong_frame,
    read_id,
    read_open,
    read_repository,
    read_request,
)
from serving.cluster.greeting import NO_GREETING, Greeting, scheduled_views
from serving.cluster.routing import EngineState
from serving.engine.request import Origin
from serving.models.tensors import from_bytes, split_bucket, to_bytes
from traces.errors import InputError

log = logging.getLogger(__name__)

KINDS = list(Kind)
OPEN_S = 5.0  # in which a door must show its token
SILENCE_S = 30.0  # a door, which pings ten times a second, is gone after so long
WARN_S = 1.0  # between log lines of connections that were closed
GREETINGS_KEPT = 64  # the last of them, by which requests that are on their way may name models


class Replica:
    """What all doors of a replica share.

    Args:
        plane: of this process.

    Attributes:
        doors: those that are connected.
        state: what each of them is told of the engine.
    """

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.doors: set[_Door] = set()
        self.state = EngineState(plane.engine.scheduler, self._load_ms)
        self._views: Mapping[str, ModelView] = {}
        self._greeting = NO_GREETING
        self._warned_s, self._closed = -math.inf, 0

    def warn(self, address: str, why: str) -> None:
        """Log that a connection was closed; of many in short time one, and how many there were."""
        self._closed += 1
        if time.monotonic() - self._warned_s >= WARN_S:
            more = f" ({self._closed} in all since the last such line)" if self._closed > 1 else ""
            log.warning("the connection from %s is closed: %s%s", address, why, more)
            self._warned_s, self._closed = time.monotonic(), 0

    def greeting(self) -> Greeting:
        """What doors need to know: the models, as clients see them and as the scheduler does; the same object until it changes.

        Doors do not notice when a model is put out of memory or loaded again: they see all models, in the same order.
        """
        plane, scheduler = self.plane, self.plane.engine.scheduler
        if plane.views is not self._views:
            self._views = plane.views
            views = dict(sorted(plane.views.items()))
            measured = {view.scheduled: self._measured(view.scheduled) for view in scheduled_views(views)}
            total_ms = {name: total for name, (total, _) in measured.items()}
            share = {name: own for name, (_, own) in measured.items()}
            said = Greeting(
                views, total_ms, share, scheduler.tables.size.tolist(), plane.queue_places, plane.config.max_body_bytes,
                plane.repository_index(),
            )  # fmt: skip
            if said != self._greeting:
                self._greeting = said
        return self._greeting

    def _measured(self, name: str) -> tuple[list[float], list[float]]:
        """Times of a model's batches, copies and all, and the device's share in them."""
        scheduler, repository = self.plane.engine.scheduler, self.plane.repository
        if name in scheduler.index:
            tables, at = scheduler.tables, scheduler.index[name]
            total = tables.h2d[0, at] + tables.solo[0, at] + tables.d2h[0, at]
            share = tables.share[0, at]
        else:
            assert repository is not None
            known = repository.evicted[split_bucket(name)[0]].known
            at = known.models.index(name)
            total = known.h2d_ms[at] + known.solo_ms[at] + known.d2h_ms[at]
            share = known.share[at]
        return total.tolist(), share.tolist()

    def _load_ms(self, name: str) -> float:
        """How long it takes to load a model that is out of memory."""
        evicted = {} if self.plane.repository is None else self.plane.repository.evicted
        model = split_bucket(name)[0]
        return evicted[model].load_ms if model in evicted else 0.0

    def drain(self) -> None:
        """Tell the doors that no more requests are taken; those that come all the same are refused, and sent elsewhere."""
        for door in self.doors:
            door.write(pong_frame(False, door.told()))


async def listen_for_doors(replica: Replica, port: int, tls: ssl.SSLContext | None) -> Listener:
    """Listen for doors.

    Raises:
        InputError: the address is taken.
    """
    config = replica.plane.config
    try:
        server = await asyncio.get_running_loop().create_server(lambda: _Door(replica), config.host, port, ssl=tls)
    except OSError as error:
        raise InputError(f"--host {config.host} --peer_port {port}: cannot listen: {error.strerror}") from None
    bound = server.sockets[0].getsockname()[1]
    log.info("doors on %s:%d", config.host, bound)

    async def close() -> None:
        server.close()
        for door in list(replica.doors):
            door.close()

    return Listener(bound, close)


class _Door(asyncio.Protocol):
    """One connection of a door. A frame that is none ends it, and with it the requests that came over it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._plane = replica.plane
        self._reader = FrameReader(MOST_TOKEN, self._on_frame)
        self._admitted = False
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._address = ""
        self._greeting = NO_GREETING
        # By the number of the greeting, since a door may not have read the last when it sends.
        self._models: dict[int, tuple[str, ...]] = {}
        self._scheduled: tuple[str, ...] = ()
        self._transport: asyncio.Transport
        self._heard_s = time.monotonic()
        self._watch: asyncio.TimerHandle | None = None
        self._takes: dict[int, Callable[[memoryview], None]] = {
            FrameKind.REQUEST: self._on_request,
            FrameKind.CANCEL: self._on_cancel,
            FrameKind.PING: self._on_ping,
            FrameKind.REPOSITORY: self._on_repository,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._watch = asyncio.get_running_loop().call_later(OPEN_S, self._look)

    def _look(self) -> None:
        """Close a connection of which nothing is heard."""
        silent_s, most_s = time.monotonic() - self._heard_s, SILENCE_S if self._admitted else OPEN_S
        if silent_s < most_s and self._admitted:
            self._watch = asyncio.get_running_loop().call_later(most_s - silent_s, self._look)
            return
        words = (
            f"nothing came for {silent_s:.0f} s" if self._admitted else f"no door's first frame came in {OPEN_S:g} s"
        )
        self._replica.warn(self._address, words)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.doors.discard(self)
        if self._watch is not None:
            self._watch.cancel()
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._heard_s = time.monotonic()
        try:
            self._reader.feed(data)
        except FrameError as error:
            self._replica.warn(self._address, str(error))
            self.close()

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def write(self, parts: list[bytes | memoryview]) -> None:
        """Send a frame."""
        if not self._transport.is_closing():
            self._transport.writelines(parts)

    def _on_frame(self, frame: memoryview) -> None:
        if not self._admitted:
            self._admit(read_open(frame))
            return
        take = self._takes.get(frame[0])
        if take is None:
            raise FrameError(f"a frame of kind {frame[0]} does not come from a door")
        take(frame)

    def _admit(self, token: bytes) -> None:
        expected = self._plane.config.token
        if expected is not None and not hmac.compare_digest(token, expected.encode()):
            raise FrameError("it has no token, or a wrong one")
        self._admitted = True
        self._reader.most_bytes = self._plane.config.max_body_bytes + HEAD_BYTES
        self._replica.doors.add(self)
        self.greet()

    def told(self) -> Told:
        """What it is told with each answer, in the order of what it was greeted with."""
        return self._replica.state.told(self._scheduled, self._plane.engine.now_ms())

    def greet(self) -> None:
        """Say what is served, if that has changed."""
        said = self._replica.greeting()
        if said is self._greeting:
            return
        self._greeting, self._scheduled = said, said.scheduled
        number = max(self._models, default=0) + 1
        self._models[number] = tuple(said.views)
        self._models.pop(number - GREETINGS_KEPT, None)
        self.write(said._replace(number=number).pack())

    def _on_ping(self, frame: memoryview) -> None:
        self.greet()  # models may have been loaded over the replica's own API
        self.write(pong_frame(self._plane.ready, self.told()))

    def _on_request(self, frame: memoryview) -> None:
        request = read_request(frame)
        self._start(request.id, self._infer(request))

    def _on_cancel(self, frame: memoryview) -> None:
        task = self._tasks.get(read_id(frame))
        if task is not None:
            task.cancel()

    def _on_repository(self, frame: memoryview) -> None:
        id_, load, name, version = read_repository(frame)
        self._start(id_, self._change(id_, load, name, version))

    def _start(self, id_: int, work: Coroutine[Any, Any, None]) -> None:
        if id_ in self._tasks:
            work.close()
            raise FrameError(f"request {id_} is under way already")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[id_] = task
        task.add_done_callback(partial(self._ended, id_))

    def _ended(self, id_: int, task: asyncio.Task[None]) -> None:
        del self._tasks[id_]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request of the door at %s failed", self._address, exc_info=error)
            self._refuse(id_, Refusal(Kind.FAULT, "internal error; the replica's log says more"))

    async def _infer(self, request: InferFrame) -> None:
        """Serve a request. The door has checked it; that it fits the model is checked again, for the engine's sake."""
        plane = self._plane
        try:
            models = self._models.get(request.greeting, ())
            if request.model >= len(models):
                raise Refusal(Kind.STOPPING, f"there is no model {request.model} in greeting {request.greeting}")
            view = plane.model(models[request.model])
            if request.priority not in range(len(PRIORITIES)) or not request.left_ms > 0.0:
                raise Refusal(Kind.UNREACHABLE, "the deadline had passed when the request came to the replica")
            call = _call_of(request, view, plane.queue_places)
            origin = Origin(request.client_id.decode(errors="replace"), request.traceparent.decode(errors="replace"))
            caller = Caller("peer", self._address, origin)
            answer = await plane.serve(view.bucket(call.size), call, request.priority, request.left_ms, caller)
        except Refusal as refusal:
            self._refuse(request.id, refusal)
        except InputError as error:
            self._refuse(request.id, Refusal(Kind.BAD_INPUT, str(error)))
        else:
            self._answer(request, answer)

    def _answer(self, request: InferFrame, answer: Answer) -> None:
        said = answer.parameters
        pairs = zip(request.outputs, answer.outputs)
        frame = AnswerFrame(
            request.id,
            said["outcome"] == "late",
            int(said["latency_us"]) / 1e3,
            int(said["queue_us"]) / 1e3,
            int(said["predicted_us"]) / 1e3,
            int(said["batch_size"]),
            self.told(),
            tuple(SentTensor(place, array.shape, to_bytes(array)) for place, array in pairs),
        )
        self.write(frame.pack())

    def _refuse(self, id_: int, refusal: Refusal) -> None:
        frame = RefusalFrame(id_, KINDS.index(refusal.kind), refusal.observed, self.told(), str(refusal))
        self.write(frame.pack())

    async def _change(self, id_: int, load: bool, name: str, version: str) -> None:
        """Load or unload a model, and tell every door what is served now."""
        asked = {"version": version} if version else {}
        try:
            await (self._plane.load(name, asked) if load else self._plane.unload(name, asked))
        except Refusal as refusal:
            self._refuse(id_, refusal)
            return
        for door in self._replica.doors:
            door.greet()
        self.write(done_frame(id_))


def _call_of(request: InferFrame, view: ModelView, most: int) -> InferCall:
    """What a door asks for.

    Args:
        request: the door's.
        view: the model, its buckets together.
        most: items of one call.

    Raises:
        InputError: it does not fit the model.
    """
    if [one.place for one in request.inputs] != [*range(len(view.inputs))]:
        raise InputError(f"{len(request.inputs)} inputs do not fit model {view.name!r}, which has {len(view.inputs)}")
    if not request.outputs or not all(place < len(view.outputs) for place in request.outputs):
        raise InputError(f"outputs {list(request.outputs)} do not fit model {view.name!r}")
    size, values = None, []
    for spec, sent in zip(view.inputs, request.inputs):
        shape = check_shape(sent.shape, spec.shape, most, spec.name)
        if shape[0] != request.inputs[0].shape[0]:
            raise InputError(f"{spec.name}: {shape[0]} items, where {request.inputs[0].shape[0]} come before")
        if spec.varies:
            size = same_size(spec, shape[1:], size, view)
        array = from_bytes(sent.values, spec, shape)
        view.check_values(spec, array)
        values.append(array)
    return InferCall(None, tuple(values), size, {}, tuple(Wanted(place, binary=True) for place in request.outputs))
