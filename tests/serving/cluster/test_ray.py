"""Replicas on real Ray clusters on this machine: one command serves from them, and what is killed is back without a loss."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.common.server import SERVE, Connection, free_port, http_message
from envs.profiles.profile import Profile
from traces.ray_session import import_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs strait-rl[ray]"),
]
RATE_RPS, DEADLINE_S = 40.0, 20.0
START_S = 180.0  # cold caches on busy cores
VALUES = {"name": "input", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
BODY = json.dumps({"inputs": [VALUES], "parameters": {"timeout": int(DEADLINE_S * 1e6)}}).encode()


class Served:
    """A door on Ray: its process, ports and what it wrote."""

    def __init__(self, folder: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        profile = folder / "profile.json"
        Profile.load("gpu-v100").save(profile)
        self.port, self.grpc_port = free_port(), free_port()
        self.out, self.log = folder / "out.txt", folder / "log.txt"
        command = [
            sys.executable, str(SERVE), "--replicas", "2", "--policy", "edf", "--router", "round_robin",
            "--device", f"sim:{profile}", "--profile", str(profile), "--port", str(self.port),
            "--grpc", "--grpc_port", str(self.grpc_port), *flags,
        ]  # fmt: skip
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=log, cwd=folder, env=os.environ | (environment or {})
            )

    def replicas(self) -> list[tuple[int, int]]:
        """Place and process of each replica that has started, in this order."""
        found = re.findall(r"replica (\d+) is at \S+, process (\d+)", self.log.read_text())
        return [(int(place), int(pid)) for place, pid in found]

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not holds():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            await asyncio.sleep(0.1)

    async def ready(self) -> None:
        """Wait until both replicas are there and the door listens."""
        await self.until(lambda: len(self.replicas()) >= 2 and "HTTP on http://127.0.0.1:" in self.log.read_text())

    async def get(self, path: str) -> str:
        status, answer = await (await Connection.open(self.port)).ask(http_message(path))
        assert status == 200
        return answer.decode()

    async def replicas_up(self) -> int:
        return len(re.findall(r"^strait_replica_up\{.*\} 1\.0$", await self.get("/metrics"), re.MULTILINE))

    def stop(self) -> None:
        """End it by SIGTERM; it ends with status 0, its processes with it, and wrote nothing to standard output."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60.0) == 0, self.log.read_text()[-3000:]
        assert self.out.read_text() == ""
        _, alive = psutil.wait_procs(children, 20.0)
        assert alive == []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(*flags: str, **settings: Any) -> Served:
        made.append(Served(tmp_path, *flags, **settings))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()


async def load(served: Served, stopping: asyncio.Event) -> list[tuple[int, bytes]]:
    """Offer requests at a steady rate until `stopping` is set; returns the one answer to each."""
    loop = asyncio.get_running_loop()

    async def one() -> tuple[int, bytes]:
        return await (await Connection.open(served.port)).ask(http_message("/v2/models/alexnet/infer", BODY))

    begin, tasks = loop.time(), []
    for i in itertools.count():
        await asyncio.sleep(max(begin + i / RATE_RPS - loop.time(), 0.0))
        if stopping.is_set():
            return await asyncio.gather(*tasks)
        tasks.append(asyncio.ensure_future(one()))
    raise AssertionError


def test_a_replica_whose_ray_worker_is_killed_loses_nothing_and_is_back_and_used(
    serve: Callable[..., Served],
) -> None:
    async def scenario() -> None:
        served = serve("--cluster", "local", "--cpus_per_replica", "0.5")
        await served.ready()
        stopping = asyncio.Event()
        offered = asyncio.ensure_future(load(served, stopping))
        for number in (2, 3):  # then the other one, so that the first one's successor serves alone
            await asyncio.sleep(1.0)
            place, pid = served.replicas()[number - 2]
            assert "ReplicaActor" in psutil.Process(pid).cmdline()[0]
            os.kill(pid, signal.SIGKILL)
            await served.until(lambda number=number: len(served.replicas()) > number)
            assert served.replicas()[number][0] == place
            while await served.replicas_up() < 2:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        stopping.set()
        answers = await offered
        assert len(answers) > 3 * RATE_RPS
        bad = [answer for status, answer in answers if status != 200]
        assert not bad, bad[:3]
        assert f'event="answered"}} {len(answers):.1f}' in await served.get("/metrics")
        served.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("by", ["auto", "ray://"])
def test_two_ray_nodes_serve_by_one_command(
    serve: Callable[..., Served], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tritonclient = pytest.importorskip("tritonclient.grpc")
    import_ray()  # sets what Ray reads of the environment
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(
        "PYTHONPATH", str(SERVE.parent)
    )  # of the nodes, which have the project installed elsewhere or not
    client_port = free_port()
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": client_port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)

        async def scenario() -> None:
            if by == "auto":
                served = serve("--cluster", "auto", environment={"RAY_ADDRESS": cluster.address})
            else:
                served = serve("--cluster", f"ray://127.0.0.1:{client_port}")
            await served.ready()
            nodes = {psutil.Process(pid).ppid() for _, pid in served.replicas()}
            assert len(nodes) == 2
            client = tritonclient.InferenceServerClient(f"127.0.0.1:{served.grpc_port}")
            given = tritonclient.InferInput("input", [1, 16], "FP32")
            given.set_data_from_numpy(np.ones((1, 16), np.float32))
            for _ in range(8):
                result = await asyncio.to_thread(client.infer, "vgg19", [given], timeout=int(DEADLINE_S * 1e6))
                assert result.as_numpy("output").shape == (1, 16)
            assert await served.replicas_up() == 2
            served.stop()

        asyncio.run(scenario())
    finally:
        cluster.shutdown()
