"""An open-loop client: requests are sent when they are due, answered or not, and every answer is kept."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common.server import Connection, closed_loops, http_message
from serving.models.builtin.registry import BUILTIN
from traces.errors import InputError

START_S = 240.0
CAPACITY_CLIENTS = 32
MET = b'"outcome":"met"'
Offer = Callable[[str, int, float], Awaitable[bool]]  # model, priority and deadline in ms, to whether it was in time


def check_models(models: Sequence[str]) -> None:
    """Raise InputError for a model of --models that is not built in."""
    for name in models:
        if name not in BUILTIN:
            raise InputError(f"--models: no built-in model {name!r}; known are {', '.join(BUILTIN)}")


class Arrivals(NamedTuple):
    """Requests to send, by time.

    Attributes:
        due_s: (n,) when each is due, ascending.
        model: (n,) index of its model.
        priority: (n,) 0 (high) or 1 (low).
    """

    due_s: np.ndarray
    model: np.ndarray
    priority: np.ndarray


def poisson_arrivals(rates: Sequence[float], seconds: float, models: int, rng: np.random.Generator) -> Arrivals:
    """Poisson arrivals of each priority, spread evenly over the models.

    Args:
        rates: requests per second of high and of low priority.
        seconds: their length.
        models: how many models there are.
        rng: source of randomness.
    """
    counts = [rng.poisson(rate * seconds) for rate in rates]
    due_s = np.concatenate([rng.uniform(0.0, seconds, n) for n in counts])
    order = np.argsort(due_s)
    return Arrivals(due_s[order], rng.integers(models, size=len(due_s)), np.repeat([0, 1], counts)[order])


class Answer(NamedTuple):
    """One answer: its request's priority, its status, whether it was in time by the server's clock, ms since due and sent."""

    priority: int
    status: int
    met: bool
    since_due_ms: float
    since_sent_ms: float


class Connections:
    """Connections to the server that stay open; one more is opened when all are in use."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: deque[Connection] = deque()

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a whole HTTP request."""
        # The one that was idle longest comes first: under load none is idle until the server closes it.
        connection = self._free.popleft() if self._free else await Connection.open(self.port)
        answer = await connection.ask(message)
        if not connection.closed:
            self._free.append(connection)
        return answer

    def close(self) -> None:
        """Close all that are not in use."""
        for connection in self._free:
            connection.close()


def request_bytes(model: str, priority: int, timeout_ms: float) -> bytes:
    """One inference of a built-in model with a binary tensor, as it goes over the wire."""
    made = BUILTIN[model]
    data = np.zeros((1, *made.input_shape), made.input_dtype).tobytes()
    tensor = {
        "name": "input",
        "datatype": {"float32": "FP32", "int64": "INT64"}[made.input_dtype],
        "shape": [1, *made.input_shape],
        "parameters": {"binary_data_size": len(data)},
    }
    parameters = {"priority": priority + 1, "timeout": int(timeout_ms * 1e3), "binary_data_output": True}
    head = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return http_message(f"/v2/models/{model}/infer", head + data, [length])


def messages_of(models: Sequence[str], timeouts_ms: Sequence[float]) -> list[list[bytes]]:
    """A request of each priority and built-in model; its timeout is that of its priority."""
    return [
        [request_bytes(model, priority, timeout_ms) for model in models]
        for priority, timeout_ms in enumerate(timeouts_ms)
    ]


async def http_capacity(connections: Connections, models: Sequence[str], seconds: float) -> float:
    """Answers per second when there is always something to do."""
    messages = itertools.cycle([request_bytes(model, 1, 60_000.0) for model in models])

    async def call() -> None:
        status, body = await connections.ask(next(messages))
        if status != 200:
            raise RuntimeError(f"the server answered {status}: {body[:200]!r}")

    calls = [call] * CAPACITY_CLIENTS
    await closed_loops(calls, 0.25 * seconds)  # until the predictor has learned something
    latencies_ms, spent_s = await closed_loops(calls, seconds)
    return len(latencies_ms) / spent_s


async def offer(connections: Connections, arrivals: Arrivals, messages: Sequence[Sequence[bytes]]) -> list[Answer]:
    """Send requests when they are due and return all answers.

    Args:
        connections: to the server.
        arrivals: what is sent.
        messages: a request of each priority and model.
    """
    answers: list[Answer] = []
    start = time.perf_counter()

    async def one(priority: int, message: bytes, due_at: float) -> None:
        sent_at = time.perf_counter()
        status, body = await connections.ask(message)
        now = time.perf_counter()
        met = status == 200 and MET in body
        answers.append(Answer(priority, status, met, (now - due_at) * 1e3, (now - sent_at) * 1e3))

    tasks = []
    for due_s, model, priority in zip(*(column.tolist() for column in arrivals)):
        ahead_s = start + due_s - time.perf_counter()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        tasks.append(asyncio.ensure_future(one(priority, messages[priority][model], start + due_s)))
    await asyncio.gather(*tasks)
    return answers
