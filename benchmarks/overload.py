"""What a server does at twice its capacity: ``python -m benchmarks.overload``.

Starts ``serve.py`` with a few built-in models in a process of its own, measures over HTTP how much it can answer, and then
offers high priority at half of that and low priority at one and a half times that, open loop: requests are sent when they
are due, answered or not. Figures:

- ``high``, ``low``: requests sent, and violations in percent: those not answered within their deadline by the server's clock,
  and those whose answer the client had later than that after the request was due (``violations_at_client``),
- ``status``: answers by HTTP status; ``once``: every request has exactly one answer and the server counted as many,
- ``refusals``: for each status its number and latency; 503 (queue full) is known on arrival, and so is most of 504 (the queue
  ahead puts the deadline out of reach, see `serving.engine.admission`), the rest when waiting has made it so,
- ``rss_mb`` before and after, and ``rss_growth_percent``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.command import as_command
from benchmarks.common.open_loop import (
    START_S,
    Connections,
    check_models,
    http_capacity,
    messages_of,
    offer,
    poisson_arrivals,
)
from benchmarks.common.server import free_port, http_message, running, serve_command, wait_until_ready
from traces.errors import InputError
from traces.workload import PRIORITIES

FULL_S = 600.0
STOP_S = 30.0
CAPACITY_S = 4.0


@dataclass
class OverloadBenchmark:
    """What to offer.

    Attributes:
        models: built-in models to serve, each with the same share of the requests.
        policy: the scheduling policy.
        high: offered high-priority requests, as a share of the measured capacity.
        low: the same of low priority.
        deadline_ms: of every request.
        seconds: how long to offer.
        full: offer for ten minutes, for the growth of memory.
        seed: of the arrivals.

    Raises:
        InputError: a setting is out of range.
    """

    models: list[str] = field(default_factory=lambda: ["bert", "lstm", "mobilenet"])
    policy: str = "strait"
    high: float = 0.5
    low: float = 1.5
    deadline_ms: float = 250.0
    seconds: float = 30.0
    full: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_models(self.models)
        if min(self.seconds, self.deadline_ms) <= 0 or min(self.high, self.low) < 0:
            raise InputError("--seconds, --deadline_ms, --high, --low: must be positive")
        if self.full:
            self.seconds = FULL_S


@contextlib.contextmanager
def serving(config: OverloadBenchmark) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server's process and port; it gets SIGTERM afterwards, and must end with status 0."""
    port = free_port()
    command = serve_command("--models", ",".join(config.models), "--policy", config.policy, "--port", str(port))
    with running(command, Path.cwd()) as process:
        yield process, port
        process.send_signal(signal.SIGTERM)
        if process.wait(STOP_S) != 0:
            raise RuntimeError(f"the server ended with status {process.returncode}")


async def server_counts(connections: Connections) -> Counter[str]:
    """Requests that the server has ended, by outcome."""
    _, body = await connections.ask(http_message("/metrics"))
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name == "strait_requests_total":
                counts[sample.labels["outcome"]] += int(sample.value)
    return counts


def summarise(answers: pd.DataFrame, deadline_ms: float) -> dict[str, Any]:
    """Violations by priority, answers by status and latency of the refusals; one row per answer."""
    late = (answers["status"] != 200) | (answers["since_due_ms"] > deadline_ms)
    result: dict[str, Any] = {}
    for priority, name in enumerate(PRIORITIES):
        own = answers["priority"] == priority
        result[name] = {
            "sent": int(own.sum()),
            "violations": 100.0 * float((~answers["met"][own]).mean()),
            "violations_at_client": 100.0 * float(late[own].mean()),
            "p99_ms": float(answers["since_due_ms"][own & (answers["status"] == 200)].quantile(0.99)),
        }
    by_status = {str(status): ms for status, ms in answers.groupby("status")["since_sent_ms"]}
    result["status"] = {status: len(ms) for status, ms in by_status.items()}
    result["refusals"] = {
        status: {"n": len(ms), "p50_ms": float(ms.median()), "p99_ms": float(ms.quantile(0.99))}
        for status, ms in by_status.items()
        if status != "200"
    }
    return result


async def overload(config: OverloadBenchmark) -> dict[str, Any]:
    """Start the server, measure its capacity, overload it, and sum up; see the module for what is returned."""
    with serving(config) as (process, port):
        connections = Connections(port)
        await wait_until_ready(process, port, "the server", START_S)
        memory = psutil.Process(process.pid).memory_info
        capacity = await http_capacity(connections, config.models, CAPACITY_S)
        before_mb, before = memory().rss / 1e6, await server_counts(connections)
        rates = config.high * capacity, config.low * capacity
        arrivals = poisson_arrivals(rates, config.seconds, len(config.models), np.random.default_rng(config.seed))
        messages = messages_of(config.models, [config.deadline_ms] * len(PRIORITIES))
        answers = await offer(connections, arrivals, messages)
        after_mb, counted = memory().rss / 1e6, await server_counts(connections) - before
        connections.close()
    result = summarise(pd.DataFrame(answers), config.deadline_ms)
    return result | {
        "server": dict(sorted(counted.items())),
        "once": len(answers) == sum(result[name]["sent"] for name in PRIORITIES) == sum(counted.values()),
        "capacity_rps": capacity,
        "rss_mb": [before_mb, after_mb],
        "rss_growth_percent": 100 * (after_mb / before_mb - 1),
        "config": asdict(config),
    }


def measure(config: OverloadBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    return asyncio.run(overload(config))


main = as_command(measure, OverloadBenchmark, "overload", __doc__, check="once")

if __name__ == "__main__":
    sys.exit(main())
