"""Mutated requests of models with several tensors, any size and text, over HTTP and gRPC: refused in a line, or served."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from mutations import mutated
from tensor_server import plane_of, tensor_executor

from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.api.http_codec import HEADER_LENGTH
from serving.api.protocol import inference_pb2 as pb
from serving.executors.cpu import CpuExecutor
from serving.models.tensors import to_bytes

METHOD = "/inference.GRPCInferenceService/ModelInfer"
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    made = tensor_executor()
    yield made
    made.close()


def tensors(rng: np.random.Generator, model: str) -> list[tuple[str, str, np.ndarray]]:
    """Good inputs of a model: name, type and values."""
    count, size = int(rng.integers(1, 4)), int(rng.integers(1, 17))
    if model == "masked":
        found = [("ids", "INT64", rng.integers(0, 50, (count, size)))]
        return found + [("attention_mask", "INT64", np.ones((count, size), np.int64))] * int(rng.integers(2))
    if model == "tagger":
        return [("ids", "INT64", rng.integers(0, 50, (count, size)))]
    words = np.array([[b"word" * int(n)] for n in rng.integers(0, 4, count)], object)
    return [("text", "BYTES", words)]


def example(rng: np.random.Generator, model: str) -> tuple[dict[str, Any], bytes]:
    """A good request over HTTP: its JSON part and the bytes behind it."""
    inputs, data = [], b""
    for name, datatype, values in tensors(rng, model):
        made: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if rng.random() < 0.5:
            part = bytes(to_bytes(values))
            made["parameters"] = {"binary_data_size": len(part)}
            data += part
        else:
            made["data"] = [one.decode() if isinstance(one, bytes) else one for one in values.ravel().tolist()]
        inputs.append(made)
    return {"parameters": {"timeout": 10**7}, "inputs": inputs}, data


def message(rng: np.random.Generator, model: str) -> bytes:
    """A request over gRPC, wrong in one or two ways, or in its bytes."""
    made = pb.ModelInferRequest(model_name=model)
    for name, datatype, values in tensors(rng, model):
        made.inputs.add(name=name, datatype=datatype, shape=values.shape)
        made.raw_input_contents.append(bytes(to_bytes(values)))
    for _ in range(rng.integers(1, 3)):
        tensor = made.inputs[int(rng.integers(len(made.inputs)))] if made.inputs else made.inputs.add()
        what = int(rng.integers(9))
        if what == 0:
            tensor.name = ["", "ids", "x", "\0"][rng.integers(4)]
        elif what == 1:
            tensor.datatype = ["", "BYTES", "FP32", "BF16", "int64"][rng.integers(5)]
        elif what == 2:
            tensor.shape.append(int(rng.integers(-2, 40)))
        elif what == 3 and tensor.shape:
            tensor.shape[int(rng.integers(len(tensor.shape)))] = int(rng.choice([-1, 0, 1, 33, 2**40]))
        elif what == 4 and made.raw_input_contents:
            made.raw_input_contents[0] = made.raw_input_contents[0][: int(rng.integers(20))]
        elif what == 5:
            made.raw_input_contents.append(b"\xff" * int(rng.integers(9)))
        elif what == 6:
            tensor.contents.bytes_contents.append(b"\xff\xfe")
        elif what == 7:
            made.outputs.add(name=["count", "loud", "nothing"][rng.integers(3)])
        elif what == 8:
            del made.raw_input_contents[:]
    sent = bytearray(made.SerializeToString())
    if rng.random() < 0.2:
        for at in rng.integers(len(sent), size=3):
            sent[at] = rng.integers(256)
    return bytes(sent)


@pytest.mark.parametrize("model", ["masked", "tagger", "shout"])
async def test_mutated_tensors_never_harm_the_server(executor: CpuExecutor, model: str) -> None:
    rng = np.random.default_rng(len(model))
    seen: Counter[int] = Counter()
    async with plane_of(executor) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane)
        url = f"http://127.0.0.1:{listener.port}/v2/models/{model}/infer"
        for _ in range(400):
            if rng.random() < 0.2:  # as it should be, between the others
                head, data = example(rng, model)
                text = json.dumps(head).encode()
                body, headers = text + data, {HEADER_LENGTH: str(len(text))}
            else:
                body, headers = mutated(rng, lambda rng: example(rng, model))
            async with session.post(url, data=body, headers=headers) as response:
                answer = await response.read()
                seen[response.status] += 1
                assert response.status < 500 or response.status in (503, 504), (body, headers, answer)
                if response.status != 200:
                    error = json.loads(answer)["error"]
                    assert error and "\n" not in error and len(error) < 500, (body, headers, answer)
        await listener.close()
    assert seen[400] > 100 and seen[200] > 40


@pytest.mark.parametrize("model", ["masked", "tagger", "shout"])
async def test_mutated_messages_never_harm_the_server(executor: CpuExecutor, model: str) -> None:
    rng = np.random.default_rng(len(model))
    seen: Counter[str] = Counter()
    async with plane_of(executor) as plane:
        listener = await start_grpc(plane)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            method = channel.unary_unary(METHOD)
            for _ in range(400):
                sent = message(rng, model)
                try:
                    await asyncio.wait_for(method(sent), 20.0)
                    seen["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    seen[error.code().name] += 1
                    assert error.code() not in FAULTS, (sent, error.details())
                    assert error.details() and "\n" not in str(error.details()), sent
        await listener.close()
    assert seen["INVALID_ARGUMENT"] > 100
