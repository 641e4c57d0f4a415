"""The HTTP door, driven by tritonclient, by aiohttp and by bare sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from front_server import NAMES, FakeRepository, X, make_executor, serving_plane
from tritonclient.utils import InferenceServerException

from serving.config import EngineConfig
from serving.cpu_executor import CpuExecutor
from serving.dataplane import DataPlane, FrontLimits
from serving.http_front import start_http
from traces.errors import InputError


@pytest.fixture(scope="module")
def executor() -> Any:
    made = make_executor()
    yield made
    made.close()


class Client:
    """Raw requests to one server."""

    def __init__(self, plane: DataPlane, port: int, session: aiohttp.ClientSession) -> None:
        self.plane = plane
        self.port = port
        self.session = session

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        """Status, JSON body and headers."""
        async with self.session.request(method, f"http://127.0.0.1:{self.port}{path}", **more) as response:
            return response.status, json.loads(await response.read()), response.headers

    async def infer(self, model: str = "double", values: np.ndarray = X, **more: Any) -> tuple[int, Any, Any]:
        return await self.ask("POST", f"/v2/models/{model}/infer", json=body(values, **more))


@asynccontextmanager
async def opened(
    executor: CpuExecutor,
    limits: FrontLimits | None = None,
    config: EngineConfig | None = None,
    token: str | None = None,
    **more: Any,
) -> AsyncIterator[Client]:
    async with serving_plane(executor, limits, config, **more) as plane:
        front = await start_http(plane, port=0, token=token)
        async with aiohttp.ClientSession() as session:
            yield Client(plane, front.port, session)
        await front.close()


@pytest.fixture
async def client(executor: CpuExecutor) -> AsyncIterator[Client]:
    async with opened(executor) as made:
        yield made


def body(values: np.ndarray = X, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
    return {"id": "seven", "inputs": [tensor], "parameters": parameters}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that takes a moment."""
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.005)


def tensor(values: np.ndarray = X, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("input", values.shape, "FP32")
    made.set_data_from_numpy(values, binary_data=binary)
    return made


# tritonclient.


async def test_tritonclient_sees_health_metadata_and_config(client: Client) -> None:
    def use() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
            assert c.is_server_live() and c.is_server_ready() and c.is_model_ready("double")
            assert c.is_model_ready("double", "1") and not c.is_model_ready("double", "2")
            assert not c.is_model_ready("nowhere")
            assert "binary_tensor_data" in c.get_server_metadata()["extensions"]
            described = c.get_model_metadata("double")
            assert described["name"] == "double" and described["versions"] == ["1"]
            assert described["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
            assert described["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 4]}]
            config = c.get_model_config("double")
            assert config["max_batch_size"] == 128
            assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [4]}]

    await asyncio.to_thread(use)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
async def test_tritonclient_infers(client: Client, binary_in: bool, binary_out: bool | None) -> None:
    def use() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
            wanted = None if binary_out is None else [triton.InferRequestedOutput("output", binary_data=binary_out)]
            result = c.infer(
                "double", [tensor(binary=binary_in)], outputs=wanted, request_id="r1", priority=1, timeout=4_000_000
            )
            np.testing.assert_array_equal(result.as_numpy("output"), 2 * X)
            answer = result.get_response()
            assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r1", "double", "1")
            assert answer["parameters"]["outcome"] == "met"
            assert 0 <= answer["parameters"]["queue_us"] <= answer["parameters"]["latency_us"] <= 4_000_000
            assert answer["parameters"]["batch_size"] in (1, 2) and answer["parameters"]["predicted_us"] > 0

    await asyncio.to_thread(use)
    assert client.plane.engine.offered.tolist() == [2, 0], "priority 1 is high"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_tritonclient_may_compress_its_request(client: Client, algorithm: str) -> None:
    def use() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
            result = c.infer("double", [tensor()], request_compression_algorithm=algorithm)
            np.testing.assert_array_equal(result.as_numpy("output"), 2 * X)

    await asyncio.to_thread(use)


async def test_tritonclient_sees_errors(client: Client) -> None:
    def use() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
            for model, sent, status, message in (
                ("nowhere", tensor(), "404", "model 'nowhere' is not served"),
                ("double", tensor(X[:, :3].copy()), "400", r"shape is \[2, 3\]; \['n', 4\] is wanted"),
                ("faulty", tensor(X + 666), "500", "this input is cursed"),
            ):
                with pytest.raises(InferenceServerException, match=message) as caught:
                    c.infer(model, [sent])
                assert caught.value.status() == status

    await asyncio.to_thread(use)


async def test_the_asyncio_client_infers_many_at_once(client: Client) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
        inputs = [X + i for i in range(40)]
        results = await asyncio.gather(*(c.infer("double", [tensor(x)]) for x in inputs))
        for x, result in zip(inputs, results):
            np.testing.assert_array_equal(result.as_numpy("output"), 2 * x)
        # Statistics count what was done.
        stats = (await c.get_inference_statistics("double"))["model_stats"][0]
        assert stats["inference_count"] == stats["inference_stats"]["success"]["count"] == 80
        assert sum(s["compute_infer"]["count"] for s in stats["batch_stats"]) == stats["execution_count"] <= 80
        assert stats["inference_stats"]["queue"]["count"] == stats["inference_stats"]["compute_infer"]["count"] == 80
        assert 0 < stats["inference_stats"]["compute_infer"]["ns"] < stats["inference_stats"]["success"]["ns"]
        assert stats["last_inference"] > 1.6e12
        assert [s["name"] for s in (await c.get_inference_statistics())["model_stats"]] == list(NAMES)


async def test_the_repository_is_asked(executor: CpuExecutor) -> None:
    repository = FakeRepository()
    async with opened(executor, repository=repository) as client:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{client.port}") as c:
            assert [m["name"] for m in await c.get_model_repository_index()] == ["double", "other"]
            await c.load_model("other")
            await c.unload_model("double")
            assert repository.calls == [("load", "other"), ("unload", "double")]
        index = await client.ask("POST", "/v2/repository/index", json={"ready": True})
        assert [m["name"] for m in index[1]] == ["double"]
        for name, status, words in (
            ("nowhere", 404, "no model 'nowhere'"),
            ("broken", 400, "its file is damaged"),
            ("bug", 500, "RuntimeError: a bug in two lines"),
        ):
            answer = await client.ask("POST", f"/v2/repository/models/{name}/load")
            assert answer[0] == status and words in answer[1]["error"]


async def test_without_a_repository_models_stay(client: Client) -> None:
    status, index, _ = await client.ask("POST", "/v2/repository/index")
    assert status == 200 and [(m["name"], m["state"]) for m in index] == [(name, "READY") for name in NAMES]
    status, answer, _ = await client.ask("POST", "/v2/repository/models/double/unload")
    assert status == 400 and "no repository" in answer["error"]


# Raw requests.


async def test_json_answers_are_flat_lists_and_the_id_is_echoed(client: Client) -> None:
    status, answer, headers = await client.infer()
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert answer["id"] == "seven"
    assert answer["outputs"] == [
        {"name": "output", "datatype": "FP32", "shape": [2, 4], "data": (2 * X).ravel().tolist()}
    ]
    nested = body()
    nested["inputs"][0]["data"] = X.tolist()
    del nested["id"]
    status, again, _ = await client.ask("POST", "/v2/models/double/versions/1/infer", json=nested)
    assert status == 200 and again["outputs"] == answer["outputs"] and "id" not in again


async def test_what_json_lacks_becomes_null(client: Client) -> None:
    values = np.array([[np.nan, np.inf, 1.5, -np.inf]], np.float32)
    head = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}
    text = json.dumps(head).encode()
    status, answer, _ = await client.ask(
        "POST",
        "/v2/models/double/infer",
        data=text + values.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    assert status == 200 and answer["outputs"][0]["data"] == [None, None, 3.0, None]


@pytest.mark.parametrize(
    ("parameters", "headers", "priority"),
    [
        ({}, {}, 1),
        ({"priority": 0}, {}, 1),
        ({"priority": 1}, {}, 0),
        ({"priority": 2}, {}, 1),
        ({}, {"X-Priority": "1"}, 0),
        ({"priority": 2}, {"X-Priority": "1"}, 1),
    ],
)
async def test_priority_comes_from_the_body_or_a_header(
    client: Client, parameters: dict[str, int], headers: dict[str, str], priority: int
) -> None:
    status, _, _ = await client.ask("POST", "/v2/models/double/infer", json=body(**parameters), headers=headers)
    assert status == 200
    assert client.plane.engine.offered[priority] == 2


async def test_an_impossible_deadline_is_refused_with_the_predicted_finish(client: Client) -> None:
    for answer in (
        await client.infer(timeout=100),
        await client.ask("POST", "/v2/models/double/infer", json=body(), headers={"X-Timeout-Us": "100"}),
    ):
        assert answer[0] == 504 and "predicted finish at" in answer[1]["error"]


async def test_a_late_answer_says_so(executor: CpuExecutor) -> None:
    async with opened(executor) as client:
        client.plane.engine.guard.policy.drop = 0.0
        status, answer, _ = await client.infer("slow", np.full((1, 4), 40, np.float32), timeout=20_000)
        assert status == 200 and answer["parameters"]["outcome"] == "late"
        assert answer["parameters"]["latency_us"] > 20_000


async def test_a_full_queue_is_503_and_nothing_of_the_call_is_left(executor: CpuExecutor) -> None:
    async with opened(executor, config=EngineConfig(queue_places=4)) as client:
        engine = client.plane.engine
        blockers = [asyncio.ensure_future(client.infer("slow", np.full((1, 4), 150, np.float32))) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        waiting = asyncio.ensure_future(client.infer("double", np.ones((3, 4), np.float32)))
        await until(lambda: engine.queued == 3)
        status, answer, headers = await client.infer("double", X)
        assert status == 503 and "is full" in answer["error"] and headers["Retry-After"] == "1"
        assert engine.queued == 3, "the item that found a place left it again: all or nothing"
        assert (await waiting)[0] == 200
        assert {(await b)[0] for b in blockers} == {200}
        status, answer, _ = await client.infer("double", np.ones((5, 4), np.float32))
        assert status == 400 and "1 to 4" in answer["error"], "a call that can never fit is not told to come again"


async def test_stopping_is_503(client: Client) -> None:
    await client.plane.engine.stop(1.0)
    status, answer, headers = await client.infer()
    assert status == 503 and "stopping" in answer["error"] and "Retry-After" in headers
    assert (await client.ask("GET", "/v2/health/ready"))[:2] == (503, {"ready": False})
    assert (await client.ask("GET", "/v2/models/double/ready"))[0] == 503
    assert (await client.ask("GET", "/v2/health/live"))[:2] == (200, {"live": True})


def _changed(**changes: Any) -> dict[str, Any]:
    made = body()
    made["inputs"][0].update(changes)
    return {**made, "inputs": [{k: v for k, v in made["inputs"][0].items() if v is not ...}]}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([], "an object is wanted"),
        ({}, "exactly one tensor"),
        ({"inputs": []}, "exactly one tensor"),
        ({"inputs": [1]}, "exactly one tensor"),
        (_changed(name="x"), "no tensor 'x'"),
        (_changed(datatype="INT64"), "datatype is 'INT64'; FP32 is wanted"),
        (_changed(datatype="BYTES"), "BYTES is not supported"),
        (_changed(datatype=...), "datatype is None"),
        (_changed(shape=[2, 5]), "['n', 4] is wanted"),
        (_changed(shape=[0, 4]), "has 0 items"),
        (_changed(shape=[10**15, 4]), "1 to 128 are wanted"),
        (_changed(shape=[10**30, 4]), "a list of integers"),
        (_changed(shape=[True, 4]), "a list of integers"),
        (_changed(shape="24"), "a list of integers"),
        (_changed(data=[1.0] * 7), "7 elements"),
        (_changed(data=[[1.0, 2.0], [3.0]]), "ragged"),
        (_changed(data=["1"] * 8), "something else than numbers"),
        (_changed(data=[None] * 8), "something else than numbers"),
        (_changed(data=[True] * 8), "something else than numbers"),
        (_changed(data=[1e300] * 8), "FP32 cannot"),
        (_changed(data=[[1.0] * 2] * 4), "data has shape [4, 2]"),
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
        ({**body(), "id": 7}, "id is not a string"),
        ({**body(), "outputs": [{"name": "logits"}]}, "'output' is wanted"),
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


async def test_paths_and_methods_that_are_not_here(client: Client) -> None:
    assert (await client.ask("GET", "/v3"))[0] == 404
    status, answer, headers = await client.ask("GET", "/v2/models/double/infer")
    assert status == 405 and "POST" in headers["Allow"] and "Method Not Allowed" in answer["error"]
    assert (await client.ask("GET", "/v2/models/double/versions/2"))[0] == 404
    assert (await client.ask("GET", "/metrics"))[0] == 404


async def test_metrics_are_passed_on(executor: CpuExecutor) -> None:
    def metrics() -> tuple[bytes, str]:
        return b"up 1\n", "text/plain; version=0.0.4"

    async with opened(executor, metrics=metrics) as client:
        response = await client.session.get(f"http://127.0.0.1:{client.port}/metrics")
        assert await response.read() == b"up 1\n"
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4"


# Limits, and clients that misbehave.


async def test_a_token_is_wanted_everywhere_but_at_the_probes(executor: CpuExecutor) -> None:
    async with opened(executor, token="s3cret") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for method, path in (
                ("GET", "/v2"),
                ("GET", "/metrics"),
                ("GET", "/nowhere"),
                ("POST", "/v2/models/double/infer"),
            ):
                status, answer, sent = await client.ask(method, path, headers=headers)
                assert status == 401 and sent["WWW-Authenticate"] == "Bearer" and "s3cret" not in str(answer)
        assert (await client.ask("GET", "/v2/health/ready"))[0] == 200
        right = {"Authorization": "Bearer s3cret"}
        assert (await client.ask("POST", "/v2/models/double/infer", json=body(), headers=right))[0] == 200


async def test_a_body_that_is_too_large_is_413_before_it_is_read(executor: CpuExecutor) -> None:
    async with opened(executor, FrontLimits(max_body_bytes=1000)) as client:
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


async def test_one_client_cannot_have_more_in_flight_than_its_share(executor: CpuExecutor) -> None:
    async with opened(executor, FrontLimits(max_per_client=3)) as client:
        first = asyncio.ensure_future(client.infer("slow", np.full((2, 4), 100, np.float32)))
        await until(lambda: client.plane.engine.in_flight > 0)
        status, answer, headers = await client.infer("double", X)
        assert status == 429 and "2 requests in flight; 3 are allowed" in answer["error"] and "Retry-After" in headers
        assert (await client.infer("double", X[:1]))[0] == 200
        assert (await first)[0] == 200


async def test_a_client_that_leaves_takes_its_requests_with_it(executor: CpuExecutor) -> None:
    async with opened(executor) as client:
        engine = client.plane.engine
        blockers = [asyncio.ensure_future(client.infer("slow", np.full((1, 4), 200, np.float32))) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        leaver = asyncio.ensure_future(client.infer("double", np.ones((3, 4), np.float32)))
        await until(lambda: engine.queued == 3)
        leaver.cancel()  # aiohttp closes the connection
        await until(lambda: engine.queued == 0)
        assert engine.ended[1, 5] == 3, "they ended as cancelled"
        assert {(await b)[0] for b in blockers} == {200}


async def test_slow_clients_are_let_go(executor: CpuExecutor) -> None:
    async with opened(executor, FrontLimits(body_timeout_s=0.1, keepalive_s=0.3)) as client:
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


async def test_a_port_that_is_taken_is_a_plain_error(client: Client) -> None:
    with pytest.raises(InputError, match="cannot listen on"):
        await start_http(client.plane, port=client.port)


async def test_closing_waits_for_the_requests_in_hand(executor: CpuExecutor) -> None:
    async with serving_plane(executor) as plane, aiohttp.ClientSession() as session:
        front = await start_http(plane, port=0)
        client = Client(plane, front.port, session)
        job = asyncio.ensure_future(client.infer("slow", np.full((1, 4), 100, np.float32)))
        await until(lambda: plane.engine.in_flight == 1)
        await front.close()
        assert (await job)[0] == 200


def test_the_binary_layout_is_little_endian() -> None:
    from serving.tensors import from_bytes, to_bytes

    data = struct.pack("<3i", 1, -2, 3)
    array = from_bytes(data, np.dtype("int32"), (3,), "x")
    assert array.tolist() == [1, -2, 3] and to_bytes(array) == data
    assert from_bytes(b"\x00\x02\x01", np.dtype("bool"), (3,), "x").tolist() == [False, True, True]


async def test_https(executor: CpuExecutor, tmp_path: Path) -> None:
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
        front = await start_http(plane, port=0, ssl_context=context)
        url = f"https://127.0.0.1:{front.port}/v2/models/double/infer"
        async with session.post(url, json=body(), ssl=trusting) as response:
            assert response.status == 200
        await front.close()
