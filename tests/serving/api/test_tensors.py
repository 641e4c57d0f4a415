"""Models of many tensors and any size, called by tritonclient over HTTP and over gRPC with their own names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensor_models
import torch
from tensor_server import Client, plane_of, tensor_executor
from tritonclient.utils import InferenceServerException

from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.executors.cpu import CpuExecutor
from serving.models.served import ServedModel

Models = dict[str, ServedModel]  # the largest bucket of each


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    made = tensor_executor()
    yield made
    made.close()


@pytest.fixture(scope="module")
def models(executor: CpuExecutor) -> Models:
    return {model.model: model for model in executor.models.values()}


@pytest.fixture(params=["http", "grpc"])
def on_server(request: pytest.FixtureRequest, executor: CpuExecutor) -> Callable[[Callable[[Client], None]], None]:
    """Runs a function of a client on a thread, beside the server."""

    def run(work: Callable[[Client], None]) -> None:
        async def serve() -> None:
            async with plane_of(executor) as plane:
                listener = await (start_http if request.param == "http" else start_grpc)(plane)
                try:
                    await asyncio.to_thread(lambda: work(Client(request.param, listener.port)))
                finally:
                    await listener.close()

        asyncio.run(serve())

    return run


OnServer = Callable[[Callable[[Client], None]], None]


def ids(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, shape)


def direct(models: Models, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        result = models[name].module(*map(torch.from_numpy, arrays))
    return [one.numpy() for one in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 32])
def test_a_model_with_a_mask_answers_any_length_as_it_does_directly(
    on_server: OnServer, models: Models, size: int
) -> None:
    given, mask = ids((2, size)), np.ones((2, size), np.int64)
    mask[1, size // 2 + 1 :] = 0

    def work(client: Client) -> None:
        answer = client.infer("masked", ids=(given, "INT64"), attention_mask=(mask, "INT64"))
        expected = direct(models, "masked", given, mask)
        np.testing.assert_allclose(answer.as_numpy("mean"), expected[0], atol=1e-5)
        np.testing.assert_array_equal(answer.as_numpy("count"), expected[1])
        left_out = client.infer("masked", ids=(given, "INT64"))
        expected = direct(models, "masked", given, np.ones_like(mask))
        np.testing.assert_allclose(left_out.as_numpy("mean"), expected[0], atol=1e-5)

    on_server(work)


def test_outputs_are_cut_back_to_what_the_items_own_size_gives(on_server: OnServer, models: Models) -> None:
    def work(client: Client) -> None:
        for size in (1, 3, 4, 5, 16):
            given = ids((3, size), size)
            answer = client.infer("tagger", ids=(given, "INT64"))
            expected = direct(models, "tagger", given)
            np.testing.assert_allclose(answer.as_numpy("output_0"), expected[0], atol=1e-6)
            np.testing.assert_array_equal(answer.as_numpy("output_1"), expected[1])
        for size in (40, 41, 99, 100, 101, 157, 200):
            signal = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
            answer = client.infer("smooth", signal=(signal, "FP32"))
            np.testing.assert_allclose(answer.as_numpy("output"), direct(models, "smooth", signal)[0], atol=1e-5)

    on_server(work)


def test_a_model_that_padding_would_change_runs_each_size_by_itself(on_server: OnServer, models: Models) -> None:
    assert models["unmasked"].exact and not models["masked"].exact

    def work(client: Client) -> None:
        for size in (1, 5, 8, 9, 16):
            given = ids((2, size), size)
            answer = client.infer("unmasked", ids=(given, "INT64"))
            np.testing.assert_allclose(answer.as_numpy("output"), given.mean(1, keepdims=True), rtol=1e-5)

    on_server(work)


def test_items_of_different_sizes_share_a_batch_and_none_gets_anothers_row(executor: CpuExecutor) -> None:
    async def serve() -> None:
        async with plane_of(executor) as plane:
            for name in ("unmasked@16", "tagger@16"):
                items = [(ids((size,), size),) for size in (9, 16, 9, 12, 10, 12)]
                results = await plane.engine.submit_all(name, 1, 1e5, items)
                assert max(result.batch_size for result in results) > 1
                for (given,), result in zip(items, results):
                    assert result.outputs is not None
                    if name == "unmasked@16":
                        np.testing.assert_allclose(result.outputs[0], [given.mean()], rtol=1e-5)
                    else:
                        np.testing.assert_array_equal(result.outputs[1], 2 * given)

    asyncio.run(serve())


def test_outputs_of_a_length_of_their_own_are_answered_and_padded_where_items_differ(on_server: OnServer) -> None:
    def work(client: Client) -> None:
        image = np.array([[[0, 3], [1, 0]]], np.uint8)
        answer = client.infer("detect", image=(image, "UINT8"))
        assert answer.as_numpy("boxes").shape == (1, 3, 4) and answer.as_numpy("labels").tolist() == [[0, 1, 2]]
        two = np.concatenate([image, image // 3])
        answer = client.infer("detect", ["labels"], image=(two, "UINT8"))
        assert answer.as_numpy("labels").tolist() == [[0, 1, 2], [0, 0, 0]] and answer.as_numpy("boxes") is None

    on_server(work)


def test_text_goes_in_and_out(on_server: OnServer) -> None:
    def work(client: Client) -> None:
        text = np.array([["grüezi"], [""]], object)
        answer = client.infer("shout", text=(text, "BYTES"))
        assert [one.decode() for one in answer.as_numpy("loud").ravel()] == ["grüezi".encode().upper().decode(), ""]
        assert answer.as_numpy("length").tolist() == [[7], [0]]

    on_server(work)


def test_bfloat16_runs_as_it_is(on_server: OnServer, models: Models) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    with torch.inference_mode():
        expected = models["half"].module(torch.from_numpy(x).bfloat16()).float().numpy()

    def work(client: Client) -> None:
        answer = client.infer("half", x=(x, "BF16"))
        np.testing.assert_allclose(answer.as_numpy("output"), expected, rtol=2e-2, atol=2e-2)

    on_server(work)


def test_metadata_and_config_name_what_the_model_has(on_server: OnServer) -> None:
    def work(client: Client) -> None:
        plain = {} if client.protocol == "http" else {"as_json": True}
        found = client.client.get_model_metadata("masked", **plain)
        assert [(one["name"], one["datatype"], list(map(int, one["shape"]))) for one in found["inputs"]] == [
            ("ids", "INT64", [-1, -1]),
            ("attention_mask", "INT64", [-1, -1]),
        ]
        assert {one["name"] for one in found["outputs"]} == {"mean", "count"}
        config = client.client.get_model_config("shout", **plain)
        config = config.get("config", config)
        assert config["input"][0]["data_type"] == "TYPE_STRING"
        stats = client.client.get_inference_statistics(**plain)["model_stats"]
        assert {one["name"] for one in stats} == set(tensor_models.MODELS)

    on_server(work)


BAD: list[tuple[str, dict[str, tuple[np.ndarray, str]], str]] = [
    ("masked", {"attention_mask": (ids((1, 4)), "INT64")}, "input 'ids' is missing"),
    ("masked", {"ids": (ids((1, 4)), "INT64"), "extra": (ids((1, 4)), "INT64")}, "no tensor 'extra' here"),
    ("masked", {"ids": (ids((1, 4)).astype(np.int32), "INT32")}, "datatype is 'INT32'; expected INT64"),
    ("masked", {"ids": (ids((1, 4, 1)), "INT64")}, "expected ['n', -1], n the number of items, -1 any size"),
    ("masked", {"ids": (ids((1, 4)) + 50, "INT64")}, "takes integers from 0 to 49"),
    ("masked", {"ids": (ids((1, 0)), "INT64")}, "-1 any size from 1"),
    ("masked", {"ids": (ids((1, 33)), "INT64")}, "size 33 is over 32, the most that model 'masked' takes"),
    ("masked", {"ids": (ids((2, 4)), "INT64"), "attention_mask": (ids((1, 4)), "INT64")}, "has 1 items; that of ids has 2"),
    ("masked", {"ids": (ids((1, 4)), "INT64"), "attention_mask": (ids((1, 5)), "INT64")}, "must be the same in all inputs"),
    ("detect", {"image": (np.zeros((1, 2, 3), np.uint8), "UINT8")}, "expected ['n', 2, 2]"),
]  # fmt: skip


def refusals(protocol: str, port: int) -> list[str]:
    """What a client is told for each of the bad calls; it lives on one thread."""
    client, lines = Client(protocol, port), []
    for model, values, _ in BAD:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, **values)
        lines.append(str(caught.value.message()))
    return lines


def test_bad_tensors_are_refused_in_the_same_line_on_both_protocols(executor: CpuExecutor) -> None:
    async def serve() -> None:
        async with plane_of(executor) as plane:
            http, grpc = await start_http(plane), await start_grpc(plane)
            over_http = await asyncio.to_thread(refusals, "http", http.port)
            over_grpc = await asyncio.to_thread(refusals, "grpc", grpc.port)
            assert over_http == over_grpc
            for line, (_, _, words) in zip(over_http, BAD):
                assert words in line and "\n" not in line
            await http.close()
            await grpc.close()

    asyncio.run(serve())
