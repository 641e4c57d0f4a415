"""gRPC, driven by tritonclient and by messages made by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from api_server import BLOCKS, NAMES, FakeRepository, X, serving_plane, until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from envs.scheduling.state import CANCELLED, LOW
from serving.api.dataplane import DataPlane
from serving.api.grpc import start_grpc
from serving.api.protocol import inference_pb2 as pb
from serving.executors.cpu import CpuExecutor


class Client(triton_aio.InferenceServerClient):
    """tritonclient, with the server's data plane and calls of hand-made messages."""

    plane: DataPlane
    address: str

    async def call(self, method: str, request: Any, metadata: Any = None) -> Any:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = channel.unary_unary(
                f"/inference.GRPCInferenceService/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=getattr(pb, f"{method}Response").FromString,
            )
            return await stub(request, metadata=metadata)


@asynccontextmanager
async def opened(executor: CpuExecutor, **settings: Any) -> AsyncIterator[Client]:
    async with serving_plane(executor, **settings) as plane:
        listener = await start_grpc(plane)
        client = Client(f"127.0.0.1:{listener.port}")
        client.plane, client.address = plane, f"127.0.0.1:{listener.port}"
        yield client
        await client.close()
        await listener.close()


@pytest.fixture
async def client(executor: CpuExecutor) -> AsyncIterator[Client]:
    async with opened(executor) as made:
        yield made


def tensor(values: np.ndarray = X) -> triton.InferInput:
    made = triton.InferInput("input", values.shape, "FP32")
    made.set_data_from_numpy(values)
    return made


async def refused(call: Any) -> tuple[str, str]:
    """Status and message of a call that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_our_messages_have_the_fields_of_tritonclients() -> None:
    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        theirs = service_pb2.DESCRIPTOR.message_types_by_name.get(name)
        if theirs is None:  # in a file of its own there
            continue
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), f"{name}.{field.name}"
    ours, theirs = (m.DESCRIPTOR.services_by_name["GRPCInferenceService"] for m in (pb, service_pb2))
    for method in ours.methods:
        other = theirs.methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            other.input_type.full_name,
            other.output_type.full_name,
        )


async def test_tritonclient_sees_health_metadata_and_config(client: Client) -> None:
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("double", "1")
    assert (await client.get_server_metadata()).name == "strait"
    described = await client.get_model_metadata("double", as_json=True)
    assert described["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert described["outputs"] == [{"name": "output", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = (await client.get_model_config("double")).config
    assert (config.max_batch_size, config.input[0].name, list(config.input[0].dims)) == (128, "input", [4])
    assert await refused(client.get_model_metadata("nowhere")) == (
        "NOT_FOUND",
        "model 'nowhere' is not served; served are double, slow, faulty",
    )
    assert not await client.is_model_ready("double", "2") and not await client.is_model_ready("nowhere")


async def test_the_sync_client_infers(client: Client) -> None:
    def use() -> None:
        with triton.InferenceServerClient(client.address) as c:
            requested = [triton.InferRequestedOutput("output")]
            result = c.infer("double", [tensor()], outputs=requested, request_id="r1", priority=1, timeout=4_000_000)
            np.testing.assert_array_equal(result.as_numpy("output"), 2 * X)
            answer = result.get_response()
            assert (answer.id, answer.model_name, answer.model_version) == ("r1", "double", "1")
            parameters = answer.parameters
            assert parameters["outcome"].string_param == "met"
            assert 0 <= parameters["queue_us"].int64_param <= parameters["latency_us"].int64_param <= 4_000_000
            assert parameters["batch_size"].int64_param in (1, 2) and parameters["predicted_us"].int64_param > 0

    await asyncio.to_thread(use)
    assert client.plane.engine.offered.tolist() == [2, 0], "priority 1 is high"


async def test_many_calls_at_once_are_answered_and_counted(client: Client) -> None:
    inputs = [X + i for i in range(40)]
    for x, result in zip(inputs, await asyncio.gather(*(client.infer("double", [tensor(x)]) for x in inputs))):
        np.testing.assert_array_equal(result.as_numpy("output"), 2 * x)
    stats = (await client.get_inference_statistics("double")).model_stats[0]
    assert stats.inference_count == stats.inference_stats.success.count == 80
    assert 0 < stats.inference_stats.compute_infer.ns < stats.inference_stats.success.ns
    assert sum(s.compute_infer.count for s in stats.batch_stats) == stats.execution_count
    assert [s.name for s in (await client.get_inference_statistics()).model_stats] == list(NAMES)


async def test_typed_contents_are_as_good_as_raw_ones(client: Client) -> None:
    request = pb.ModelInferRequest(
        model_name="double",
        inputs=[{"name": "input", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}],
    )
    answer = await client.call("ModelInfer", request)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 4, 6, 8]
    request.raw_input_contents.append(b"\0" * 16)
    with pytest.raises(grpc.aio.AioRpcError, match="in one place"):
        await client.call("ModelInfer", request)
    del request.raw_input_contents[:]
    del request.inputs[0].contents.fp32_contents[3:]
    with pytest.raises(grpc.aio.AioRpcError, match="3 elements"):
        await client.call("ModelInfer", request)


async def test_each_end_has_its_status(executor: CpuExecutor, gate: threading.Event) -> None:
    async with opened(executor, queue_places=4) as client:
        engine = client.plane.engine
        assert (await refused(client.infer("nowhere", [tensor()])))[0] == "NOT_FOUND"
        for bad, words in (
            (client.infer("double", [tensor(X[:, :3].copy())]), "expected ['n', 4]"),
            (client.infer("double", [tensor()], priority=3), "priority"),
            (client.infer("double", [tensor()], timeout=-5), "timeout"),
            (client.infer("double", [tensor(), tensor()]), "given twice"),
            (client.infer("double", [tensor()], outputs=[triton.InferRequestedOutput("x")]), "no tensor 'x'"),
            (client.infer("double", [tensor()], sequence_id=3, sequence_start=True), "stateful"),
        ):
            status, message = await refused(bad)
            assert status == "INVALID_ARGUMENT" and words in message
        status, message = await refused(client.infer("double", [tensor()], timeout=100))
        assert status == "DEADLINE_EXCEEDED" and "predicted finish at" in message
        status, message = await refused(client.infer("faulty", [tensor(X + 666)]))
        assert status == "INTERNAL" and "this input is cursed" in message
        blockers = [asyncio.ensure_future(client.infer("slow", [tensor(BLOCKS)])) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        waiting = asyncio.ensure_future(client.infer("double", [tensor(np.ones((3, 4), np.float32))]))
        await until(lambda: engine.queued == 3)
        assert (await refused(client.infer("double", [tensor()])))[0] == "RESOURCE_EXHAUSTED"
        assert engine.queued == 3, "all or nothing"
        gate.set()
        await asyncio.gather(*blockers, waiting)
        await engine.stop(1.0)
        assert (await refused(client.infer("double", [tensor()])))[0] == "UNAVAILABLE"
        assert not await client.is_server_ready()


async def test_a_cancelled_call_takes_its_requests_with_it(executor: CpuExecutor, gate: threading.Event) -> None:
    async with opened(executor) as client:
        engine = client.plane.engine
        blockers = [asyncio.ensure_future(client.infer("slow", [tensor(BLOCKS)])) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        leaver = asyncio.ensure_future(client.infer("double", [tensor(np.ones((3, 4), np.float32))]))
        await until(lambda: engine.queued == 3)
        leaver.cancel()
        await until(lambda: engine.queued == 0)
        impatient = asyncio.ensure_future(client.infer("double", [tensor()], client_timeout=0.5))
        await until(lambda: engine.queued == 2)
        assert (await refused(impatient))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: engine.queued == 0)
        assert engine.ended[LOW, CANCELLED] == 3, "they ended as cancelled"
        assert engine.ended[LOW].sum() == 5, "the call's deadline is that of its requests"
        gate.set()
        await asyncio.gather(*blockers)


async def test_a_stream_answers_in_order_and_survives_errors(client: Client) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i in range(30):
            model = "nowhere" if i == 5 else "double"
            yield {"model_name": model, "inputs": [tensor(X + i)], "request_id": str(i)}

    seen = []
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            assert "'nowhere' is not served" in str(error)
            seen.append("5")
        else:
            i = int(result.get_response().id)
            np.testing.assert_array_equal(result.as_numpy("output"), 2 * (X + i))
            seen.append(str(i))
    assert seen == [str(i) for i in range(30)]


async def test_a_stream_that_is_left_takes_its_requests_with_it(executor: CpuExecutor, gate: threading.Event) -> None:
    async with opened(executor) as client:
        engine = client.plane.engine

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for _ in range(6):
                yield {"model_name": "slow", "inputs": [tensor(BLOCKS)]}
            await asyncio.sleep(10)

        stream = client.stream_infer(requests())
        reader = asyncio.ensure_future(anext(stream))
        await until(lambda: engine.queued + engine.in_flight >= 4)
        reader.cancel()
        stream.cancel()
        await until(lambda: engine.queued == 0)
        gate.set()
        await until(lambda: engine.in_flight == 0)
        assert engine.ended[LOW, CANCELLED] == engine.ended.sum() == engine.offered.sum() > 0


async def test_the_repository_is_asked(executor: CpuExecutor) -> None:
    repository = FakeRepository()
    async with opened(executor, repository=repository) as client:
        assert [m.name for m in (await client.get_model_repository_index()).models] == ["double", "other"]
        await client.load_model("other")
        await client.unload_model("double")
        assert repository.calls == [("load", "other"), ("unload", "double")]
        for name, status in (("nowhere", "NOT_FOUND"), ("broken", "INVALID_ARGUMENT"), ("bug", "INTERNAL")):
            assert (await refused(client.load_model(name)))[0] == status


async def test_requests_in_flight_and_message_size_are_limited(executor: CpuExecutor, gate: threading.Event) -> None:
    async with opened(executor, max_per_client=3, max_grpc_bytes=10_000) as client:
        first = asyncio.ensure_future(client.infer("slow", [tensor(np.repeat(BLOCKS, 2, axis=0))]))
        await until(lambda: client.plane.engine.in_flight > 0)
        status, message = await refused(client.infer("double", [tensor()]))
        assert status == "RESOURCE_EXHAUSTED" and "3 are allowed" in message
        gate.set()
        await first
        large = np.zeros((1000, 4), np.float32)
        assert (await refused(client.infer("double", [tensor(large)])))[0] == "RESOURCE_EXHAUSTED"


async def test_messages_that_are_not_protobuf_do_no_harm(client: Client) -> None:
    rng = np.random.default_rng(0)
    async with grpc.aio.insecure_channel(client.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")  # bytes in, bytes out
        good = pb.ModelInferRequest(
            model_name="double",
            inputs=[{"name": "input", "datatype": "FP32", "shape": [2, 4]}],
            raw_input_contents=[X.tobytes()],
        ).SerializeToString()
        seen = set()
        for _ in range(300):
            bad = bytearray(good)
            for at in rng.integers(len(bad), size=rng.integers(1, 6)):
                bad[at] = rng.integers(256)
            try:
                await call(bytes(bad))
                seen.add("OK")
            except grpc.aio.AioRpcError as error:
                seen.add(error.code().name)
        assert (
            {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
            <= seen
            <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}
        )
        assert await call(good)
