"""The real processes under load: a replica that is killed or hangs costs nothing but time, and little of that."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cluster import PATIENCE_MS, door, replicas, scaled
from benchmarks.common.server import Connection, free_port, http_message, running, serve_command, wait_until_up
from envs.profiles.profile import Profile
from serving.api.infer_call import whole_call
from serving.cluster.remote_plane import RemotePlane

RATE_RPS, SECONDS = 100.0, 4.0
LONGEST_PAUSE_S = 0.5


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    scaled(Profile.load("gpu-v100"), 2.0).save(path)
    return path


async def load(plane: RemotePlane, then: list[tuple[float, Any]]) -> tuple[list[float], list[BaseException | None]]:
    """Offer requests at a steady rate, and do things at their times: times of the answers in s, and what was raised."""
    loop = asyncio.get_running_loop()
    view, begin, answered_s = plane.model("alexnet"), loop.time(), []
    call = whole_call(view, np.zeros((1, *view.inputs[0].shape), view.inputs[0].dtype))

    async def one() -> None:
        await plane.infer(view, call, 0, 2 * PATIENCE_MS)
        answered_s.append(loop.time() - begin)

    tasks = []
    for i in range(int(RATE_RPS * SECONDS)):
        await asyncio.sleep(max(begin + i / RATE_RPS - loop.time(), 0.0))
        while then and loop.time() - begin >= then[0][0]:
            then.pop(0)[1]()
        tasks.append(asyncio.ensure_future(one()))
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return answered_s, [end for end in ends if end is not None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_replica_that_is_lost_under_load_loses_no_request(profile: Path, tmp_path: Path, number: int) -> None:
    async def longest_pause_s() -> float:
        async with (
            replicas(profile, [1.0, 1.0], tmp_path) as (processes, peers, _),
            door(peers, "round_robin") as plane,
        ):
            lost = lambda: os.kill(processes[0].pid, number)  # noqa: E731
            answered_s, raised = await load(plane, [(SECONDS / 2, lost)])
            assert raised == []
            assert len(answered_s) == int(RATE_RPS * SECONDS) == plane.count["answered"]
            assert not plane.links[0].accepting and plane.links[1].accepting
            if number == signal.SIGSTOP:
                os.kill(processes[0].pid, signal.SIGCONT)
                async with asyncio.timeout(20.0):
                    while not plane.links[0].accepting:
                        await asyncio.sleep(0.05)
            return float(np.diff(np.sort(answered_s)).max())

    # Others may use this machine, so it has three tries.
    assert any(asyncio.run(longest_pause_s()) < LONGEST_PAUSE_S for _ in range(3))


def test_a_door_is_a_server_like_any_other(profile: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with replicas(profile, [1.0, 1.0], tmp_path) as (processes, peers, http):
            port, grpc_port = free_port(), free_port()
            names = ",".join(f"127.0.0.1:{peer}" for peer in peers)
            flags = ["--peers", names, "--port", str(port), "--grpc", "--grpc_port", str(grpc_port)]
            with running(serve_command(*flags), tmp_path) as process:

                async def ask(path: str, at: int = port, body: bytes = b"") -> Any:
                    status, answer = await (await Connection.open(at)).ask(http_message(path, body))
                    assert status == 200, answer
                    return json.loads(answer)

                await wait_until_up(process, lambda: ask("/v2/health/ready"), "the door", 120.0)
                assert await ask("/v2/models/ssd") == await ask("/v2/models/ssd", http[0])
                values = {"name": "input", "datatype": "FP32", "shape": [2, 16], "data": [1.0] * 32}
                body = json.dumps({"inputs": [values], "parameters": {"timeout": 5_000_000, "priority": 1}}).encode()
                for _ in range(4):
                    answer = await ask("/v2/models/ssd/infer", body=body)
                    assert answer["parameters"]["outcome"] == "met"
                    assert answer["outputs"][0]["shape"] == [2, 16]
                processes[0].send_signal(signal.SIGTERM)  # a replica drains
                for _ in range(8):
                    assert (await ask("/v2/models/ssd/infer", body=body))["parameters"]["outcome"] == "met"
                tritonclient = pytest.importorskip("tritonclient.grpc")
                client = tritonclient.InferenceServerClient(f"127.0.0.1:{grpc_port}")
                given = tritonclient.InferInput("input", [1, 16], "FP32")
                given.set_data_from_numpy(np.ones((1, 16), np.float32))
                result = await asyncio.to_thread(client.infer, "ssd", [given], timeout=5_000_000)
                assert result.as_numpy("output").shape == (1, 16)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 20.0) == 0

    asyncio.run(scenario())
