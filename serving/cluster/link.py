"""A door's connection to one replica: kept open, opened again when it is lost, and given up when the replica is silent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

from serving.api.refusal import Kind, Refusal
from serving.cluster.frames import (
    MOST_ANSWER,
    AnswerFrame,
    FrameError,
    FrameKind,
    FrameReader,
    InferFrame,
    RefusalFrame,
    Told,
    cancel_frame,
    open_frame,
    ping_frame,
    read_answer,
    read_id,
    read_pong,
    read_refusal,
    repository_frame,
)
from serving.cluster.greeting import Greeting, read_greeting

log = logging.getLogger(__name__)

PING_S = 0.1
CONNECT_S = 5.0
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0
KINDS = list(Kind)


class Lost(Exception):
    """The replica was lost, or takes no more requests, before it answered."""


class LinkConfig(NamedTuple):
    """How a door speaks to its replicas.

    Attributes:
        token: shown to them; None: they ask for none.
        tls: None without.
        silence_s: a replica that says nothing for so long is lost, once it has greeted.
    """

    token: str | None
    tls: ssl.SSLContext | None
    silence_s: float


class Link:
    """Sends requests to one replica.

    Args:
        address: host of the replica, and port where it takes doors; None: not known yet, see `move`.
        config: how to speak to it.
        on_change: called when the replica has come, has gone, or serves other models.
        on_told: called with what the replica tells of itself.

    Attributes:
        address: where the replica is; None: nowhere.
        greeting: what the replica said last of itself; None while it is away.
        accepting: whether it takes requests.
    """

    def __init__(
        self,
        address: tuple[str, int] | None,
        config: LinkConfig,
        on_change: Callable[[Link], None],
        on_told: Callable[[Link, Told], None],
    ) -> None:
        self.address = address
        self._moved = asyncio.Event()
        self._config = config
        self.on_change, self.on_told = on_change, on_told
        self.greeting: Greeting | None = None
        self.accepting = False
        self._connection: _Connection | None = None
        self._waiting: dict[int, asyncio.Future[AnswerFrame | None]] = {}
        self._last_id = 0
        self._keeper = asyncio.ensure_future(self._keep())

    @property
    def name(self) -> str:
        """Its address."""
        return "that is not placed" if self.address is None else "{}:{}".format(*self.address)

    def move(self, address: tuple[str, int] | None) -> None:
        """The replica is somewhere else now, or nowhere; what waits for an answer is lost."""
        if self._connection is not None:
            self._connection.abort()
            self._gone("it is not there any more")
        self.address = address
        self._moved.set()

    async def infer(self, request: InferFrame) -> AnswerFrame:
        """Send a request (its id is set here) and wait for its answer; when the calling task is cancelled, so is it.

        Raises:
            Refusal: the replica refused it.
            Lost: it did not answer.
        """
        self._last_id += 1
        answer = await self._ask(self._last_id, request._replace(id=self._last_id).pack())
        if answer is None:
            raise Refusal(Kind.FAULT, f"replica {self.name} answered what was not asked")
        return answer

    async def change(self, load: bool, name: str, version: str) -> None:
        """Load or unload a model there; errors as of `infer`."""
        self._last_id += 1
        await self._ask(self._last_id, repository_frame(self._last_id, load, name, version))

    async def _ask(self, id_: int, frame: list[bytes | memoryview]) -> AnswerFrame | None:
        if self._connection is None or not self.accepting:
            raise Lost(f"replica {self.name} is away")
        future: asyncio.Future[AnswerFrame | None] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        self._connection.write(frame)
        try:
            return await future
        except asyncio.CancelledError:
            if self._connection is not None:
                self._connection.write(cancel_frame(id_))
            raise
        finally:
            self._waiting.pop(id_, None)

    async def close(self) -> None:
        """End the connection; what waits for an answer is lost."""
        self._keeper.cancel()
        if self._connection is not None:
            self._connection.close()
        self.greeting = None  # nobody is told that it is lost
        self._gone("the door closes")

    async def _keep(self) -> None:
        """Keep a connection: open it, watch it, and open it again once it is lost."""
        loop, wait_s, said = asyncio.get_running_loop(), FIRST_RETRY_S, set[str]()
        while True:
            self._moved.clear()
            if self.address is None:
                await self._moved.wait()
                continue
            try:
                opening = loop.create_connection(
                    lambda: _Connection(self._config, self._on_frame), *self.address, ssl=self._config.tls
                )
                _, connection = await asyncio.wait_for(opening, CONNECT_S)
            except (OSError, UnicodeError) as error:  # TimeoutError, too; the second of a name that can be none
                why = str(error) or f"no answer for {CONNECT_S:g} s"
                if why not in said:  # each reason once: it is tried again and again
                    said.add(why)
                    log.info("replica %s cannot be reached so far: %s", self.name, why)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), wait_s)
                wait_s = min(2 * wait_s, LAST_RETRY_S)
                continue
            if self._moved.is_set():  # meanwhile
                connection.abort()
                continue
            self._connection = connection
            why = await self._watch(connection)
            connection.abort()
            if self.greeting is not None or self._moved.is_set():
                wait_s = FIRST_RETRY_S
                said.clear()
            else:
                wait_s = min(2 * wait_s, LAST_RETRY_S)
                if "silent" not in said:
                    said.add("silent")
                    log.warning(
                        "replica %s has not said what it serves; it may be starting, of another version or token, or speak TLS "
                        "where this door does not (--peer_ca), or the other way round: %s",
                        self.name, why,
                    )  # fmt: skip
            self._gone(why)
            await asyncio.sleep(wait_s)

    async def _watch(self, connection: _Connection) -> str:
        """Ping until the connection is lost or silent; returns why it is given up."""
        loop = asyncio.get_running_loop()
        connection.heard_s = loop.time()
        while not connection.lost.done():
            asked_s = loop.time()
            connection.write(ping_frame())
            await asyncio.wait([connection.lost], timeout=PING_S)
            now = loop.time()
            if now - asked_s > 2 * PING_S:
                connection.heard_s = now  # the door itself stood still, so that it has not listened
            # One that has not greeted yet gets no requests, and may be busy with its start.
            patience_s = CONNECT_S if self.greeting is None else self._config.silence_s
            if now - connection.heard_s > patience_s:
                return f"it has said nothing for {now - connection.heard_s:.2f} s"
        return connection.lost.result()

    def _gone(self, why: str) -> None:
        if self.greeting is not None:
            if self.accepting:
                log.warning("replica %s is lost: %s", self.name, why)
            else:
                log.info("replica %s, which took no more requests, is gone: %s", self.name, why)
        self._connection, self.greeting, self.accepting = None, None, False
        self.on_change(self)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Lost(f"replica {self.name} is lost: {why}"))

    def _on_frame(self, frame: memoryview) -> None:
        kind = frame[0]
        if kind == FrameKind.ANSWER:
            answer = read_answer(frame)
            self._end(answer.id, answer)
            self._tell(answer.told)
        elif kind == FrameKind.REFUSAL:
            refusal = read_refusal(frame)
            self._refuse(refusal)
            self._tell(refusal.told)
        elif kind == FrameKind.PONG:
            accepting, told = read_pong(frame)
            self._tell(told)
            if accepting != self.accepting and self.greeting is not None:
                self.accepting = accepting
                self.on_change(self)
        elif kind == FrameKind.DONE:
            self._end(read_id(frame), None)
        elif kind == FrameKind.GREETING:
            if self.greeting is None:
                log.info("replica %s is there", self.name)
            self.greeting = read_greeting(frame)
            self.accepting = True
            self.on_change(self)
        else:
            raise FrameError(f"a frame of kind {kind} does not come from a replica")

    def _end(self, id_: int, answer: AnswerFrame | None) -> None:
        future = self._waiting.get(id_)
        if future is not None and not future.done():
            future.set_result(answer)

    def _tell(self, told: Told) -> None:
        """Pass on what the replica tells, once whoever waited for its answer has noted the end."""
        asyncio.get_running_loop().call_soon(self.on_told, self, told)

    def _refuse(self, refused: RefusalFrame) -> None:
        future = self._waiting.get(refused.id)
        if future is None or future.done():
            return
        kind = KINDS[refused.reason] if refused.reason < len(KINDS) else Kind.FAULT
        if kind is Kind.STOPPING:
            future.set_exception(Lost(f"replica {self.name} takes no more requests"))
        else:
            future.set_exception(Refusal(kind, refused.message))


class _Connection(asyncio.Protocol):
    """One connection; `lost` says why it ended."""

    def __init__(self, config: LinkConfig, on_frame: Callable[[memoryview], None]) -> None:
        self._token = config.token
        self._reader = FrameReader(MOST_ANSWER, on_frame)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heard_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self.write(open_frame(self._token))

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        try:
            self._reader.feed(data)
        except (FrameError, UnicodeDecodeError) as error:
            self._lost(str(error))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(str(exc) if exc is not None else "it closed the connection")

    def _lost(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)

    def write(self, parts: list[bytes | memoryview]) -> None:
        """Send a frame."""
        if not self._transport.is_closing():
            self._transport.writelines(parts)

    def close(self) -> None:
        """End the connection once what was written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()
