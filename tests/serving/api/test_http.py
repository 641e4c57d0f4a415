"""HTTP, driven by tritonclient and by raw requests; bad ones and the limits are in test_http_limits.py."""

from __future__ import annotations

import asyncio
import struct
import threading

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from api_server import BLOCKS, NAMES, FakeRepository, X, until
from http_client import Client, body, opened
from tritonclient.utils import InferenceServerException

from serving.executors.cpu import CpuExecutor


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
            requested = None if binary_out is None else [triton.InferRequestedOutput("output", binary_data=binary_out)]
            result = c.infer(
                "double", [tensor(binary=binary_in)], outputs=requested, request_id="r1", priority=1, timeout=4_000_000
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
                ("double", tensor(X[:, :3].copy()), "400", r"shape is \[2, 3\]; expected \['n', 4\]"),
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
        for verb, words in (
            ("load", "has no model 'nowhere' of version '7'"),
            ("unload", "'nowhere' of version '7' is"),
        ):
            answer = await client.ask(
                "POST", f"/v2/repository/models/nowhere/{verb}", json={"parameters": {"version": "7"}}
            )
            assert answer[0] == 404 and words in answer[1]["error"]


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


async def test_a_full_queue_is_503_and_nothing_of_the_call_is_left(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    async with opened(executor, queue_places=4) as client:
        engine = client.plane.engine
        blockers = [asyncio.ensure_future(client.infer("slow", BLOCKS)) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        waiting = asyncio.ensure_future(client.infer("double", np.ones((3, 4), np.float32)))
        await until(lambda: engine.queued == 3)
        status, answer, headers = await client.infer("double", X)
        assert status == 503 and "is full" in answer["error"] and headers["Retry-After"] == "1"
        assert engine.queued == 3, "the item that found a place left it again: all or nothing"
        gate.set()
        assert (await waiting)[0] == 200
        assert {(await b)[0] for b in blockers} == {200}
        status, answer, _ = await client.infer("double", np.ones((5, 4), np.float32))
        assert status == 400 and "1 to 4" in answer["error"], "a call that can never fit is not to be retried"


async def test_stopping_is_503(client: Client) -> None:
    await client.plane.engine.stop(1.0)
    status, answer, headers = await client.infer()
    assert status == 503 and "stopping" in answer["error"] and "Retry-After" in headers
    assert (await client.ask("GET", "/v2/health/ready"))[:2] == (503, {"ready": False})
    assert (await client.ask("GET", "/v2/models/double/ready"))[0] == 503
    assert (await client.ask("GET", "/v2/health/live"))[:2] == (200, {"live": True})


async def test_metrics_are_passed_on(executor: CpuExecutor) -> None:
    def metrics() -> tuple[bytes, str]:
        return b"up 1\n", "text/plain; version=0.0.4"

    async with opened(executor, metrics=metrics) as client:
        response = await client.session.get(f"http://127.0.0.1:{client.port}/metrics")
        assert await response.read() == b"up 1\n"
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4"


def test_the_binary_layout_is_little_endian() -> None:
    from serving.models.tensors import TensorSpec, from_bytes, to_bytes

    data = struct.pack("<3i", 1, -2, 3)
    array = from_bytes(data, TensorSpec("x", "INT32", (3,)), (3,))
    assert array.tolist() == [1, -2, 3] and to_bytes(array) == data
    assert from_bytes(b"\x00\x02\x01", TensorSpec("x", "BOOL", (3,)), (3,)).tolist() == [False, True, True]
