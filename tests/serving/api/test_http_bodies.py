"""Bodies over HTTP: numbers that JSON lacks, compression in and out, heads that cannot be read, and large JSON."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from api_server import X, until
from both_protocols import request
from http_client import Client, opened
from hypothesis import given
from hypothesis import strategies as st

from serving.api import http
from serving.api.http_codec import accepted_encoding, decompress
from serving.api.processes.large_json import PROCESSES, SMALL
from serving.api.protocol.json_codec import json_numbers, read_json
from serving.api.refusal import Refusal
from serving.executors.cpu import CpuExecutor
from serving.models.processes import pool
from traces.errors import InputError

PATH = "/v2/models/double/infer"
TEXT = json.dumps(request()).encode()
FLOATS = st.floats(width=32)


def numbers(answer: dict[str, Any]) -> np.ndarray:
    return np.array(answer["outputs"][0]["data"], np.float32)


# Numbers.


async def test_nan_and_infinities_go_in_and_come_out_as_triton_has_them(client: Client) -> None:
    for written, read in (
        (b"[NaN, Infinity, -Infinity, 1.5, -0.0, 1, 1e30, 0.1]", [np.nan, np.inf, -np.inf, 1.5, -0.0, 1, 1e30, 0.1]),
        (b"[-NaN, Inf, -Inf, 1.5, -0.0, 1, 1e30, 0.1]", [np.nan, np.inf, -np.inf, 1.5, -0.0, 1, 1e30, 0.1]),
    ):
        data = (
            b'{"id": "Inf", "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 4], "data": %b}]}' % written
        )
        status, answer, _ = await client.ask("POST", PATH, data=data)
        assert status == 200 and answer["id"] == "Inf"
        np.testing.assert_array_equal(numbers(answer), 2 * np.array(read, np.float32))
    for bad in (
        b"[null, 1, 2, 3, 4, 5, 6, 7]",
        b"[true, 1, 2, 3, 4, 5, 6, 7]",
        b'["NaN", 1, 2, 3, 4, 5, 6, 7]',
        b"[nan, 1]",
    ):
        data = b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 4], "data": %b}]}' % bad
        assert (await client.ask("POST", PATH, data=data))[0] == 400


@given(st.lists(FLOATS), st.sampled_from([np.float16, np.float32, np.float64]))
def test_written_numbers_are_read_again(values: list[float], dtype: type) -> None:
    with np.errstate(over="ignore"):
        array = np.array(values, dtype)
    again = read_json(b'{"data":%b}' % json_numbers(array))["data"]
    np.testing.assert_array_equal(np.array(again, dtype), array)


# Compression.


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(TEXT[:40]) + gzip.compress(TEXT[40:])),
        ("gzip", gzip.compress(b"") + gzip.compress(TEXT) + gzip.compress(b"")),
        ("gzip", gzip.compress(TEXT) + bytes(100)),
        ("gzip", gzip.compress(TEXT, 0)),
        ("x-gzip", gzip.compress(TEXT)),
        ("GZIP", gzip.compress(TEXT)),
        ("identity, gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)[2:-4]),
        ("identity", TEXT),
    ],
)
async def test_every_legal_form_of_compression_is_read(client: Client, encoding: str, packed: bytes) -> None:
    status, answer, _ = await client.ask("POST", PATH, data=packed, headers={"Content-Encoding": encoding})
    assert status == 200
    np.testing.assert_array_equal(numbers(answer), 2 * X.ravel())


@pytest.mark.parametrize(
    ("encoding", "packed", "status"),
    [
        ("gzip", b"", 400),
        ("gzip", gzip.compress(TEXT)[:-1], 400),
        ("gzip", gzip.compress(TEXT) + b"more", 400),
        ("gzip", gzip.compress(TEXT) + gzip.compress(TEXT)[:30], 400),
        ("deflate", zlib.compress(TEXT) + b"more", 400),
        ("deflate", b"\xff" * 100, 400),
        ("br", TEXT, 415),
        ("gzip, gzip", TEXT, 415),
    ],
)
async def test_broken_compression_is_refused(client: Client, encoding: str, packed: bytes, status: int) -> None:
    answer = await client.ask("POST", PATH, data=packed, headers={"Content-Encoding": encoding})
    assert answer[0] == status and "\n" not in answer[1]["error"]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 5))
def test_members_are_joined_and_counted_unpacked(parts: list[bytes], level: int, repeat: int) -> None:
    whole = b"".join(part * repeat for part in parts)
    packed = b"".join(gzip.compress(part * repeat, level) for part in parts)
    assert decompress(packed, "gzip", len(whole)) == whole
    if whole:
        with pytest.raises(Refusal, match=f"{len(whole) - 1} bytes"):
            decompress(packed, "gzip", len(whole) - 1)
    with pytest.raises(InputError):
        decompress(packed[:-1], "gzip", len(whole))


async def test_a_connection_that_waits_holds_neither_its_last_request_nor_its_last_answer(
    executor: CpuExecutor,
) -> None:
    async with opened(executor, max_per_client=1000, queue_places=1000) as client:
        values = np.ones((1000, 4), np.float32)
        assert (await client.infer("double", values))[0] == 200
        kept = [one for one in gc.get_objects() if type(one) is web.Request or isinstance(one, web.Response)]
        assert kept
        for one in kept:
            held = [part for part in gc.get_referents(one) if isinstance(part, bytes | bytearray)]
            assert all(len(part) < 1000 for part in held), one


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(Refusal, match="3000000 bytes"):
        decompress(bomb, "gzip", 3_000_000)
    assert len(decompress(bomb, "gzip", 50_000_000)) == 50_000_000


@pytest.mark.parametrize("model_out", ["json", "binary"])
@pytest.mark.parametrize("n", [100, 9_000])  # written here, and in another process
async def test_answers_are_compressed_for_those_who_take_it(executor: CpuExecutor, model_out: str, n: int) -> None:
    async with opened(executor, max_per_client=n, queue_places=n) as client:
        values = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
        sent = {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [n, 4], "data": values.ravel().tolist()}],
            "parameters": {"binary_data_output": model_out == "binary", "timeout": 60_000_000},
        }
        url = f"http://127.0.0.1:{client.port}{PATH}"
        for accepts, encoding in (("gzip", "gzip"), ("deflate, gzip;q=0", "deflate"), ("", None), ("br", None)):
            headers = {"Accept-Encoding": accepts}
            async with client.session.post(url, json=sent, headers=headers) as response:
                body = await response.read()  # unpacked by aiohttp
                assert response.status == 200 and response.headers.get("Content-Encoding") == encoding
            if model_out == "binary":
                made = np.frombuffer(body[int(response.headers["Inference-Header-Content-Length"]) :], np.float32)
            else:
                made = numbers(json.loads(body))
            np.testing.assert_array_equal(made, 2 * values.ravel())


def test_accept_encoding_is_read_with_its_weights() -> None:
    for header, name in (
        ("gzip, deflate", "gzip"), ("GZIP;q=0.5", "gzip"), ("gzip;q=0", None), ("gzip; q=0.000, deflate", "deflate"),
        ("identity", None), ("*", None), ("", None),
    ):  # fmt: skip
        found = accepted_encoding(header)
        assert (found and found.value) == name, header


# Heads.


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 20_000,
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(b"X-%d: 1" % k for k in range(200)),
        b"GET /v2/" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nno colon",
        b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: many",
        b"G?T /v2 HTTP/1.1\r\nHost: x",
        b"GET /v2 HTTP/9.9.9\r\nHost: x",
    ],
)
async def test_a_head_that_cannot_be_read_is_answered_in_json(client: Client, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(head + b"\r\n\r\n")
    said, _, body = (await asyncio.wait_for(reader.read(), 10.0)).partition(b"\r\n\r\n")
    assert b" 400 " in said.split(b"\r\n")[0] and b"application/json" in said
    error = json.loads(body)["error"]
    assert "\n" not in error and len(error) < 300
    writer.close()


# Large JSON.


@pytest.fixture
async def never_here(executor: CpuExecutor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a server that must not parse or write JSON itself."""

    def fail(*args: Any) -> Any:
        raise AssertionError("parsed or written in the server's own process")

    monkeypatch.setattr(http, "read_json", fail)
    monkeypatch.setattr(http, "json_numbers", fail)
    async with opened(executor, max_per_client=30_000, queue_places=30_000) as client:
        yield client


N_LARGE = 9_000  # 144 kB of an answer


def large(**changes: Any) -> dict[str, Any]:
    values = [[float(i), 0.1, 2.0, 3.0] for i in range(N_LARGE)]
    tensor = {"name": "input", "datatype": "FP32", "shape": [N_LARGE, 4], "data": values} | changes
    return request(id="big", inputs=[tensor], parameters={"timeout": 60_000_000})


async def test_large_json_is_parsed_and_written_in_another_process(never_here: Client) -> None:
    for _ in range(2):  # it begins once
        status, answer, headers = await never_here.ask("POST", PATH, json=large())
        assert status == 200 and answer["id"] == headers["x-request-id"] == "big"
        np.testing.assert_array_equal(numbers(answer)[:4], np.array([0, 0.2, 4, 6], np.float32))
    packed = gzip.compress(json.dumps(large()).encode())
    status, again, _ = await never_here.ask("POST", PATH, data=packed, headers={"Content-Encoding": "gzip"})
    assert status == 200 and again["outputs"] == answer["outputs"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (lambda: large(name="x"), "no tensor 'x'"),
        (lambda: large(data=[[1.0] * 3] * N_LARGE), "ragged or not nested"),
        (lambda: large(data=["1"] * 4 * N_LARGE), "something else than numbers"),
        (lambda: large(data=[[1, 2]] * 100_000), "ragged or not nested"),
        (lambda: large(shape=[N_LARGE, 5]), "shape is [9000, 5]"),
        (lambda: request(x=["ab"] * 100_000), "field 'x' is not supported"),
        (lambda: request(id="x" * 200_000), "id must be"),
        (lambda: request(parameters={"timeout": [1] * 200_000}), "timeout is"),
        (lambda: [1] * 200_000, "must be an object"),
    ],
)
async def test_large_json_is_refused_in_the_words_of_small_json(
    never_here: Client, sent: Callable[[], Any], words: str
) -> None:
    status, answer, _ = await never_here.ask("POST", PATH, json=sent())
    assert status == 400 and words in answer["error"] and len(answer["error"]) < 300


async def test_what_is_no_json_is_refused_however_large(never_here: Client) -> None:
    for data in (b" " * 1_000_000, b"[" * 1_000_000, b'"' + b"a" * 1_000_000, b"\xff" * 1_000_000, b"NaN" * 400_000):
        status, answer, _ = await never_here.ask("POST", PATH, data=data)
        assert status == 400 and "JSON" in answer["error"] and len(answer["error"]) < 300
    bomb = {"data": gzip.compress(b" " * 1_000_000), "headers": {"Content-Encoding": "gzip"}}
    assert (await never_here.ask("POST", PATH, **bomb))[0] == 400


async def test_beside_binary_tensors_the_json_part_is_small(client: Client) -> None:
    text = TEXT + b" " * SMALL
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, answer, _ = await client.ask("POST", PATH, data=text + bytes(8), headers=headers)
    assert status == 400 and "beside binary tensors" in answer["error"]


async def test_a_process_that_dies_costs_one_answer(never_here: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = pool.subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    assert (await never_here.ask("POST", PATH, json=large()))[0] == 200
    for process in started:
        process.kill()
        process.wait()
    seen = [(await never_here.ask("POST", PATH, json=large()))[0] for _ in range(4)]
    assert set(seen) <= {200, 500} and seen.count(500) <= PROCESSES and seen[-1] == 200
    assert (await never_here.ask("GET", "/v2/health/ready"))[0] == 200


async def test_the_processes_end_with_the_server(executor: CpuExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = pool.subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    async with opened(executor, max_per_client=30_000, queue_places=30_000) as client:
        assert (await client.ask("POST", PATH, json=large()))[0] == 200
    assert started
    await until(lambda: all(process.poll() is not None for process in started))


async def test_a_client_that_leaves_in_the_middle_of_a_large_answer_is_no_fault(
    executor: CpuExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(executor, max_per_client=20_000, queue_places=20_000) as client:
        values = np.ones((20_000, 4), np.float32)
        tensor = {
            "name": "input",
            "datatype": "FP32",
            "shape": [20_000, 4],
            "parameters": {"binary_data_size": values.nbytes},
        }
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, "timeout": 10**8}}).encode()
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # most of the answer waits at the server
        narrow.connect(("127.0.0.1", client.port))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=1000)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(text)}\r\n"
        head += f"Content-Length: {len(text) + values.nbytes}\r\n\r\n"
        writer.write(head.encode() + text + values.tobytes())
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 60.0)
        writer.transport.abort()
        await until(lambda: not client.plane._clients)
        assert (await client.infer())[0] == 200
    assert not [one for one in caplog.records if one.levelname in ("ERROR", "CRITICAL")]
