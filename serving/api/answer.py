"""Answers: for whom, what is in them, and how they are made from the ends of a call's requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serving.api.refusal import Refusal
from serving.engine.request import UNNAMED, Origin, Request, RequestResult
from serving.models.tensors import Item, TensorSpec

LONGEST_NAME = 128  # of what a client calls its request, in headers and logs


class Answer(NamedTuple):
    """An answered request.

    Attributes:
        outputs: (n, *shape) for each output that the client wants.
        parameters: outcome ("met", "late"), latency_us, queue_us, batch_size, predicted_us; of several items the worst. On
            request quoted_percent.
    """

    outputs: tuple[np.ndarray, ...]
    parameters: dict[str, int | str]


class Quotation(NamedTuple):
    """What a request could expect, as both protocols answer it.

    Attributes:
        name: of the model.
        priority: 1 (high) or 2 (low).
        timeout: its deadline, us from now.
        probability: of being in time.
        finish_us: predicted time from now to its end, if it is executed, by quantile: p50, p90, p95.
    """

    name: str
    priority: int
    timeout: int
    probability: float
    finish_us: dict[str, int]


@dataclass(slots=True)
class Caller:
    """Whom an answer is for.

    Attributes:
        protocol: "http" or "grpc".
        address: of the client, without its port.
        origin: what the client says of its request.
        left_ms: time that the client waits for the answer; None if it does not say.
    """

    protocol: str
    address: str
    origin: Origin = UNNAMED
    left_ms: float | None = None

    @staticmethod
    def of(protocol: str, address: str, header: Callable[[str], str | None]) -> Caller:
        """By the headers x-request-id and traceparent of a call; `header` gives one by its name in small letters."""
        id_, trace = header("x-request-id"), header("traceparent")
        return Caller(protocol, address, Origin(_shown(id_), _shown(trace)) if id_ or trace else UNNAMED)

    def named(self, id_: str | None) -> None:
        """Note the id in a request, which goes before that of its headers."""
        if id_:
            self.origin = self.origin._replace(client_id=_shown(id_))

    def headers(self) -> dict[str, str]:
        """What goes back with the answer, refusals too: x-request-id and traceparent."""
        if self.origin is UNNAMED:
            return {}
        pairs = zip(("x-request-id", "traceparent"), self.origin)
        return {name: value for name, value in pairs if value and value.isascii()}


DIRECT = Caller("", "")  # nobody's, as in tests


def _shown(text: str | None) -> str:
    """A client's words, fit for a header and a line of a log."""
    return "".join(one if one.isprintable() else "?" for one in (text or "")[:LONGEST_NAME])


async def ends_of(requests: list[Request]) -> list[RequestResult]:
    """The ends of all requests, or the Refusal of the first that was not answered."""
    if len(requests) > 1:
        for request in requests:  # those that are refused on arrival, before waiting for the others
            if request.future.done():
                _answered(request.future.result())
    return [_answered(await request.future) for request in requests]


def _answered(result: RequestResult) -> RequestResult:
    if not result.answered:
        raise Refusal.of(result)
    return result


def items_of(values: tuple[np.ndarray, ...]) -> list[Item]:
    """The inputs of a call, item by item."""
    if len(values) == 1 == len(values[0]):  # the usual call
        return [(values[0][0, ...],)]
    # Of one dimension, the elements would leave as numbers.
    rows = [[one[k, ...] for k in range(len(one))] if one.ndim == 1 else list(one) for one in values]
    return list(zip(*rows))


def answer_of(
    results: list[RequestResult], outputs: Sequence[tuple[int, TensorSpec]], loading_ms: float = 0.0
) -> Answer:
    """The answer from the ends of all requests: those outputs that are asked for, by their places.

    Before they arrived in the engine, their model was loaded for `loading_ms`.
    """
    last, *others = results
    outcome, latency_ms, queue_ms = last.outcome, last.latency_ms, last.queue_ms
    batch_size, predicted_ms = last.batch_size, last.predicted_ms
    for one in others:  # there are none in the usual call
        outcome = "late" if one.outcome == "late" else outcome
        latency_ms, queue_ms = max(latency_ms, one.latency_ms), max(queue_ms, one.queue_ms)
        batch_size, predicted_ms = max(batch_size, one.batch_size), max(predicted_ms, one.predicted_ms)
    worst: dict[str, int | str] = {
        "outcome": outcome,
        "latency_us": round(1e3 * (loading_ms + latency_ms)),
        "queue_us": round(1e3 * (loading_ms + queue_ms)),
        "batch_size": batch_size,
        "predicted_us": round(1e3 * predicted_ms),
    }
    items = [result.outputs for result in results if result.outputs is not None]
    return Answer(tuple(_stacked([item[place] for item in items], spec) for place, spec in outputs), worst)


def _stacked(rows: list[np.ndarray], spec: TensorSpec) -> np.ndarray:
    """An output of all items; where its size differs, the smaller ones are padded."""
    if len(rows) == 1:
        return rows[0][np.newaxis]
    if not spec.varies or len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    whole = tuple(map(max, zip(*(row.shape for row in rows))))
    made = np.full((len(rows), *whole), spec.fill(spec.pad), spec.dtype)
    for k, row in enumerate(rows):
        made[k][tuple(map(slice, row.shape))] = row
    return made
