"""What doors and replicas send each other: length-prefixed frames of fixed layout, little-endian. Nothing is unpickled.

A frame is its length after these 4 bytes, its kind, and what the kind has. Deadlines are sent as the time that is left, since
machines have no clock in common. The names, types and shapes of models go once, as JSON, in the replica's greeting.

gRPC was measured first, as streams over the server's own API: 0.7 ms of CPU for a request on both sides together, against 0.1
ms for frames. Where two cores serve models beside it, that is the difference between in time and late.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

MAGIC = b"STRAIT/1"
LENGTH = struct.Struct("<I")
MOST_TOKEN = 4096
MOST_GREETING = 4 * 2**20  # bytes of the description of a replica's models


class FrameKind(IntEnum):
    """What a frame is."""

    OPEN = 1  # door: the magic word and the token
    GREETING = 2  # replica: its models, as JSON; again whenever they change
    REQUEST = 3
    CANCEL = 4
    ANSWER = 5
    REFUSAL = 6
    PING = 7
    PONG = 8  # replica: what it holds, and whether it takes requests
    REPOSITORY = 9  # door: load or unload a model
    DONE = 10  # replica: it is loaded or unloaded


_REQUEST = struct.Struct("<BQHBdIBB")  # kind, id, model, priority, ms left, items, lengths of id and traceparent
_ANSWER = struct.Struct("<BQBdddIddI")  # kind, id, late, latency, queue, predicted, batch size, held (2), items
_REFUSAL = struct.Struct("<BQBBdd")  # kind, id, reason, seen by observers, held (2)
_CANCEL = struct.Struct("<BQ")
_PONG = struct.Struct("<BBdd")  # kind, accepting, held (2)
_REPOSITORY = struct.Struct("<BQB")  # kind, id, load (1) or unload (0); then the name


class FrameError(Exception):
    """The other side does not speak this protocol; the message is one line."""


class InferFrame(NamedTuple):
    """A request: its items are of one model, and are taken all or not at all.

    Attributes:
        id: the door's number.
        model: place in the greeting's list.
        priority: 0 (high) or 1 (low).
        left_ms: time to the deadline.
        items: how many.
        client_id: see `serving.engine.request.Origin`.
        traceparent: see there.
        values: bytes of the inputs, one after the other.
    """

    id: int
    model: int
    priority: int
    left_ms: float
    items: int
    client_id: bytes
    traceparent: bytes
    values: bytes | memoryview

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        id_, trace = self.client_id[:255], self.traceparent[:255]
        head = _REQUEST.pack(
            FrameKind.REQUEST, self.id, self.model, self.priority, self.left_ms, self.items, len(id_), len(trace)
        )
        return framed(head + id_ + trace, self.values)


class AnswerFrame(NamedTuple):
    """The answer to a request.

    Attributes:
        id: of the request.
        late: whether an item missed its deadline.
        latency_ms: on the replica; of several items the worst, as all that follows.
        queue_ms: before its dispatch.
        predicted_ms: from dispatch to end.
        batch_size: requests in its batch.
        held: (2,) work that the replica holds, by priority, see `envs.cluster.ledger`.
        items: how many.
        values: bytes of the outputs.
    """

    id: int
    late: bool
    latency_ms: float
    queue_ms: float
    predicted_ms: float
    batch_size: int
    held: tuple[float, float]
    items: int
    values: bytes | memoryview

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        head = _ANSWER.pack(
            FrameKind.ANSWER, self.id, self.late, self.latency_ms, self.queue_ms, self.predicted_ms, self.batch_size,
            *self.held, self.items,
        )  # fmt: skip
        return framed(head, self.values)


class RefusalFrame(NamedTuple):
    """A request that is not answered.

    Attributes:
        id: of the request.
        reason: place in `serving.api.refusal.Kind`.
        observed: whether the replica's observers have seen its end.
        held: as in `AnswerFrame`.
        message: one line.
    """

    id: int
    reason: int
    observed: bool
    held: tuple[float, float]
    message: str

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        head = _REFUSAL.pack(FrameKind.REFUSAL, self.id, self.reason, self.observed, *self.held)
        return framed(head + self.message.encode()[:4096], b"")


def framed(head: bytes, body: bytes | memoryview) -> list[bytes | memoryview]:
    """A frame in the parts that are written, so that large tensors are not copied."""
    prefix = LENGTH.pack(len(head) + len(body)) + head
    return [prefix, body] if len(body) else [prefix]


def open_frame(token: str | None) -> list[bytes | memoryview]:
    """The first frame of a door."""
    return framed(bytes([FrameKind.OPEN]) + MAGIC, (token or "").encode())


def read_open(frame: memoryview) -> bytes:
    """The token in it. Raises FrameError."""
    if frame[:1] != bytes([FrameKind.OPEN]) or frame[1 : 1 + len(MAGIC)] != MAGIC:
        raise FrameError("this is no door of this version")
    return bytes(frame[1 + len(MAGIC) :])


def greeting_frame(described: dict[str, Any]) -> list[bytes | memoryview]:
    """What a replica says of itself."""
    return framed(bytes([FrameKind.GREETING]), json.dumps(described).encode())


def cancel_frame(id_: int) -> list[bytes | memoryview]:
    """Give a request up."""
    return framed(_CANCEL.pack(FrameKind.CANCEL, id_), b"")


def ping_frame() -> list[bytes | memoryview]:
    """Ask for a sign of life."""
    return framed(bytes([FrameKind.PING]), b"")


def pong_frame(accepting: bool, held: tuple[float, float]) -> list[bytes | memoryview]:
    """The sign of life."""
    return framed(_PONG.pack(FrameKind.PONG, accepting, *held), b"")


def repository_frame(id_: int, load: bool, name: str) -> list[bytes | memoryview]:
    """Load or unload a model."""
    return framed(_REPOSITORY.pack(FrameKind.REPOSITORY, id_, load), name.encode()[:512])


def done_frame(id_: int) -> list[bytes | memoryview]:
    """That is done."""
    return framed(_CANCEL.pack(FrameKind.DONE, id_), b"")


def read_request(frame: memoryview) -> InferFrame:
    """Raises FrameError where it is cut short."""
    _, id_, model, priority, left_ms, items, n_id, n_trace = unpack(_REQUEST, frame)
    at = _REQUEST.size
    client_id, at = bytes(frame[at : at + n_id]), at + n_id
    traceparent, at = bytes(frame[at : at + n_trace]), at + n_trace
    return InferFrame(id_, model, priority, left_ms, items, client_id, traceparent, frame[at:])


def read_answer(frame: memoryview) -> AnswerFrame:
    """Raises FrameError where it is cut short."""
    _, id_, late, latency, queue, predicted, batch, high, low, items = unpack(_ANSWER, frame)
    values = frame[_ANSWER.size :]
    return AnswerFrame(id_, bool(late), latency, queue, predicted, batch, (high, low), items, values)


def read_refusal(frame: memoryview) -> RefusalFrame:
    """Raises FrameError where it is cut short."""
    _, id_, reason, observed, high, low = unpack(_REFUSAL, frame)
    message = bytes(frame[_REFUSAL.size :]).decode(errors="replace")
    return RefusalFrame(id_, reason, bool(observed), (high, low), message)


def read_id(frame: memoryview) -> int:
    """The number in a CANCEL or DONE. Raises FrameError."""
    return int(unpack(_CANCEL, frame)[1])


def read_pong(frame: memoryview) -> tuple[bool, tuple[float, float]]:
    """Whether the replica takes requests, and what it holds. Raises FrameError."""
    _, accepting, high, low = unpack(_PONG, frame)
    return bool(accepting), (high, low)


def read_repository(frame: memoryview) -> tuple[int, bool, str]:
    """Number, whether to load, and the model's name. Raises FrameError."""
    _, id_, load = unpack(_REPOSITORY, frame)
    return id_, bool(load), bytes(frame[_REPOSITORY.size :]).decode(errors="replace")


def unpack(layout: struct.Struct, frame: memoryview) -> tuple[Any, ...]:
    """The fields of a layout. Raises FrameError where the frame is shorter."""
    if len(frame) < layout.size:
        raise FrameError(f"a frame of {len(frame)} bytes; expected at least {layout.size}")
    return layout.unpack_from(frame)


class FrameReader:
    """Cuts a stream of bytes into frames.

    Args:
        most_bytes: of one frame.
        on_frame: called with each; what it is given is valid until it returns.
    """

    def __init__(self, most_bytes: int, on_frame: Callable[[memoryview], None]) -> None:
        self.most_bytes = most_bytes
        self._on_frame = on_frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they come.

        Raises:
            FrameError: a frame is empty or too long.
        """
        kept = bool(self._buffer)
        self._buffer += data if kept else b""
        whole: bytes | bytearray = self._buffer if kept else data
        at, end = 0, len(whole)
        with memoryview(whole) as view:
            while end - at >= LENGTH.size:
                (length,) = LENGTH.unpack_from(view, at)
                if not 0 < length <= self.most_bytes:
                    raise FrameError(f"a frame of {length} bytes; from 1 to {self.most_bytes} are allowed")
                if end - at - LENGTH.size < length:
                    break
                at += LENGTH.size
                with view[at : at + length] as frame:
                    self._on_frame(frame)
                at += length
        if kept:
            del self._buffer[:at]
        else:
            self._buffer += data[at:]
