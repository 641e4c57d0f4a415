"""What a server does at twice its capacity: ``python -m benchmarks.overload``.

Starts ``serve.py`` with a few built-in models in a process of its own, measures over HTTP what it can answer, and then
offers high priority at half of that and low priority at one and a half times that, open loop: requests are sent when they
are due, answered or not. Prints a table, then one line of JSON with

- ``high``, ``low``: requests sent, and violations in percent: those not answered within their deadline by the server's clock,
  and those whose answer the client had later than that after the request was due (``violations_at_client``),
- ``status``: answers by HTTP status; ``once``: every request has exactly one answer and the server counted as many,
- ``refusals``: for each status its number and latency; 503 (queue full) is known on arrival, and so is most of 504 (the queue
  ahead puts the deadline out of reach, see `serving.api.admission`), the rest when waiting has made it so,
- ``rss_mb`` before and after, and ``rss_growth_percent``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jsonargparse import ArgumentParser
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.timing import machine
from benchmarks.front import free_port
from serving.models.builtin.registry import BUILTIN
from traces.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
FULL_S = 600.0
START_S = 240.0
CAPACITY_CLIENTS = 32
IDLE_S = 30.0  # a connection idle for longer is not used again; ApiConfig.keepalive_s is well above
PRIORITIES = ("high", "low")
MET = b'"outcome":"met"'


@dataclass
class OverloadBenchmark:
    """What to offer.

    Attributes:
        models: built-in models to serve, each with the same share of the requests.
        policy: who schedules.
        high: offered high-priority requests, as a share of the measured capacity. low: the same of low priority.
        deadline_ms: of every request.
        seconds: how long to offer.
        capacity_seconds: how long to measure the capacity.
        full: offer for ten minutes, for the growth of memory.
        seed: of the arrivals.
    """

    models: str = "bert,lstm,mobilenet"
    policy: str = "strait"
    high: float = 0.5
    low: float = 1.5
    deadline_ms: float = 250.0
    seconds: float = 30.0
    capacity_seconds: float = 4.0
    full: bool = False
    seed: int = 0


@dataclass(slots=True)
class Answered:
    """An answer: of which priority, its status, whether it was in time by the server's clock, ms since it was due and sent."""

    priority: int
    status: int
    met: bool
    since_due_ms: float
    since_sent_ms: float


class Connections:
    """Connections to the server that stay open; one more is opened when all are in use."""

    def __init__(self, port: int) -> None:
        self.port = port
        # Those used last are at the end, each with the time of that.
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # The server closes what is idle for long, perhaps just when it is used again.
        if self._free and self._free[-1][2] < time.monotonic() - IDLE_S:
            self.close()
        if self._free:
            return self._free.pop()[:2]
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a whole HTTP request."""
        reader, writer = await self._open()
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        begin = head.index(b"\r\ncontent-length:") + 17
        body = await reader.readexactly(int(head[begin : head.index(b"\r", begin)]))
        if b"connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer, time.monotonic()))
        return int(head[9:12]), body

    def close(self) -> None:
        """Close all that are not in use."""
        for _, writer, _ in self._free:
            writer.close()
        self._free.clear()


def request_bytes(model: str, priority: int, deadline_ms: float) -> bytes:
    """One inference with a binary tensor, as it goes over the wire."""
    made = BUILTIN[model]
    dtype = np.dtype(made.input_dtype)
    data = np.zeros((1, *made.input_shape), dtype).tobytes()
    tensor = {
        "name": "input",
        "datatype": {"float32": "FP32", "int64": "INT64"}[made.input_dtype],
        "shape": [1, *made.input_shape],
        "parameters": {"binary_data_size": len(data)},
    }
    parameters = {"priority": priority + 1, "timeout": int(deadline_ms * 1e3), "binary_data_output": True}
    head = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(head) + len(data)}",
        f"Inference-Header-Content-Length: {len(head)}",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + data


@contextlib.contextmanager
def serving(config: OverloadBenchmark) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server's process and port; it is told to stop afterwards, and must do so cleanly."""
    port = free_port()
    command = [sys.executable, str(ROOT / "serve.py"), "--models", config.models, "--policy", config.policy]
    process = subprocess.Popen([*command, "--port", str(port), "--log_level", "warning"], cwd=ROOT)
    try:
        yield process, port
        process.send_signal(signal.SIGTERM)
        if process.wait(30.0) != 0:
            raise RuntimeError(f"the server ended with status {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def wait_until_ready(process: subprocess.Popen[bytes], connections: Connections) -> None:
    """Return when the server takes requests."""
    last = time.perf_counter() + START_S
    while time.perf_counter() < last and process.poll() is None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            status, _ = await connections.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if status == 200:
                return
        await asyncio.sleep(0.2)
    raise RuntimeError("the server does not come up")


async def server_counts(connections: Connections) -> Counter[str]:
    """Requests that the server has ended, by outcome."""
    _, body = await connections.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name == "strait_requests_total":
                counts[sample.labels["outcome"]] += int(sample.value)
    return counts


async def measure_capacity(connections: Connections, models: list[str], seconds: float) -> float:
    """Answers a second when there is always something to do."""
    messages = [request_bytes(model, 1, 60_000.0) for model in models]
    answered, counting = 0, False
    now = time.perf_counter()
    end = now + 1.25 * seconds

    async def client(number: int) -> None:
        nonlocal answered
        for turn in itertools.count(number):
            if time.perf_counter() >= end:
                return
            status, _ = await connections.ask(messages[turn % len(messages)])
            answered += counting and status == 200

    clients = [asyncio.ensure_future(client(number)) for number in range(CAPACITY_CLIENTS)]
    await asyncio.sleep(0.25 * seconds)  # until it is full, and the predictor has seen something
    begin, counting = time.perf_counter(), True
    await asyncio.sleep(max(end - time.perf_counter(), 0.0))
    capacity = answered / (time.perf_counter() - begin)
    counting = False
    await asyncio.gather(*clients)
    return capacity


async def offer(connections: Connections, config: OverloadBenchmark, capacity: float, seconds: float) -> list[Answered]:
    """Send Poisson arrivals of both priorities when they are due and return all answers."""
    rng = np.random.default_rng(config.seed)
    models = config.models.split(",")
    due_s, priorities = [], []
    for priority, share in enumerate((config.high, config.low)):
        n = rng.poisson(share * capacity * seconds)
        due_s.append(rng.uniform(0.0, seconds, n))
        priorities.append(np.full(n, priority))
    due, which = np.concatenate(due_s), np.concatenate(priorities)
    order = np.argsort(due)
    messages = [[request_bytes(model, priority, config.deadline_ms) for model in models] for priority in (0, 1)]
    answers: list[Answered] = []
    start = time.perf_counter()

    async def one(priority: int, message: bytes, due_at: float) -> None:
        sent_at = time.perf_counter()
        status, body = await connections.ask(message)
        now = time.perf_counter()
        met = status == 200 and MET in body
        answers.append(Answered(priority, status, met, (now - due_at) * 1e3, (now - sent_at) * 1e3))

    tasks = []
    for i, model in zip(order, rng.integers(len(models), size=len(order))):
        due_at = start + float(due[i])
        ahead = due_at - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        priority = int(which[i])
        tasks.append(asyncio.ensure_future(one(priority, messages[priority][model], due_at)))
    await asyncio.gather(*tasks)
    return answers


def rss_mb(pid: int) -> float:
    """Memory of a process in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


def summarise(answers: list[Answered], deadline_ms: float) -> dict[str, Any]:
    """Violations by priority, answers by status and latency of the refusals."""
    result: dict[str, Any] = {}
    for priority, name in enumerate(PRIORITIES):
        own = [a for a in answers if a.priority == priority]
        late = sum(a.status != 200 or a.since_due_ms > deadline_ms for a in own)
        result[name] = {
            "sent": len(own),
            "violations": percent(sum(not a.met for a in own), len(own)),
            "violations_at_client": percent(late, len(own)),
            "p99_ms": quantiles([a.since_due_ms for a in own if a.status == 200])["p99_ms"],
        }
    result["status"] = {str(s): n for s, n in sorted(Counter(a.status for a in answers).items())}
    result["refusals"] = {
        s: {"n": n} | quantiles([a.since_sent_ms for a in answers if a.status == int(s)])
        for s, n in result["status"].items()
        if s != "200"
    }
    return result


def percent(part: int, whole: int) -> float:
    """A share in percent; 0 of nothing."""
    return round(100 * part / whole, 3) if whole else 0.0


def quantiles(values: list[float]) -> dict[str, float | None]:
    """Median and 99th percentile in ms; None of nothing."""
    p50, p99 = np.percentile(values, [50, 99]) if values else (None, None)
    return {"p50_ms": p50 and round(float(p50), 2), "p99_ms": p99 and round(float(p99), 2)}


async def measure(config: OverloadBenchmark) -> dict[str, Any]:
    """Start the server, measure its capacity, overload it, and sum up."""
    seconds = FULL_S if config.full else config.seconds
    with serving(config) as (process, port):
        connections = Connections(port)
        await wait_until_ready(process, connections)
        capacity = await measure_capacity(connections, config.models.split(","), config.capacity_seconds)
        before_mb, before = rss_mb(process.pid), await server_counts(connections)
        answers = await offer(connections, config, capacity, seconds)
        after_mb, counted = rss_mb(process.pid), await server_counts(connections) - before
        connections.close()
    result = summarise(answers, config.deadline_ms)
    sent = sum(result[name]["sent"] for name in PRIORITIES)
    result["server"] = dict(sorted(counted.items()))
    result["once"] = len(answers) == sent == sum(counted.values())
    result["capacity_rps"] = round(capacity, 1)
    result["rss_mb"] = [round(before_mb, 1), round(after_mb, 1)]
    result["rss_growth_percent"] = round(100 * (after_mb / before_mb - 1), 2)
    return result | {"config": asdict(config) | {"seconds": seconds}, "machine": machine()}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"capacity {result['capacity_rps']:.1f} requests/s; answers by status {result['status']}")
    print(f"{'':<10}{'sent':>8}{'violations %':>15}{'at client %':>15}{'p99 ms':>10}")
    for name in PRIORITIES:
        row = result[name]
        p99 = "-" if row["p99_ms"] is None else f"{row['p99_ms']:.1f}"
        print(f"{name:<10}{row['sent']:>8}{row['violations']:>15.2f}{row['violations_at_client']:>15.2f}{p99:>10}")
    for status, row in result["refusals"].items():
        print(f"{status} {row['n']:>14} refusals, after {row['p50_ms']:.1f} ms (median), {row['p99_ms']:.1f} ms (p99)")
    print(f"server's memory {result['rss_mb'][0]:.0f} to {result['rss_mb'][1]:.0f} MB; each once: {result['once']}")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.overload", description=__doc__.split("\n\n")[0])
    parser.add_class_arguments(OverloadBenchmark, as_group=False)
    words = ["--full=true" if word == "--full" else word for word in (sys.argv[1:] if argv is None else argv)]
    config = OverloadBenchmark(**parser.parse_args(words).as_dict())
    try:
        for name in config.models.split(","):
            if name not in BUILTIN:
                raise InputError(f"--models: no built-in model {name!r}; known are {', '.join(BUILTIN)}")
        if min(config.seconds, config.capacity_seconds, config.deadline_ms) <= 0 or min(config.high, config.low) < 0:
            raise InputError("--seconds, --capacity_seconds, --deadline_ms, --high, --low: positive numbers are wanted")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = asyncio.run(measure(config))
    show(result)
    print(json.dumps(result))
    return 0 if result["once"] else 1


if __name__ == "__main__":
    sys.exit(main())
