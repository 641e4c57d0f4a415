"""Thousands of mutated requests: never a server error but 503 and 504, and the server lives."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import aiohttp
import aiohttp.web
import numpy as np
import pytest
from api_server import X, serving_plane
from mutations import mutated

from serving.api.http import start_http
from serving.api.model_view import view_model
from serving.api.refusal import Refusal
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError


def example(rng: np.random.Generator) -> tuple[dict[str, Any], bytes]:
    """A good request: its JSON part and the bytes behind it."""
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": [2, 4]}
    binary = rng.random() < 0.5
    if binary:
        tensor["parameters"] = {"binary_data_size": X.nbytes}
    else:
        tensor["data"] = X.tolist() if rng.random() < 0.5 else X.ravel().tolist()
    head = {
        "id": "a",
        "parameters": {
            "priority": int(rng.integers(3)),
            "timeout": 10**7,
            "binary_data_output": bool(rng.random() < 0.5),
        },
        "inputs": [tensor],
        "outputs": [{"name": "output", "parameters": {"binary_data": bool(rng.random() < 0.5)}}],
    }
    return head, X.tobytes() if binary else b""


async def fuzz(executor: CpuExecutor, n: int, seed: int) -> dict[int, int]:
    """Send n mutated requests over 8 connections; how often each status came."""
    rng = np.random.default_rng(seed)
    seen: dict[int, int] = {}
    async with serving_plane(executor, max_body_bytes=100_000) as plane:
        listener = await start_http(plane)
        url = f"http://127.0.0.1:{listener.port}/v2/models/double/infer"

        async def client(session: aiohttp.ClientSession) -> None:
            for _ in range(n // 8):
                body, headers = mutated(rng, example)
                async with session.post(url, data=body, headers=headers) as response:
                    answer = await response.read()
                    seen[response.status] = seen.get(response.status, 0) + 1
                    assert response.status < 500 or response.status in (503, 504), (body, headers, answer)
                    if response.status != 200:
                        error = json.loads(answer)["error"]
                        assert error and "\n" not in error and len(error) < 400, (body, headers, answer)

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(client(session) for _ in range(8)))
            good = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
            async with session.post(url, json=good) as response:
                assert response.status == 200, "the server lives"
        assert plane.engine.queued == plane.engine.in_flight == 0
        await listener.close()
    return seen


async def test_mutated_requests_never_harm_the_server(executor: CpuExecutor) -> None:
    seen = await fuzz(executor, 3000, 0)
    assert seen[400] > 1000 and seen[200] > 100, "it reaches both what is refused and what is served"


@pytest.mark.slow
async def test_ten_thousand_more_mutated_requests_do_no_harm(executor: CpuExecutor) -> None:
    await fuzz(executor, 10_000, 1)


async def test_bytes_that_are_not_http_do_no_harm(executor: CpuExecutor) -> None:
    rng = np.random.default_rng(2)
    good = (
        b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"
    )
    async with serving_plane(executor, body_timeout_s=0.2, keepalive_s=0.2) as plane:
        listener = await start_http(plane)

        async def client() -> None:
            sent = bytearray(good)
            for at in rng.integers(len(sent), size=rng.integers(1, 12)):
                sent[at] = rng.integers(256)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(bytes(sent))
            answer = await asyncio.wait_for(reader.read(), 10.0)
            assert not re.match(rb"HTTP/1.\d 50[0-2]", answer), (sent, answer)
            writer.close()

        for _ in range(10):
            await asyncio.gather(*(client() for _ in range(30)))
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{listener.port}/v2/health/ready") as response,
        ):
            assert response.status == 200
        await listener.close()


def test_integers_that_would_break_the_model_and_its_batch_are_refused(executor: CpuExecutor) -> None:
    toy = executor.models["double"]
    spec = replace(toy.inputs[0], datatype="INT64", high=100, bounded=True)
    view = view_model([replace(toy, inputs=(spec,))], [100.0], 1)
    view.check_values(spec, np.array([[0, 99]]))
    for wrong in (-1, 100):
        with pytest.raises(InputError, match="from 0 to 99"):
            view.check_values(spec, np.array([[0, wrong]]))
    view.check_values(replace(spec, bounded=False), np.array([[5000]]))  # of a user's model the bound is not known


async def test_a_view_is_renewed_when_the_engine_serves_other_models(executor: CpuExecutor) -> None:
    async with serving_plane(executor) as plane:
        assert plane.model("slow").name == "slow"
        before = plane.model("double")
        await plane.engine.remove_model("slow")
        assert plane.model("double") == before
        with pytest.raises(Refusal, match="'slow' is not served"):
            plane.model("slow")
