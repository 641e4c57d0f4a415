"""Strait and NVIDIA Triton as servers, side by side: ``python -m benchmarks.triton --triton FOLDER``.

Both serve the same built-in models, as the same TorchScript graphs, on the same cores to the same client over HTTP. It sends
the same arrivals of two priorities to one and then to the other, open loop; both are told each request's priority and timeout.

Triton is set up as well as it can be here: its Python backend with one process per model and one thread each, tensors handed
over without copies, memory kept as Strait keeps it; dynamic batching that waits for nothing, two priority levels, and requests
rejected that have waited longer than their timeout. That is the deadline less ``triton_margin_ms``, since Triton's timeout ends
with the wait in the queue, the deadline with the answer.

Loads are shares of what Strait can answer when there is always something to do, measured anew in each round, since the speed of
a machine that is shared with others changes. Figures, means over the rounds:

- ``capacity_rps``: what each server answers per second when there is always something to do,
- ``goodput``: answers per second that the client had within the deadline of their request, counted from when it was due,
- ``high_violated``, ``low_violated``: percent of the requests of each priority without such an answer,
- ``refused``: percent of all requests that were answered by another status than 200,
- ``ahead``: Strait's goodput less Triton's, with a bootstrap 95 % interval over the rounds: low, mean, high;
  ``ahead_above_0.9``: whether the mean is above 0 at every load of more than 0.9.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.evaluation.statistics import bootstrap
from benchmarks.common.command import as_command
from benchmarks.common.open_loop import (
    START_S,
    Answer,
    Arrivals,
    Connections,
    check_models,
    http_capacity,
    messages_of,
    offer,
    poisson_arrivals,
)
from benchmarks.common.server import free_port, running, serve_command, wait_until_ready
from benchmarks.common.triton import SETUP, Batching, add_model, check_triton, triton_command
from serving.models.served import ModelSpec
from traces.errors import InputError
from traces.workload import HIGH_WEIGHT, PRIORITIES

SERVERS = ("strait", "triton")
CAPACITY_S = 1.5
SOURCE = f"{SETUP}; python -m benchmarks.triton --triton FOLDER"


@dataclass
class TritonBenchmark:
    """What to compare.

    Attributes:
        triton: folder where nvidia-pytriton is installed; the variable TRITON_FOLDER is its default.
        models: built-in models to serve, each with the same share of the requests.
        policy: Strait's scheduling policy.
        high_weight: what a high-priority request counts to it, a low-priority one being 1.
        loads: offered requests, as shares of the capacity.
        high_fraction: share of high priority in them.
        high_deadline_ms: deadline of high priority.
        low_deadline_ms: deadline of low priority.
        seconds: duration of one server at one load in a round.
        rounds: each offers all loads to both servers, with arrivals of its own.
        triton_margin_ms: by how much a request's timeout for Triton is shorter than its deadline.
        triton_max_batch: most requests in a batch of Triton's.
        triton_instances: processes of each model of Triton's.
        triton_delay_us: how long a batch of Triton's that is not full waits for more requests.
        seed: of the arrivals.

    Raises:
        InputError: a setting is out of range.
    """

    triton: str = os.environ.get("TRITON_FOLDER", "")
    models: list[str] = field(default_factory=lambda: ["bert", "lstm", "mobilenet"])
    policy: str = "strait"
    high_weight: float = HIGH_WEIGHT
    loads: list[float] = field(default_factory=lambda: [0.7, 0.9, 1.1, 1.3, 1.5])
    high_fraction: float = 0.3
    high_deadline_ms: float = 100.0
    low_deadline_ms: float = 250.0
    seconds: float = 1.25
    rounds: int = 2
    triton_margin_ms: float = 50.0
    triton_max_batch: int = 4
    triton_instances: int = 1
    triton_delay_us: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.triton:
            check_triton(self.triton)
        check_models(self.models)
        if not self.loads or not self.models or min(*self.loads, *self.deadlines_ms, self.seconds) <= 0:
            raise InputError("--models, --loads, --high_deadline_ms, --low_deadline_ms, --seconds: must be positive")
        if min(self.rounds, self.triton_max_batch, self.triton_instances) < 1 or self.triton_delay_us < 0:
            raise InputError("--rounds, --triton_max_batch, --triton_instances: must be at least 1")
        if not 0 <= self.high_fraction <= 1:
            raise InputError(f"--high_fraction: {self.high_fraction}; it must be from 0 to 1")
        if not 0 <= self.triton_margin_ms < min(self.deadlines_ms):
            raise InputError(f"--triton_margin_ms: {self.triton_margin_ms}; it must be shorter than each deadline")

    @property
    def deadlines_ms(self) -> tuple[float, float]:
        """Deadlines by priority."""
        return self.high_deadline_ms, self.low_deadline_ms


class Target(NamedTuple):
    """A server that runs.

    Attributes:
        name: one of `SERVERS`.
        process: its process.
        connections: to it.
        messages: a request of each priority and model.
    """

    name: str
    process: subprocess.Popen[bytes]
    connections: Connections
    messages: list[list[bytes]]


@contextlib.contextmanager
def started(name: str, config: TritonBenchmark, home: Path) -> Iterator[Target]:
    """Start a server in a process of its own and end it afterwards."""
    port, margin_ms = free_port(), 0.0
    home.mkdir()
    if name == "triton":
        batching = Batching(config.triton_max_batch, config.triton_instances, config.triton_delay_us)
        for model in config.models:
            add_model(home, ModelSpec(model, f"builtin:{model}"), batching)
        command, environment = triton_command(config.triton, home, port, free_port())
        margin_ms = config.triton_margin_ms
    else:
        settings = ["--policy", config.policy, "--high_weight", str(config.high_weight)]
        command = serve_command("--models", ",".join(config.models), *settings, "--port", str(port))
        environment = {}
    messages = messages_of(config.models, [deadline_ms - margin_ms for deadline_ms in config.deadlines_ms])
    log = home / "log"
    with running(command, home, environment, log) as process, contextlib.closing(Connections(port)) as connections:
        try:
            yield Target(name, process, connections, messages)
        except Exception:
            print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
            raise


def counted(answers: Sequence[Answer], deadlines_ms: Sequence[float], seconds: float) -> dict[str, float]:
    """Goodput, violations by priority and refusals in percent, of the answers to what was offered in some seconds."""
    priority = np.array([answer.priority for answer in answers])
    limits_ms = np.asarray(deadlines_ms)[priority]
    taken = np.array([answer.status == 200 for answer in answers])
    met = taken & (np.array([answer.since_due_ms for answer in answers]) <= limits_ms)
    violations = {
        f"{name}_violated": 100.0 * float(1.0 - met[priority == number].mean()) if (priority == number).any() else 0.0
        for number, name in enumerate(PRIORITIES)
    }
    return {"goodput": float(met.sum()) / seconds, **violations, "refused": 100.0 * float(1.0 - taken.mean())}


def arrivals_of(config: TritonBenchmark, rate: float, load: float, number: int) -> Arrivals:
    """What a round offers at a load, to all servers."""
    rng = np.random.default_rng([config.seed, number, round(1000 * load)])
    high = config.high_fraction
    return poisson_arrivals((high * rate, (1.0 - high) * rate), config.seconds, len(config.models), rng)


class Counts(NamedTuple):
    """What was counted of one server.

    Attributes:
        capacity_rps: of each round.
        by_load: for each load, what `counted` found in each round.
    """

    capacity_rps: list[float]
    by_load: dict[float, list[dict[str, float]]]


async def offer_in_turns(config: TritonBenchmark, targets: Sequence[Target]) -> dict[str, Counts]:
    """Offer each round's arrivals at each load to all servers, one after the other, in an order that changes."""
    counts = {target.name: Counts([], {load: [] for load in config.loads}) for target in targets}
    for number in range(config.rounds):
        for target in targets:
            found = await http_capacity(target.connections, config.models, CAPACITY_S)
            counts[target.name].capacity_rps.append(found)
        capacity = counts["strait"].capacity_rps[-1]
        for place, load in enumerate(config.loads):
            arrivals = arrivals_of(config, load * capacity, load, number)
            for target in targets if (number + place) % 2 == 0 else targets[::-1]:
                answers = await offer(target.connections, arrivals, target.messages)
                assert len(answers) == len(arrivals.due_s)
                counts[target.name].by_load[load].append(counted(answers, config.deadlines_ms, config.seconds))
    return counts


def summarise(counts: Mapping[str, Counts]) -> dict[str, Any]:
    """Means over the rounds, and by how much Strait is ahead where both were measured."""
    capacities = {name: float(np.mean(of_server.capacity_rps)) for name, of_server in counts.items()}
    result: dict[str, Any] = {"capacity_rps": capacities}
    for name, of_server in counts.items():
        result[name] = {
            f"{load:g}": {figure: float(np.mean([row[figure] for row in rows])) for figure in rows[0]}
            for load, rows in of_server.by_load.items()
        }
    if "triton" in counts:
        ahead = {}
        for load, ours in counts["strait"].by_load.items():
            theirs = counts["triton"].by_load[load]
            ahead[load] = bootstrap(np.array([a["goodput"] - b["goodput"] for a, b in zip(ours, theirs, strict=True)]))
        result["ahead"] = {f"{load:g}": list(found) for load, found in ahead.items()}
        result["ahead_above_0.9"] = all(mean > 0 for load, (_, mean, _) in ahead.items() if load > 0.9)
    return result


async def compare(config: TritonBenchmark) -> dict[str, Any]:
    """Start the servers, measure what each can answer, offer, and sum up; see the module for what is returned."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = SERVERS if config.triton else SERVERS[:1]
        targets = [stack.enter_context(started(name, config, folder / name)) for name in names]
        for target in targets:
            await wait_until_ready(target.process, target.connections.port, target.name, START_S)
            await http_capacity(target.connections, config.models, CAPACITY_S)  # a first run that does not count
        counts = await offer_in_turns(config, targets)
    # Where Triton lies is of no interest elsewhere.
    return summarise(counts) | {"config": asdict(config) | {"triton": bool(config.triton)}}


def measure(config: TritonBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    if not config.triton:
        print(f"Triton is not measured; to have it: {SOURCE}", file=sys.stderr)
    return asyncio.run(compare(config))


main = as_command(measure, TritonBenchmark, "triton", __doc__)

if __name__ == "__main__":
    sys.exit(main())
