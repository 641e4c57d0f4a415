"""Models of many tensors and any size through a door: clients see and get what they see and get of the replica itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from api_server import until
from tensor_server import Client, door_to, plane_of, tensor_executor

from agents.routing.registry import router
from benchmarks.common.server import Connection, http_message
from serving.api.dataplane import DataPlane
from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.api.infer_call import InferCall, Wanted, whole_call
from serving.api.plane import Plane
from serving.api.refusal import Kind, Refusal
from serving.cluster.frames import InferFrame, SentTensor
from serving.cluster.link import LinkConfig
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.engine.request import Observer, RequestResult
from serving.executors.cpu import CpuExecutor
from serving.library import open_engine

START = {"http": start_http, "grpc": start_grpc}


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    made = tensor_executor()
    yield made
    made.close()


@asynccontextmanager
async def behind_a_door(executor: CpuExecutor) -> AsyncIterator[tuple[DataPlane, RemotePlane]]:
    async with plane_of(executor) as plane, door_to(plane) as door:
        yield plane, door


class Seen(Observer):
    """Names under which the requests that ended were scheduled."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def request_ended(self, result: RequestResult) -> None:
        self.models.append(result.model)


def ids(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, shape)


def of_every_form() -> Iterator[tuple[str, list[str], dict[str, tuple[np.ndarray, str]]]]:
    """Calls: the model, its outputs that are asked for, and its inputs."""
    for size in (1, 2, 3, 8, 9, 31, 32):  # across all buckets
        mask = np.ones((2, size), np.int64)
        mask[1, size // 2 + 1 :] = 0
        yield "masked", ["mean", "count"], {"ids": (ids((2, size), size), "INT64"), "attention_mask": (mask, "INT64")}
    yield "masked", ["count"], {"ids": (ids((3, 5), 5), "INT64")}  # an input is left out, and an output not asked for
    yield "tagger", ["output_1", "output_0"], {"ids": (ids((2, 7), 7), "INT64")}
    yield "unmasked", ["output"], {"ids": (ids((2, 11), 11), "INT64")}
    yield "shout", ["length", "loud"], {"text": (np.array([["ab"], ["grüße"], [""]], object), "BYTES")}
    yield "half", ["output"], {"x": (np.array([[1.0, -2.0, 0.5, 3.0]], np.float32), "BF16")}
    yield "detect", ["boxes", "labels"], {"image": (np.array([[[0, 3], [1, 2]]], np.uint8), "UINT8")}
    yield "detect", ["labels", "boxes"], {"image": (np.zeros((1, 2, 2), np.uint8), "UINT8")}  # nothing is found


@pytest.mark.parametrize("protocol", START)
def test_a_door_answers_any_tensors_of_any_length_as_its_replica_does(executor: CpuExecutor, protocol: str) -> None:
    def work(direct: Client, through: Client) -> None:
        for model, outputs, inputs in of_every_form():
            expected = direct.infer(model, outputs, **inputs)
            got = through.infer(model, outputs, **inputs)
            for name in outputs:
                assert got.as_numpy(name).dtype == expected.as_numpy(name).dtype
                np.testing.assert_array_equal(got.as_numpy(name), expected.as_numpy(name), f"{model} {name}")

    async def scenario() -> None:
        async with behind_a_door(executor) as planes:
            listeners = [await START[protocol](plane) for plane in planes]
            try:
                await asyncio.to_thread(lambda: work(*(Client(protocol, one.port) for one in listeners)))
            finally:
                for listener in listeners:
                    await listener.close()
            assert planes[1].count["answered"] == len(list(of_every_form()))

    asyncio.run(scenario())


def test_a_door_describes_its_models_as_the_replica_does(executor: CpuExecutor) -> None:
    async def scenario() -> None:
        async with behind_a_door(executor) as (plane, door):
            assert set(door.views) == set(plane.views) >= {"masked", "shout"}
            for name in plane.views:
                assert door.model(name) == plane.model(name)
                assert door.model(name, "1").metadata() == plane.model(name, "1").metadata()
                assert door.model_config(name) == plane.model_config(name)
            with pytest.raises(Refusal, match="has version 1, not '7'"):
                door.model("masked", "7")

    asyncio.run(scenario())


def test_requests_and_quotes_go_by_the_bucket_that_holds_them(executor: CpuExecutor) -> None:
    async def quoted(port: int, query: str) -> dict[str, float]:
        status, body = await (await Connection.open(port)).ask(http_message(f"/v2/models/masked/quote?{query}"))
        assert status == 200, body
        return json.loads(body)["finish_us"]

    async def scenario() -> None:
        async with behind_a_door(executor) as (plane, door):
            view = door.model("masked")
            seen = [Seen(), Seen()]
            plane.engine.observers.append(seen[0])
            door.observers.append(seen[1])
            for size in (1, 2, 3, 9, 32):
                await door.infer(view.bucket(size), call_of_ids(size), 0, 5000.0)
            for one in seen:
                assert one.models == ["masked@2", "masked@2", "masked@4", "masked@16", "masked@32"]
            ledger, place = door._place(view.bucket(3))
            assert door.scheduled[place.scheduled] == "masked@4"
            assert ledger.tables.solo.shape[1] == len(door.scheduled) == len(plane.scheduled)
            listeners = [await start_http(one) for one in (plane, door)]
            try:
                for listener in listeners:
                    assert set(await quoted(listener.port, "size=3&timeout=1000000")) == {"p50", "p90", "p95"}
                    status, body = await (await Connection.open(listener.port)).ask(
                        http_message("/v2/models/masked/quote?size=33")
                    )
                    assert status == 400 and b"over 32" in body
            finally:
                for listener in listeners:
                    await listener.close()

    asyncio.run(scenario())


def test_what_a_replica_unloads_by_itself_makes_no_request_another_models_and_doors_hear_of_it(
    executor: CpuExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            plane = await stack.enter_async_context(plane_of(executor))
            replica = Replica(plane)
            door, second = [await stack.enter_async_context(door_to(plane, replica)) for _ in range(2)]
            view, seen = door.model("masked").bucket(4), Seen()
            plane.engine.observers.append(seen)
            before = (await door.infer(view, call_of_ids(4), 0, 5000.0)).outputs
            monkeypatch.setattr("serving.cluster.replica._Door.greet", lambda door: None)  # the news is on its way
            await plane.engine.remove_model("detect")  # which comes before it in what the doors know
            for one in (door, second):
                assert "detect" in one.views
                for _ in range(3):
                    np.testing.assert_array_equal((await one.infer(view, call_of_ids(4), 0, 5000.0)).outputs, before)
            assert set(seen.models) == {"masked@4"}
            monkeypatch.undo()
            await until(lambda: "detect" not in door.views and "detect" not in second.views)
            for one in (door, second):
                np.testing.assert_array_equal((await one.infer(view, call_of_ids(4), 0, 5000.0)).outputs, before)
                ledger, _ = one._place(view)
                await until(lambda ledger=ledger: float(ledger.ledger.replica["told_at"][0, 0]) > 0.0)

    asyncio.run(scenario())


def test_a_body_that_is_larger_than_the_replica_takes_is_refused_before_it_is_sent(
    executor: CpuExecutor,
) -> None:
    async def scenario() -> None:
        async with behind_a_door(executor) as (plane, door):
            view = door.model("masked").bucket(32)
            door.greeting = door.greeting._replace(most_bytes=2 * 8 * 32)  # as if the replica took no more
            await door.infer(view, call_of_ids(32), 0, 5000.0)
            door.greeting = door.greeting._replace(most_bytes=2 * 8 * 32 - 1)
            with pytest.raises(Refusal, match="more than the 511 bytes") as caught:
                await door.infer(view, call_of_ids(32), 0, 5000.0)
            assert caught.value.kind is Kind.TOO_LARGE and door.count["lost"] == 0

    asyncio.run(scenario())


def call_of_ids(size: int) -> InferCall:
    values = (ids((1, size), size), np.ones((1, size), np.int64))
    return InferCall(None, values, size, {}, (Wanted(0, binary=True),))


def broken(change: Callable[[InferFrame], InferFrame]) -> InferFrame:
    ids_, mask = call_of_ids(4).values
    inputs = tuple(SentTensor(place, one.shape, one.tobytes()) for place, one in enumerate((ids_, mask)))
    return change(InferFrame(1, 1, 0, 0, 1000.0, b"", b"", (0,), inputs))


def replaced(place: int, **fields: object) -> Callable[[InferFrame], InferFrame]:
    def change(frame: InferFrame) -> InferFrame:
        inputs = list(frame.inputs)
        inputs[place] = inputs[place]._replace(**fields)  # type: ignore[arg-type]
        return frame._replace(inputs=tuple(inputs))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame._replace(inputs=frame.inputs[:1]), "1 inputs do not fit"),
        (lambda frame: frame._replace(inputs=frame.inputs[::-1]), "2 inputs do not fit"),
        (lambda frame: frame._replace(outputs=(2,)), r"outputs \[2\] do not fit"),
        (lambda frame: frame._replace(outputs=()), r"outputs \[\] do not fit"),
        (replaced(0, shape=(2**32 - 1, 4)), "must have 1 to"),
        (replaced(0, shape=(1, 4, 1)), "shape is"),
        (replaced(0, values=b"short"), "5 bytes of data"),
        (replaced(0, shape=(1, 33), values=bytes(8 * 33)), "size 33 is over 32"),
        (replaced(1, shape=(1, 3), values=bytes(8 * 3)), "must be the same in all inputs"),
        (replaced(1, shape=(2, 2)), "2 items, where 1 come before"),
        (replaced(0, values=b"\xff" * 32), "takes integers from 0 to 49"),
    ],
)
def test_a_request_that_does_not_fit_its_model_is_refused_and_the_door_goes_on(
    executor: CpuExecutor, change: Callable[[InferFrame], InferFrame], message: str
) -> None:
    async def scenario() -> None:
        async with behind_a_door(executor) as (plane, door):
            frame = broken(change)._replace(model=door._place(door.model("masked").bucket(4))[1].view)
            with pytest.raises(Refusal, match=message) as caught:
                await door.links[0].infer(frame)
            assert caught.value.kind is Kind.BAD_INPUT
            assert plane.engine.offered.sum() == 0
            await answered(door)

    async def answered(door: Plane) -> None:
        answer = await door.infer(door.model("masked").bucket(4), call_of_ids(4), 0, 5000.0)
        assert answer.outputs[0].shape == (1, 8)

    asyncio.run(scenario())


def test_a_door_sends_requests_where_their_models_are_in_memory(tmp_path: Path) -> None:
    model = "- {{name: {}, source: 'toy_models:wide', input_shape: [4], timeout_ms: 60000}}\n"
    (tmp_path / "models.yaml").write_text("".join(map(model.format, "abcd")))
    flags = {"device": "cpu", "streams": 1, "batch_sizes": [1, 2], "memory_limit": "45M", "replicas": 2}

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            engines, ports = [], []
            for number in range(2):
                made = open_engine(str(tmp_path / "models.yaml"), **flags, replica_number=number)
                engines.append(await stack.enter_async_context(made))
                listener = await listen_for_doors(Replica(engines[-1].plane), 0, None)
                stack.push_async_callback(listener.close)
                ports.append(listener.port)
            before = [set(one.engine.models) for one in engines]
            assert before[0] | before[1] == set("abcd") and not before[0] & before[1]
            peers = [("127.0.0.1", port) for port in ports]
            door = RemotePlane(ServeConfig(port=0), peers, router("quote"), LinkConfig(None, None, 5.0), retries=1)
            stack.push_async_callback(door.close)
            await until(lambda: door.ledger is not None and (door.ledger.ledger.load_ms > 0.0).sum() == 4)
            for name in "abcdabcd":
                view = door.model(name)
                answer = await door.infer(view, whole_call(view, np.ones((1, 4), np.float32)), 0, view.deadline_ms)
                assert answer.parameters["outcome"] == "met"
            assert [set(one.engine.models) for one in engines] == before  # none was loaded again

    asyncio.run(scenario())


def test_a_door_does_not_notice_that_a_model_is_out_of_its_replicas_memory(tmp_path: Path) -> None:
    model = "- {{name: {}, source: 'toy_models:wide', input_shape: [4], timeout_ms: 60000}}\n"
    (tmp_path / "models.yaml").write_text("".join(map(model.format, "abc")))
    flags = {"device": "cpu", "streams": 1, "batch_sizes": [1, 2], "memory_limit": "45M"}

    async def scenario() -> None:
        async with open_engine(str(tmp_path / "models.yaml"), **flags) as engine, door_to(engine.plane) as door:
            assert set(door.views) == set("abc") and len(engine.engine.models) == 2
            for name in "abcabc":
                view = door.model(name)
                answer = await door.infer(view, whole_call(view, np.ones((1, 4), np.float32)), 0, view.deadline_ms)
                assert answer.parameters["outcome"] == "met"
                assert name in engine.engine.models
            assert door.count["answered"] == 6 and door.links[0].greeting is not None

    asyncio.run(scenario())
