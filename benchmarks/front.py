"""Latency of the server's HTTP and gRPC APIs: ``python -m benchmarks.front``.

An identity model (16 numbers in, 16 out) behind our APIs and, where a virtual environment has them, behind LitServe and
MLServer, and in the Python backend of NVIDIA Triton, where a folder has that. Servers and client are processes of their own;
the same bare client asks all servers over connections that stay open, one server after the other in short rounds. Figures:
``{server: {protocol: {clients: {p50_ms, p99_ms, rps}}}}``, null where a server was not measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command import as_command
from benchmarks.common.server import (
    Connection,
    closed_loops,
    free_port,
    http_message,
    running,
    serve_command,
    wait_until_up,
)
from benchmarks.common.triton import SETUP as TRITON_SETUP
from benchmarks.common.triton import Batching, add_model, check_triton, triton_command
from serving.models.served import ModelSpec
from traces.errors import InputError

WIDTH = 16
VALUES = [float(i) for i in range(WIDTH)]
INFER_PATH = "/v2/models/identity/infer"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
OIP_BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "data": VALUES}]}
START_S = 120.0
SETUP = "python -m venv VENV; VENV/bin/pip install litserve mlserver; python -m benchmarks.front --venv VENV"


@dataclass
class FrontBenchmark:
    """What to measure.

    Attributes:
        venv: virtual environment with LitServe and MLServer; the variable FRONT_BENCH_VENV is its default.
        triton: folder where nvidia-pytriton is installed; the variable TRITON_FOLDER is its default.
        clients: numbers of concurrent clients.
        seconds: duration of one server, protocol and number of clients in a round.
        rounds: each serves all in turn. Many short ones, so that a slow second of the machine meets all servers alike.

    Raises:
        InputError: a setting is out of range.
    """

    venv: str = os.environ.get("FRONT_BENCH_VENV", "")
    triton: str = os.environ.get("TRITON_FOLDER", "")
    clients: list[int] = field(default_factory=lambda: [1, 32])
    seconds: float = 0.4
    rounds: int = 8

    def __post_init__(self) -> None:
        if self.venv and not self.python.exists():
            raise InputError(f"--venv: {self.venv} is not a virtual environment; make one: {SETUP}")
        if self.triton:
            check_triton(self.triton)
        if min(self.clients, default=0) < 1 or self.rounds < 1 or self.seconds <= 0:
            raise InputError("--clients, --rounds, --seconds: must be positive")

    @property
    def python(self) -> Path:
        """Interpreter of the virtual environment."""
        return Path(self.venv).absolute() / "bin" / "python"


# What is served: ours reads a list of models, the others a script.

IDENTITY = ModelSpec("identity", "torch.nn:Identity", (WIDTH,), "float32")
MODELS = f"[{{name: {IDENTITY.name}, source: '{IDENTITY.source}', input_shape: [{WIDTH}], timeout_ms: 10000}}]"

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


@dataclass
class Server:
    """A running server: its ports and what it is asked."""

    name: str
    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    message: bytes


@contextlib.contextmanager
def started(name: str, config: FrontBenchmark, folder: Path) -> Iterator[Server]:
    """Start a server in a process of its own and end it afterwards."""
    http_port, grpc_port = free_port(), free_port()
    body: dict[str, Any] = OIP_BODY
    path = INFER_PATH
    home, environment = folder / name, dict[str, str]()
    home.mkdir()
    if name == "strait":
        (home / "models.yaml").write_text(MODELS)
        ports = ["--port", str(http_port), "--grpc", "--grpc_port", str(grpc_port)]
        command = serve_command("--models", "models.yaml", "--policy", "edf", "--streams", "2", *ports)
    elif name == "litserve":
        (home / "litserve_identity.py").write_text(LITSERVE)
        command = [str(config.python), "litserve_identity.py", str(http_port)]
        path, body = "/predict", {"input": VALUES}
    elif name == "triton":
        add_model(home, IDENTITY, Batching(max_batch_size=max(config.clients)))
        command, environment = triton_command(config.triton, home, http_port, grpc_port)
    else:
        (home / "identity_model.py").write_text(MLSERVER_MODEL)
        model = {"name": "identity", "implementation": "identity_model.Identity"}
        (home / "model-settings.json").write_text(json.dumps(model))
        settings = {"http_port": http_port, "grpc_port": grpc_port, "host": "127.0.0.1", "parallel_workers": 0}
        settings |= {"metrics_port": free_port(), "debug": False, "use_structured_logging": False}
        (home / "settings.json").write_text(json.dumps(settings))
        command = [str(config.python), "-m", "mlserver.cli.main", "start", "."]
        environment["PYTHONPATH"] = str(home)
    message = http_message(path, json.dumps(body).encode(), ["Content-Type: application/json"])
    with running(command, home, environment, folder / f"{name}.log") as process:
        yield Server(name, process, http_port, grpc_port, message)


# The clients: as little as possible, so that the servers are what is measured.

Call = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def http_client(server: Server) -> AsyncIterator[Call]:
    """One connection; each call sends the same bytes and reads one answer."""
    connection = await Connection.open(server.http_port)

    async def call() -> None:
        status, answer = await connection.ask(server.message)
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}: {answer[:200]!r}")

    with contextlib.closing(connection):
        yield call


@contextlib.asynccontextmanager
async def grpc_client(server: Server) -> AsyncIterator[Call]:
    """One channel; each call sends the same bytes."""
    import grpc

    from serving.api.protocol import inference_pb2 as pb

    tensor = {"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "contents": {"fp32_contents": VALUES}}
    sent = pb.ModelInferRequest(model_name="identity", inputs=[tensor]).SerializeToString()
    # Without this option all channels to one address share a connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        method = channel.unary_unary(GRPC_METHOD)

        async def call() -> None:
            await method(sent)

        yield call


PROTOCOLS = {"http": http_client, "grpc": grpc_client}


async def load(server: Server, protocol: str, clients: int, seconds: float) -> tuple[list[float], float]:
    """Latencies in ms of ``clients`` closed loops, and the seconds that they took; 0 seconds make one call each."""
    async with contextlib.AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(PROTOCOLS[protocol](server)) for _ in range(clients)]
        await asyncio.gather(*(call() for call in calls))  # a connection's first call is not counted
        return await closed_loops(calls, seconds)


async def answering(server: Server) -> list[str]:
    """The protocols over which a server answers. Ours must over all; another's that does not is left out with a message."""
    found = []
    for protocol in ("http",) if server.name == "litserve" else ("http", "grpc"):
        ask = partial(load, server, protocol, 1, 0.0)
        try:
            await wait_until_up(server.process, ask, f"{server.name} over {protocol}", START_S)
            found.append(protocol)
        except RuntimeError as error:
            if server.name == "strait":
                raise
            print(f"{error}; left out", file=sys.stderr)
    return found


async def measure_all(config: FrontBenchmark) -> dict[str, Any]:
    """Start all servers, measure them in short rounds, and sum up."""
    results: dict[str, Any] = {
        name: {"http": None, "grpc": None} for name in ("strait", "litserve", "mlserver", "triton")
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = ["strait", *(("litserve", "mlserver") if config.venv else ()), *(("triton",) if config.triton else ())]
        servers = [stack.enter_context(started(name, config, folder)) for name in names]
        targets = [(server, protocol) for server in servers for protocol in await answering(server)]
        for clients in config.clients:
            kept = [await load(*target, clients, config.seconds) for _ in range(config.rounds) for target in targets]
            for i, (server, protocol) in enumerate(targets):
                mine = kept[i :: len(targets)]
                latencies, spent = sum((part for part, _ in mine), []), sum(seconds for _, seconds in mine)
                p50, p99 = np.percentile(latencies, [50, 99]).tolist()
                row = {"p50_ms": p50, "p99_ms": p99, "rps": len(latencies) / spent}
                results[server.name][protocol] = (results[server.name][protocol] or {}) | {str(clients): row}
    return results


def measure(config: FrontBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    if not config.venv:
        print(f"LitServe and MLServer are not measured; to have them: {SETUP}", file=sys.stderr)
    if not config.triton:
        print(f"Triton is not measured; to have it: {TRITON_SETUP}, and --triton FOLDER", file=sys.stderr)
    return asyncio.run(measure_all(config))


main = as_command(measure, FrontBenchmark, "front", __doc__)

if __name__ == "__main__":
    sys.exit(main())
