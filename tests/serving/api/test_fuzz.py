"""Thousands of mutated requests: never a server error but 503 and 504, and the server lives."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from dataclasses import replace
from typing import Any

import aiohttp
import aiohttp.web
import numpy as np
import pytest
from api_server import X, serving_plane

from serving.api.http import start_http
from serving.api.http_codec import HEADER_LENGTH
from serving.api.model_view import view_model
from serving.api.refusal import Refusal
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 4, 2**31, 2**63, 10**40, -(10**40), 0.5, -0.0, 1e308, -1e39, "", "input", "output",
    "FP32", "BYTES", "INT8", "\0", "\u2028", "x" * 2000, [], {}, [[]], [1], [None], [[1], [2, 3]], {"a": {"b": []}}, [1e400],
    [10**30], ["1"], [True], {"name": "input"}, {"binary_data_size": 32}, {"binary_data_size": -1}, [[[[[[0]]]]]],
]  # fmt: skip


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


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, i) for i in range(len(value))]
    else:
        return []
    return found + [place for holder, key in found for place in places(holder[key])]


def mutated(rng: np.random.Generator) -> tuple[bytes, dict[str, str]]:
    """A body and headers, wrong in one to three ways."""
    head, tail = example(rng)
    for _ in range(rng.integers(1, 4)):
        where = places(head)
        if not where:
            break
        holder, key = where[rng.integers(len(where))]
        what = rng.random()
        if what < 0.6:
            holder[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder["shared_memory_region" if rng.random() < 0.5 else "sequence_id"] = holder.pop(key)
    text = json.dumps(head).encode()
    length = str(len(text))
    if rng.random() < 0.1:
        length = str(NASTY[rng.integers(len(NASTY))])[:100].replace("\0", "").encode("ascii", "ignore").decode()
    body = bytearray(text + tail)
    if rng.random() < 0.3:
        for at in rng.integers(len(body), size=rng.integers(1, 8)):
            body[at] = rng.integers(256)
    if rng.random() < 0.1:
        del body[rng.integers(len(body)) :]
    headers = {HEADER_LENGTH: length} if tail or rng.random() < 0.1 else {}
    if rng.random() < 0.05:
        headers["X-Priority"] = str(rng.integers(-2, 5))
    if rng.random() < 0.05:
        headers["X-Timeout-Us"] = ["x", "", "1e3", "0", "9" * 30][rng.integers(5)]
    if rng.random() < 0.03:
        headers["Content-Encoding"] = ["gzip", "deflate", "br", ""][rng.integers(4)]
    return bytes(body), headers


async def fuzz(executor: CpuExecutor, n: int, seed: int) -> dict[int, int]:
    """Send n mutated requests over 8 connections; how often each status came."""
    rng = np.random.default_rng(seed)
    seen: dict[int, int] = {}
    async with serving_plane(executor, max_body_bytes=100_000) as plane:
        listener = await start_http(plane)
        url = f"http://127.0.0.1:{listener.port}/v2/models/double/infer"

        async def client(session: aiohttp.ClientSession) -> None:
            for _ in range(n // 8):
                body, headers = mutated(rng)
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
