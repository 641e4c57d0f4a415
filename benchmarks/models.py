"""What serving costs the models that people have: ``python -m benchmarks.models``.

Writes the models of docs/examples/real_models, serves them in a process of their own, and calls each over connections that stay
open. Figures for each model, ``direct`` being its compiled form in this process, on one thread for each stream:

- ``direct_ms``, ``bare_ms``, ``http_ms``, ``grpc_ms``: one item alone, medians of alternating calls; ``bare_over_ms``,
  ``http_over_ms`` and ``grpc_over_ms``: what the server adds. ``bare`` is the least server that Python has
  (benchmarks.common.bare_server): below that no server gets,
- ``direct_rps``: items per second in batches of 8; ``served_rps``: of 16 clients with an item each; ``share``: the second over
  the first; ``gain``: items per second of batches of 8 over those of single items, directly; ``direct_cores`` and
  ``served_cores``: processor time per second of both, clients included. Where the latter is all that the machine has, the
  share says what protocol and clients take, not what scheduling does.

``lengths``: items per second of BERT with lengths drawn from 8 to 128, in buckets, and with each padded to 128 by its client;
and the first over the second. Lengths are drawn evenly (``even``), and evenly by their logarithm (``short``), as texts are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.common.command import as_command
from benchmarks.common.direct import BATCH, Direct, load_direct
from benchmarks.common.server import (
    Connection,
    closed_loops,
    free_port,
    http_message,
    running,
    serve_command,
    wait_until_ready,
)
from serving.models.listing import read_entries
from serving.models.served import ServedModel
from serving.models.tensors import Item, to_bytes
from traces.errors import InputError

MAKE = Path(__file__).resolve().parents[1] / "docs" / "examples" / "real_models" / "make.py"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
START_S = 600.0
TIMEOUT_US = 60_000_000
SHORTEST, LONGEST = 8, 128  # lengths of BERT

Call = Callable[[], Awaitable[object]]


@dataclass
class ModelsBenchmark:
    """What to measure.

    Attributes:
        models: names in docs/examples/real_models/models.yaml.
        width: of the networks.
        layers: of the networks.
        streams: of the server, and threads of the direct calls.
        clients: that call side by side.
        calls: single calls of each kind.
        seconds: of each round of many clients.
        rounds: of each.
    """

    models: list[str] = field(
        default_factory=lambda: ["bert", "vit", "resnet", "yolos", "wav2vec2", "tagger", "forest", "mood"]
    )
    width: int = 256
    layers: int = 4
    streams: int = 2
    clients: int = 16
    calls: int = 60
    seconds: float = 2.0
    rounds: int = 3


def http_bytes(model: ServedModel, item: Item) -> bytes:
    """A call of one item over HTTP, its tensors and those of the answer binary."""
    data = [bytes(to_bytes(values[np.newaxis])) for values in item]
    inputs = [
        {"name": spec.name, "datatype": spec.datatype, "shape": [1, *values.shape]}
        | {"parameters": {"binary_data_size": len(part)}}
        for spec, values, part in zip(model.inputs, item, data)
    ]
    head = json.dumps({"parameters": {"timeout": TIMEOUT_US, "binary_data_output": True}, "inputs": inputs}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return http_message(f"/v2/models/{model.model}/infer", b"".join([head, *data]), [length])


def grpc_bytes(model: ServedModel, item: Item) -> bytes:
    """The same over gRPC."""
    from serving.api.protocol import inference_pb2 as pb

    request = pb.ModelInferRequest(model_name=model.model)
    request.parameters["timeout"].int64_param = TIMEOUT_US
    for spec, values in zip(model.inputs, item):
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=[1, *values.shape])
        request.raw_input_contents.append(bytes(to_bytes(values[np.newaxis])))
    return request.SerializeToString()


def http_call(connection: Connection, messages: Sequence[bytes]) -> Call:
    """A call that sends one message after the other."""
    state = {"next": 0}

    async def call() -> None:
        message = messages[state["next"] % len(messages)]
        state["next"] += 1
        status, answer = await connection.ask(message)
        if status != 200:
            raise RuntimeError(f"the server answered {status}: {answer[:300]!r}")

    return call


class Served:
    """The server, as its clients have it."""

    def __init__(self, port: int, grpc_port: int, process_id: int) -> None:
        self.port, self.grpc_port = port, grpc_port
        self._process = psutil.Process(process_id)

    def processor_s(self) -> float:
        """Processor time that the server and this process, its clients, have taken."""
        spent = [one.cpu_times() for one in (self._process, *self._process.children(recursive=True))]
        return sum(float(one.user + one.system) for one in spent) + time.process_time()

    async def rate(self, messages: Sequence[Sequence[bytes]], seconds: float) -> float:
        """Answers per second to clients side by side, each with messages of its own."""
        async with contextlib.AsyncExitStack() as stack:
            calls = []
            for own in messages:
                connection = await Connection.open(self.port)
                stack.callback(connection.close)
                calls.append(http_call(connection, own))
            await asyncio.gather(*(call() for call in calls))
            latencies, spent = await closed_loops(calls, seconds)
        return len(latencies) / spent


async def alone(served: Served, bare_port: int, direct: Direct, calls: int) -> dict[str, float]:
    """Medians of single calls, in turn."""
    import grpc

    (item,) = direct.items(1)
    async with contextlib.AsyncExitStack() as stack:
        over: list[Call] = []
        for port in (bare_port, served.port):
            connection = await Connection.open(port)
            stack.callback(connection.close)
            over.append(http_call(connection, [http_bytes(direct.model, item)]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{served.grpc_port}"))
        method, message = channel.unary_unary(METHOD), grpc_bytes(direct.model, item)

        async def over_grpc() -> None:
            await method(message)

        async def directly() -> None:
            direct.run(1)

        ways: dict[str, Call] = {"direct": directly, "bare": over[0], "http": over[1], "grpc": over_grpc}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(calls):
            for name, call in ways.items():
                start = time.perf_counter()
                await call()
                spent[name].append(1e3 * (time.perf_counter() - start))
    found = {f"{name}_ms": statistics.median(values[calls // 10 :]) for name, values in spent.items()}
    return found | {f"{name}_over_ms": found[f"{name}_ms"] - found["direct_ms"] for name in ways if name != "direct"}


async def crowd(served: Served, direct: Direct, config: ModelsBenchmark) -> dict[str, float]:
    """Throughput of many clients beside that of direct batches, in turn."""
    messages = [[http_bytes(direct.model, item)] for item in direct.items(config.clients)]
    rates: dict[str, list[float]] = {
        name: [] for name in ("direct_rps", "direct_cores", "served_rps", "served_cores", "single")
    }

    async def take(name: str, rate: Awaitable[float]) -> None:
        begin_s, spent_s = time.perf_counter(), served.processor_s()
        rates[f"{name}_rps"].append(await rate)
        rates[f"{name}_cores"].append((served.processor_s() - spent_s) / (time.perf_counter() - begin_s))

    for _ in range(config.rounds):
        await take("direct", asyncio.to_thread(direct.rate, BATCH, config.streams, config.seconds))
        await take("served", served.rate(messages, config.seconds))
        rates["single"].append(await asyncio.to_thread(direct.rate, 1, config.streams, config.seconds / 4))
    found = {name: statistics.median(values) for name, values in rates.items()}
    single = found.pop("single")
    return found | {"share": found["served_rps"] / found["direct_rps"], "gain": found["direct_rps"] / single}


async def lengths(served: Served, bert: ServedModel, config: ModelsBenchmark) -> dict[str, dict[str, float]]:
    """BERT at lengths drawn in two ways, in buckets and padded to the longest, in turn."""
    rng = np.random.default_rng(0)
    draws: dict[str, Callable[[], float]] = {
        "even": lambda: rng.uniform(SHORTEST, LONGEST + 1),
        "short": lambda: np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1))),
    }
    found: dict[str, dict[str, float]] = {}
    for name, draw in draws.items():
        own: list[list[bytes]] = [[] for _ in range(config.clients)]
        padded: list[list[bytes]] = [[] for _ in range(config.clients)]
        for client in range(config.clients):
            for _ in range(32):
                length = int(draw())
                item = tuple(spec.sized(length).example(rng) for spec in bert.inputs)
                own[client].append(http_bytes(bert, item))
                wide = tuple(np.pad(values, (0, LONGEST - length)) for values in item)
                padded[client].append(http_bytes(bert, wide))
        rates: dict[str, list[float]] = {"buckets_rps": [], "padded_rps": []}
        for _ in range(config.rounds):
            rates["buckets_rps"].append(await served.rate(own, config.seconds))
            rates["padded_rps"].append(await served.rate(padded, config.seconds))
        found[name] = {key: statistics.median(values) for key, values in rates.items()}
        found[name]["ratio"] = found[name]["buckets_rps"] / found[name]["padded_rps"]
    return found


async def measure_all(config: ModelsBenchmark, folder: Path) -> dict[str, Any]:
    """Start the server, measure model by model, and sum up."""
    torch.set_num_threads(1)
    port, grpc_port, bare_port = free_port(), free_port(), free_port()
    flags = ["--models", str(folder), "--streams", str(config.streams), "--port", str(port)]
    command = serve_command(*flags, "--grpc", "--grpc_port", str(grpc_port))
    entries = read_entries([str(folder)])
    results: dict[str, Any] = {"models": {}}
    serve_bare = f"from benchmarks.common.bare_server import serve_bare; serve_bare({str(folder)!r}, {bare_port})"
    bare = [sys.executable, "-c", serve_bare]
    with running(command, Path.cwd()) as process, running(bare, Path.cwd()) as bare_process:
        served = Served(port, grpc_port, process.pid)
        await wait_until_ready(process, port, "the server", START_S)
        await wait_until_ready(bare_process, bare_port, "the bare server", START_S)
        for name in config.models:
            direct = load_direct(entries, name)
            results["models"][name] = await alone(served, bare_port, direct, config.calls)
            results["models"][name] |= await crowd(served, direct, config)
            if name == "bert":
                results["lengths"] = await lengths(served, direct.model, config)
    return results


def measure(config: ModelsBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run(
            [sys.executable, str(MAKE), made, str(config.width), str(config.layers)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        known = read_entries([made])
        if unknown := [name for name in config.models if name not in known]:
            raise InputError(f"--models: {', '.join(unknown)}: not among {', '.join(known)}")
        return asyncio.run(measure_all(config, folder))


main = as_command(measure, ModelsBenchmark, "models", __doc__)

if __name__ == "__main__":
    sys.exit(main())
