"""How long the front of the server takes: ``python -m benchmarks.front``.

An identity model (16 numbers in, 16 out) behind our HTTP and gRPC doors, and beside them, where a virtual environment has
them, the same model behind LitServe and MLServer. Server and client are processes of their own; all servers are asked by
the same bare client, over connections that stay open, in turns within one run. Prints a table, then one line of JSON:
``{server: {protocol: {clients: {p50_ms, p99_ms, rps}}}}``, null where a server was not measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from traces.errors import InputError

WIDTH = 16
VALUES = [float(i) for i in range(WIDTH)]
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
OIP_BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "data": VALUES}]}
START_S = 30.0
HOW = "python -m venv VENV; VENV/bin/pip install litserve mlserver; python -m benchmarks.front --venv VENV"


@dataclass
class FrontBenchmark:
    """What to measure.

    Attributes:
        venv: virtual environment with LitServe and MLServer; the variable FRONT_BENCH_VENV is its default.
        clients: numbers of concurrent clients.
        seconds: time a round of one server, protocol and number of clients.
        rounds: rounds; the servers take turns in each. Many short ones, so that a slow second of the machine meets all alike.
    """

    venv: str = os.environ.get("FRONT_BENCH_VENV", "")
    clients: list[int] = field(default_factory=lambda: [1, 32])
    seconds: float = 0.4
    rounds: int = 8


# The servers, each a script of its own process: port of HTTP, port of gRPC.

LITSERVE = """
import sys, litserve as ls
class Identity(ls.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request["input"]
    def predict(self, x): return x
    def encode_response(self, output): return {"output": output}
if __name__ == "__main__":
    ls.LitServer(Identity(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
"""

MLSERVER_MODEL = """
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput
class Identity(MLModel):
    async def load(self): return True
    async def predict(self, payload):
        x = payload.inputs[0]
        output = ResponseOutput(name="output", datatype=x.datatype, shape=x.shape, data=x.data)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""


def serve_ours(http_port: int, grpc_port: int) -> None:
    """Serve the identity model until the process is ended."""
    from agents.policies.base import make_policy
    from envs.profiles.profile import synthetic_profile
    from serving.api.config import ApiConfig
    from serving.api.dataplane import DataPlane
    from serving.api.grpc import start_grpc
    from serving.api.http import start_http
    from serving.engine.engine import Engine
    from serving.engine.warmup import freeze_garbage
    from serving.executors.cpu import CpuExecutor
    from serving.models.load import load_model
    from serving.models.served import ModelSpec

    model = load_model(ModelSpec(name="identity", source="torch.nn:Identity", input_shape=(WIDTH,)))
    made = synthetic_profile(1)
    profile = type(made)(**{**made.__dict__, "models": ("identity",), "solo_ms": np.full_like(made.solo_ms, 0.05)})

    async def serve() -> None:
        with CpuExecutor(2) as executor:
            executor.load(model)
            engine = Engine(executor, profile, make_policy("edf"))
            config = ApiConfig(port=http_port, grpc_port=grpc_port, deadline_floor_ms=10_000.0)
            plane = DataPlane(engine, config)
            engine.observers += plane.observers
            await engine.start()
            listeners = await start_http(plane), await start_grpc(plane)
            freeze_garbage()
            await asyncio.Event().wait()
            assert listeners  # they close when nobody holds them

    try:
        import uvloop

        uvloop.run(serve())
    except ImportError:
        asyncio.run(serve())


@dataclass
class Server:
    """A running server: where its doors are and what they are asked."""

    name: str
    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    path: str
    body: bytes


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def started(name: str, venv: str, folder: Path) -> Iterator[Server]:
    """Start a server in a process of its own and end it afterwards."""
    http_port, grpc_port = free_port(), free_port()
    oip = json.dumps(OIP_BODY).encode()
    python = str(Path(venv).absolute() / "bin" / "python")
    path, body, environment = "/v2/models/identity/infer", oip, dict(os.environ)
    if name == "strait":
        command = [sys.executable, "-m", "benchmarks.front", "--serve", str(http_port), str(grpc_port)]
        cwd = Path.cwd()
    elif name == "litserve":
        (folder / "litserve_identity.py").write_text(LITSERVE)
        command, cwd = [python, "litserve_identity.py", str(http_port)], folder
        path, body = "/predict", json.dumps({"input": VALUES}).encode()
    else:
        cwd = folder / "mlserver"
        cwd.mkdir()
        (cwd / "identity_model.py").write_text(MLSERVER_MODEL)
        (cwd / "model-settings.json").write_text(
            json.dumps({"name": "identity", "implementation": "identity_model.Identity"})
        )
        settings = {"http_port": http_port, "grpc_port": grpc_port, "host": "127.0.0.1", "parallel_workers": 0}
        settings |= {"metrics_port": free_port(), "debug": False, "use_structured_logging": False}
        (cwd / "settings.json").write_text(json.dumps(settings))
        command = [python, "-m", "mlserver.cli.main", "start", "."]
        environment["PYTHONPATH"] = str(cwd)
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield Server(name, process, http_port, grpc_port, path, body)
    finally:
        # Its workers too: LitServe's outlive it otherwise.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# The clients: as little as possible, so that the servers are what is measured.

Call = Callable[[], Awaitable[None]]
Close = Callable[[], Awaitable[None]]


async def http_client(server: Server) -> tuple[Call, Close]:
    """One connection; each call sends the same bytes and reads one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    head = f"POST {server.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = f"{head}Content-Length: {len(server.body)}\r\n\r\n".encode() + server.body

    async def call() -> None:
        writer.write(sent)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{server.name} answered {answer[:200]!r}")
        begin = answer.index(b"content-length:") + 15
        await reader.readexactly(int(answer[begin : answer.index(b"\r", begin)]))

    async def close() -> None:
        writer.close()

    return call, close


async def grpc_client(server: Server) -> tuple[Call, Close]:
    """One channel; each call sends the same bytes."""
    import grpc

    from serving.api.protocol import inference_pb2 as pb

    tensor = {"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "contents": {"fp32_contents": VALUES}}
    sent = pb.ModelInferRequest(model_name="identity", inputs=[tensor]).SerializeToString()
    # A channel of its own: without this, all channels to one address share a connection.
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.use_local_subchannel_pool", 1)])
    method = channel.unary_unary(GRPC_METHOD)

    async def call() -> None:
        await method(sent)

    return call, channel.close


PROTOCOLS = {"http": http_client, "grpc": grpc_client}


async def load(server: Server, protocol: str, clients: int, seconds: float) -> tuple[list[float], float]:
    """Latencies in ms of all calls of `clients` closed loops, and the time that they took in s."""
    connections = [await PROTOCOLS[protocol](server) for _ in range(clients)]
    latencies: list[float] = []
    for call, _ in connections:
        await call()  # the connection's first

    async def loop(call: Call) -> None:
        while (begin := time.perf_counter()) < end:
            await call()
            latencies.append((time.perf_counter() - begin) * 1e3)

    begin = time.perf_counter()
    end = begin + seconds
    await asyncio.gather(*(loop(call) for call, _ in connections))
    spent = time.perf_counter() - begin
    for _, close in connections:
        await close()
    return latencies, spent


async def wait_until_up(server: Server, protocol: str) -> None:
    """Return at the first good answer.

    Raises:
        RuntimeError: there is none, or the server has ended.
    """
    last = time.perf_counter() + START_S
    while True:
        try:
            call, close = await PROTOCOLS[protocol](server)
            try:
                await asyncio.wait_for(call(), 5.0)
            finally:
                await close()
            return
        except Exception as error:  # each library has its own for a server that is not up yet
            if time.perf_counter() > last or server.process.poll() is not None:
                raise RuntimeError(f"{server.name} does not answer over {protocol}: {error}") from None
            await asyncio.sleep(0.2)


async def measure(config: FrontBenchmark) -> dict[str, Any]:
    """Start all servers, measure in turns, and sum up."""
    results: dict[str, Any] = {name: {"http": None, "grpc": None} for name in ("strait", "litserve", "mlserver")}
    kept: dict[tuple[str, str, int], tuple[list[float], float]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = ["strait", *(("litserve", "mlserver") if config.venv else ())]
        servers = [stack.enter_context(started(name, config.venv, folder)) for name in names]
        turns = []
        for server in servers:
            for protocol in ("http", "grpc"):
                if server.name == "litserve" and protocol == "grpc":
                    continue  # it has none
                try:
                    await wait_until_up(server, protocol)
                    turns.append((server, protocol))
                except RuntimeError as error:
                    if server.name == "strait":
                        raise
                    print(f"{error}; left out", file=sys.stderr)
        for n in config.clients:
            for _ in range(config.rounds):
                for server, protocol in turns:
                    latencies, spent = await load(server, protocol, n, config.seconds)
                    old, before = kept.get((server.name, protocol, n), ([], 0.0))
                    kept[server.name, protocol, n] = old + latencies, before + spent
    for (name, protocol, n), (latencies, spent) in kept.items():
        p50, p99 = np.percentile(latencies, [50, 99])
        row = {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "rps": round(len(latencies) / spent, 1)}
        results[name][protocol] = {**(results[name][protocol] or {}), str(n): row}
    return results


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'server':<10}{'protocol':<10}{'clients':>8}{'p50 ms':>10}{'p99 ms':>10}{'per s':>10}")
    for name, protocols in results.items():
        for protocol, rows in protocols.items():
            for clients, row in (rows or {}).items():
                figures = f"{row['p50_ms']:>10.3f}{row['p99_ms']:>10.3f}{row['rps']:>10.1f}"
                print(f"{name:<10}{protocol:<10}{clients:>8}{figures}")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--serve"]:  # our own server's process
        serve_ours(int(words[1]), int(words[2]))
        return 0
    parser = ArgumentParser(prog="python -m benchmarks.front", description=__doc__.split("\n\n")[0])
    parser.add_class_arguments(FrontBenchmark, as_group=False)
    config = FrontBenchmark(**parser.parse_args(words).as_dict())
    try:
        if config.venv and not (Path(config.venv) / "bin" / "python").exists():
            raise InputError(f"--venv: {config.venv} is not a virtual environment; make one: {HOW}")
        if min(config.clients, default=0) < 1 or config.rounds < 1 or config.seconds <= 0:
            raise InputError("--clients, --rounds and --seconds: positive numbers are wanted")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not config.venv:
        print(f"LitServe and MLServer are not measured; to have them: {HOW}", file=sys.stderr)
    results = asyncio.run(measure(config))
    show(results)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
