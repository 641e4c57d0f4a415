"""What doors and replicas send each other: length-prefixed frames of fixed layout, little-endian. Nothing is unpickled.

A frame is its length after these 4 bytes, its kind, and what the kind has. Deadlines are sent as the time that is left, since
machines have no clock in common. The names and types of models and tensors go once, as JSON, in the replica's greeting
(`serving.cluster.greeting`); a tensor goes as its place among those of its model, its shape and its bytes.

gRPC was measured first, as streams over the server's own API: 0.7 ms of CPU for a request on both sides together, against 0.1
ms for frames. Where two cores serve models beside it, that is the difference between in time and late.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

MAGIC = b"STRAIT/5"
LENGTH = struct.Struct("<I")
MOST_TOKEN = 4096
HEAD_BYTES = 2**16  # of a request, beside the bytes of its tensors
MOST_ANSWER = 2**32 - 1  # bytes of what a replica sends: its answers are as large as its models make them


class FrameKind(IntEnum):
    """What a frame is."""

    OPEN = 1  # door: the magic word and the token
    GREETING = 2  # replica: its models, as JSON; again whenever they change
    REQUEST = 3
    CANCEL = 4
    ANSWER = 5
    REFUSAL = 6
    PING = 7
    PONG = 8  # replica: whether it takes requests, and what it tells of itself
    REPOSITORY = 9  # door: load or unload a model
    DONE = 10  # replica: it is loaded or unloaded


# kind, id, greeting, model, priority, ms left, lengths of id and traceparent, number of outputs, number of inputs
_REQUEST = struct.Struct("<BQIHBdBBHH")
# kind, id, late, latency, queue, predicted, batch size, number of outputs; then what the replica tells, and the tensors
_ANSWER = struct.Struct("<BQBdddIH")
_TENSOR = struct.Struct("<HBQ")  # place, dimensions, bytes; then the sides, 4 bytes each
_REFUSAL = struct.Struct("<BQBB")  # kind, id, reason, seen by observers; then what the replica tells, and the message
_CANCEL = struct.Struct("<BQ")
_PONG = struct.Struct("<BB")  # kind, accepting; then what the replica tells
# slowdown, busy streams, time left in flight, bytes of the counts and of the times to load; then both
_TOLD = struct.Struct("<dIdII")
_REPOSITORY = struct.Struct("<BQBB")  # kind, id, load (1) or unload (0), length of the version; then version and name


COUNT, COUNT_BYTES = "<u4", 4  # of requests
MS, MS_BYTES = "<f", 4
MOST_SIDES = 32  # of a tensor
# Formats are compiled once: for a small request, they would be a third of the work.
_SIDES = [struct.Struct(f"<{count}I") for count in range(MOST_SIDES + 1)]


class FrameError(Exception):
    """The other side does not speak this protocol; the message is one line."""


class SentTensor(NamedTuple):
    """An input or an output of all items of a request.

    Attributes:
        place: among those of its model.
        shape: of the array, items first.
        values: its bytes, as `serving.api.tensors.to_bytes` has them.
    """

    place: int
    shape: tuple[int, ...]
    values: bytes | memoryview


class InferFrame(NamedTuple):
    """A request: its items are of one model, and are taken all or not at all.

    Attributes:
        id: the door's number.
        greeting: number of the greeting that the door knows.
        model: place in its views; the bucket follows from the shapes of the inputs.
        priority: 0 (high) or 1 (low).
        left_ms: time to the deadline.
        client_id: see `serving.engine.request.Origin`.
        traceparent: see there.
        outputs: places of those that the client wants.
        inputs: all of the model's.
    """

    id: int
    greeting: int
    model: int
    priority: int
    left_ms: float
    client_id: bytes
    traceparent: bytes
    outputs: tuple[int, ...]
    inputs: tuple[SentTensor, ...]

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        id_, trace, outputs = self.client_id[:255], self.traceparent[:255], self.outputs
        head = _REQUEST.pack(
            FrameKind.REQUEST, self.id, self.greeting, self.model, self.priority, self.left_ms, len(id_), len(trace),
            len(outputs), len(self.inputs),
        )  # fmt: skip
        places = struct.pack(f"<{len(outputs)}H", *outputs)
        return framed(head + id_ + trace + places, self.inputs)


class Told(NamedTuple):
    """What a replica tells of itself with each answer and sign of life.

    Attributes:
        log_slowdown: log of how many times as long as it measured executions take there at present.
        busy: streams with a batch in flight.
        in_flight_ms: time left of these batches, in sum, as it foretells it.
        inside: requests in it, queued and in flight: of high priority for each model, in the order of its greeting's
            `total_ms`, then of low, as `COUNT`.
        load_ms: of each model how long it takes to load it, 0 where it is in memory, as `MS`; empty where all are.
    """

    log_slowdown: float
    busy: int
    in_flight_ms: float
    inside: bytes
    load_ms: bytes = b""

    def pack(self) -> bytes:
        """As sent."""
        sizes = len(self.inside), len(self.load_ms)
        return _TOLD.pack(self.log_slowdown, self.busy, self.in_flight_ms, *sizes) + self.inside + self.load_ms


def _read_told(frame: memoryview, at: int) -> tuple[Told, int]:
    """What a replica tells at a place of a frame, and where that ends. Raises FrameError."""
    log_slowdown, busy, in_flight_ms, n_inside, n_load = unpack(_TOLD, frame, at)
    if not (math.isfinite(log_slowdown) and math.isfinite(in_flight_ms)):
        raise FrameError(f"a frame with a slowdown of {log_slowdown} and {in_flight_ms} ms in flight")
    middle = at + _TOLD.size + n_inside
    end = middle + n_load
    _check_reaches(frame, end)
    load_ms = bytes(frame[middle:end])
    if n_load % MS_BYTES or not all(0.0 <= ms < math.inf for (ms,) in struct.iter_unpack(MS, load_ms)):
        raise FrameError("a frame with times to load that are none")
    return Told(log_slowdown, busy, in_flight_ms, bytes(frame[middle - n_inside : middle]), load_ms), end


class AnswerFrame(NamedTuple):
    """The answer to a request.

    Attributes:
        id: of the request.
        late: whether an item missed its deadline.
        latency_ms: on the replica; of several items the worst, as all that follows.
        queue_ms: before its dispatch.
        predicted_ms: from dispatch to end.
        batch_size: requests in its batch.
        told: what the replica tells of itself.
        outputs: those that the client wants.
    """

    id: int
    late: bool
    latency_ms: float
    queue_ms: float
    predicted_ms: float
    batch_size: int
    told: Told
    outputs: tuple[SentTensor, ...]

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        head = _ANSWER.pack(
            FrameKind.ANSWER, self.id, self.late, self.latency_ms, self.queue_ms, self.predicted_ms, self.batch_size,
            len(self.outputs),
        )  # fmt: skip
        return framed(head + self.told.pack(), self.outputs)


class RefusalFrame(NamedTuple):
    """A request that is not answered.

    Attributes:
        id: of the request.
        reason: place in `serving.api.refusal.Kind`.
        observed: whether the replica's observers have seen its end.
        told: as in `AnswerFrame`.
        message: one line.
    """

    id: int
    reason: int
    observed: bool
    told: Told
    message: str

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        head = _REFUSAL.pack(FrameKind.REFUSAL, self.id, self.reason, self.observed)
        return framed(head + self.told.pack() + self.message.encode()[:4096])


def framed(head: bytes, tensors: Sequence[SentTensor] = ()) -> list[bytes | memoryview]:
    """A frame in the parts that are written, so that large tensors are not copied."""
    sizes = 0
    for place, shape, values in tensors:
        head += _TENSOR.pack(place, len(shape), len(values)) + _SIDES[len(shape)].pack(*shape)
        sizes += len(values)
    prefix = LENGTH.pack(len(head) + sizes) + head
    return [prefix, *(one.values for one in tensors if len(one.values))]


def open_frame(token: str | None) -> list[bytes | memoryview]:
    """The first frame of a door."""
    return framed(bytes([FrameKind.OPEN]) + MAGIC + (token or "").encode())


def read_open(frame: memoryview) -> bytes:
    """The token in it. Raises FrameError."""
    if frame[:1] != bytes([FrameKind.OPEN]) or frame[1 : 1 + len(MAGIC)] != MAGIC:
        raise FrameError("this is no door of this version")
    return bytes(frame[1 + len(MAGIC) :])


def cancel_frame(id_: int) -> list[bytes | memoryview]:
    """Give a request up."""
    return framed(_CANCEL.pack(FrameKind.CANCEL, id_))


def ping_frame() -> list[bytes | memoryview]:
    """Ask for a sign of life."""
    return framed(bytes([FrameKind.PING]))


def pong_frame(accepting: bool, told: Told) -> list[bytes | memoryview]:
    """The sign of life."""
    return framed(_PONG.pack(FrameKind.PONG, accepting) + told.pack())


def repository_frame(id_: int, load: bool, name: str, version: str = "") -> list[bytes | memoryview]:
    """Load or unload a model, or a version of it."""
    given = version.encode()[:255]
    return framed(_REPOSITORY.pack(FrameKind.REPOSITORY, id_, load, len(given)) + given + name.encode()[:512])


def done_frame(id_: int) -> list[bytes | memoryview]:
    """That is done."""
    return framed(_CANCEL.pack(FrameKind.DONE, id_))


def read_request(frame: memoryview) -> InferFrame:
    """What is read of the frame is copied. Raises FrameError where it is cut short."""
    _, id_, greeting, model, priority, left_ms, n_id, n_trace, n_outputs, n_inputs = unpack(_REQUEST, frame)
    at = _REQUEST.size
    client_id, at = bytes(frame[at : at + n_id]), at + n_id
    traceparent, at = bytes(frame[at : at + n_trace]), at + n_trace
    end = at + 2 * n_outputs
    _check_reaches(frame, end)
    outputs = struct.unpack_from(f"<{n_outputs}H", frame, at)
    inputs = _tensors(frame, end, n_inputs)
    return InferFrame(id_, greeting, model, priority, left_ms, client_id, traceparent, outputs, inputs)


def read_answer(frame: memoryview) -> AnswerFrame:
    """What is read of the frame is copied. Raises FrameError where it is cut short."""
    _, id_, late, latency, queue, predicted, batch, n_outputs = unpack(_ANSWER, frame)
    told, at = _read_told(frame, _ANSWER.size)
    outputs = _tensors(frame, at, n_outputs)
    return AnswerFrame(id_, bool(late), latency, queue, predicted, batch, told, outputs)


def _tensors(frame: memoryview, at: int, count: int) -> tuple[SentTensor, ...]:
    """The tensors at the end of a frame: what is said of each, and then the bytes of each. They fill the frame."""
    heads = []
    for _ in range(count):
        place, n_sides, size = unpack(_TENSOR, frame, at)
        at += _TENSOR.size
        if n_sides > MOST_SIDES:
            raise FrameError(f"a frame with a tensor of {n_sides} dimensions; at most {MOST_SIDES} are allowed")
        heads.append((place, unpack(_SIDES[n_sides], frame, at), size))
        at += 4 * n_sides
    found = []
    for place, shape, size in heads:
        found.append(SentTensor(place, shape, bytes(frame[at : at + size])))
        at += size
    if at != len(frame):  # too short or too long
        raise FrameError(f"a frame of {len(frame)} bytes; its tensors end at {at}")
    return tuple(found)


def read_refusal(frame: memoryview) -> RefusalFrame:
    """Raises FrameError where it is cut short."""
    _, id_, reason, observed = unpack(_REFUSAL, frame)
    told, at = _read_told(frame, _REFUSAL.size)
    return RefusalFrame(id_, reason, bool(observed), told, bytes(frame[at:]).decode(errors="replace"))


def read_id(frame: memoryview) -> int:
    """The number in a CANCEL or DONE. Raises FrameError."""
    return int(unpack(_CANCEL, frame)[1])


def read_pong(frame: memoryview) -> tuple[bool, Told]:
    """Whether the replica takes requests, and what it tells of itself. Raises FrameError."""
    _, accepting = unpack(_PONG, frame)
    return bool(accepting), _read_told(frame, _PONG.size)[0]


def read_repository(frame: memoryview) -> tuple[int, bool, str, str]:
    """Number, whether to load, the model's name, and its version. Raises FrameError."""
    _, id_, load, n_version = unpack(_REPOSITORY, frame)
    at = _REPOSITORY.size + n_version
    version, name = bytes(frame[_REPOSITORY.size : at]), bytes(frame[at:])
    return id_, bool(load), name.decode(errors="replace"), version.decode(errors="replace")


def unpack(layout: struct.Struct, frame: memoryview, at: int = 0) -> tuple[Any, ...]:
    """The fields of a layout at a place of a frame. Raises FrameError where the frame is shorter."""
    _check_reaches(frame, at + layout.size)
    return layout.unpack_from(frame, at)


def _check_reaches(frame: memoryview, end: int) -> None:
    if len(frame) < end:
        raise FrameError(f"a frame of {len(frame)} bytes; expected at least {end}")


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
