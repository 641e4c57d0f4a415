"""HTTP under bad input, at its limits, and with clients that misbehave, by aiohttp and by bare sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from api_server import BLOCKS, X, serving_plane, until
from http_client import Client, body, opened

from envs.scheduling.state import CANCELLED, LOW
from serving.api.http import start_http
from serving.executors.cpu import CpuExecutor


def _changed(**changes: Any) -> dict[str, Any]:
    made = body()
    made["inputs"][0].update(changes)
    return {**made, "inputs": [{k: v for k, v in made["inputs"][0].items() if v is not ...}]}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([], "it must be an object"),
        ({}, "a list of tensors; expected 'input'"),
        ({"inputs": []}, "a list of tensors; expected 'input'"),
        ({"inputs": [1]}, "a list of tensors; expected 'input'"),
        (_changed(name="x"), "no tensor 'x'"),
        (_changed(datatype="INT64"), "datatype is 'INT64'; expected FP32"),
        (_changed(datatype="BYTES"), "datatype is 'BYTES'; expected FP32"),
        (_changed(datatype=...), "datatype is None"),
        (_changed(shape=[2, 5]), "expected ['n', 4]"),
        (_changed(shape=[0, 4]), "has 0 items"),
        (_changed(shape=[10**15, 4]), "it must have 1 to 128"),
        (_changed(shape=[10**30, 4]), "a list of integers"),
        (_changed(shape=[True, 4]), "a list of integers"),
        (_changed(shape="24"), "a list of integers"),
        (_changed(data=[1.0] * 7), "7 elements"),
        (_changed(data=[[1.0, 2.0], [3.0]]), "ragged"),
        (_changed(data=["1"] * 8), "something else than numbers"),
        (_changed(data=[None] * 8), "something else than numbers"),
        (_changed(data=[True] * 8), "something else than numbers"),
        (_changed(data=[1e300] * 8), "FP32 cannot"),
        (_changed(data=[[1.0] * 2] * 4), "nested as shape [2, 4]"),
        (_changed(data=...), "neither data nor"),
        (_changed(data=..., parameters={"binary_data_size": 32}), "0 bytes follow"),
        (_changed(data=..., parameters={"shared_memory_region": "r"}), "shared memory"),
        (_changed(parameters=[]), "not a JSON object"),
        (body(priority=3), "1 (high), 2 (low)"),
        (body(priority=True), "1 (high), 2 (low)"),
        (body(priority="1"), "1 (high), 2 (low)"),
        (body(timeout=-1), "microseconds"),
        (body(timeout=1.5), "microseconds"),
        (body(timeout=10**20), "microseconds"),
        (body(sequence_id=5), "stateful"),
        ({**body(), "id": 7}, "id must be a string"),
        ({**body(), "outputs": [{"name": "logits"}]}, "expected 'output'"),
        ({**body(), "outputs": [{"name": "output", "parameters": {"classification": 3}}]}, "classification"),
        ({**body(), "outputs": [{"name": "output", "parameters": {"binary_data": 1}}]}, "true or false"),
    ],
)
async def test_bad_input_is_400_and_says_what_is_wrong(client: Client, sent: Any, words: str) -> None:
    status, answer, _ = await client.ask("POST", "/v2/models/double/infer", json=sent)
    assert status == 400 and list(answer) == ["error"]
    assert words in answer["error"] and "\n" not in answer["error"] and len(answer["error"]) < 300


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"inputs": NaN}', {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "9" * 5000}, 400),
        (b"{}", {"X-Priority": "high"}, 400),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (b"", {"Expect": "a miracle"}, 417),
        (b"{", {"Expect": "100-continue"}, 400),
    ],
)
async def test_bad_bodies_and_headers_are_4xx(
    client: Client, data: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await client.ask("POST", "/v2/models/double/infer", data=data, headers=headers)
    assert answer[0] == status and answer[1]["error"]
    assert (await client.infer())[0] == 200


async def test_unknown_paths_and_methods_are_refused(client: Client) -> None:
    assert (await client.ask("GET", "/v3"))[0] == 404
    status, answer, headers = await client.ask("GET", "/v2/models/double/infer")
    assert status == 405 and "POST" in headers["Allow"] and "Method Not Allowed" in answer["error"]
    assert (await client.ask("GET", "/v2/models/double/versions/2"))[0] == 404
    assert (await client.ask("GET", "/metrics"))[0] == 404


# Limits, and clients that misbehave.


async def test_a_body_that_is_too_large_is_413_before_it_is_read(executor: CpuExecutor) -> None:
    async with opened(executor, max_body_bytes=1000) as client:
        path = "/v2/models/double/infer"
        assert (await client.ask("POST", path, data=b" " * 1001))[0] == 413

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b" " * 100

        assert (await client.ask("POST", path, data=chunks()))[0] == 413
        bomb = gzip.compress(b" " * 500_000)
        assert len(bomb) < 1000
        assert (await client.ask("POST", path, data=bomb, headers={"Content-Encoding": "gzip"}))[0] == 413
        cut = {"data": gzip.compress(b"{}")[:-3], "headers": {"Content-Encoding": "gzip"}}
        assert (await client.ask("POST", path, **cut))[0] == 400
        assert (await client.infer())[0] == 200


async def test_one_client_cannot_have_more_in_flight_than_its_share(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    async with opened(executor, max_per_client=3) as client:
        first = asyncio.ensure_future(client.infer("slow", np.repeat(BLOCKS, 2, axis=0)))
        await until(lambda: client.plane.engine.in_flight > 0)
        status, answer, headers = await client.infer("double", X)
        assert status == 429 and "2 requests in flight; 3 are allowed" in answer["error"] and "Retry-After" in headers
        third = asyncio.ensure_future(client.infer("double", X[:1]))
        await until(lambda: client.plane.engine.offered.sum() == 3)
        gate.set()
        assert {(await call)[0] for call in (first, third)} == {200}


async def test_a_client_that_leaves_takes_its_requests_with_it(executor: CpuExecutor, gate: threading.Event) -> None:
    async with opened(executor) as client:
        engine = client.plane.engine
        blockers = [asyncio.ensure_future(client.infer("slow", BLOCKS)) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        leaver = asyncio.ensure_future(client.infer("double", np.ones((3, 4), np.float32)))
        await until(lambda: engine.queued == 3)
        leaver.cancel()  # aiohttp closes the connection
        await until(lambda: engine.queued == 0)
        assert engine.ended[LOW, CANCELLED] == 3, "they ended as cancelled"
        gate.set()
        assert {(await b)[0] for b in blockers} == {200}


async def test_slow_clients_are_disconnected(executor: CpuExecutor) -> None:
    async with opened(executor, body_timeout_s=0.1, keepalive_s=0.3) as client:
        # One sends a head and half a body, one half a head, one nothing.
        for sent, expected in (
            (b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b" 408 "),
            (b"POST /v2/models/double/infer HTTP/1.1\r\nHo", b""),
            (b"", b""),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 5.0)
            assert expected in answer
            writer.close()
        assert (await client.infer())[0] == 200


async def test_many_answers_on_one_connection_keep_their_order(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    texts = [json.dumps({**body(X + i), "id": str(i)}).encode() for i in range(20)]
    for text in texts:  # pipelined
        writer.write(
            b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        )
    for i in range(20):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5.0)
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        answer = json.loads(await reader.readexactly(length))
        assert answer["id"] == str(i) and answer["outputs"][0]["data"][0] == 2.0 * i
    writer.close()


async def test_closing_waits_for_the_requests_in_hand(executor: CpuExecutor, gate: threading.Event) -> None:
    async with serving_plane(executor) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane)
        client = Client(plane, listener.port, session)
        job = asyncio.ensure_future(client.infer("slow", BLOCKS))
        await until(lambda: plane.engine.in_flight == 1)
        closing = asyncio.ensure_future(listener.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        gate.set()
        await closing
        assert (await job)[0] == 200


async def test_https_is_served_with_a_certificate(executor: CpuExecutor, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.check_hostname = False
    async with serving_plane(executor) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane, context)
        url = f"https://127.0.0.1:{listener.port}/v2/models/double/infer"
        async with session.post(url, json=body(), ssl=trusting) as response:
            assert response.status == 200
        await listener.close()
