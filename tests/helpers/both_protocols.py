"""One request over HTTP and over gRPC, to compare what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import http_client
from api_server import X, serving_plane

from serving.api.dataplane import DataPlane
from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.api.protocol import inference_pb2 as pb
from serving.executors.cpu import CpuExecutor

SERVICE = "inference.GRPCInferenceService"


class Reply(NamedTuple):
    """What came back: "" or the error, the output, headers or metadata, and parameters."""

    error: str
    output: Any
    headers: dict[str, str]
    parameters: dict[str, int | str]


def request(**changes: Any) -> dict[str, Any]:
    """A good request in the protocol's JSON; changed at its top."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [2, 4], "data": X.ravel().tolist()}
    return {"inputs": [tensor]} | changes


class Both:
    """Two clients of one server."""

    def __init__(self, plane: DataPlane, http: http_client.Client, channel: grpc.aio.Channel) -> None:
        self.plane, self.http, self.channel = plane, http, channel

    async def call(self, method: str, message: Any, answer: str = "", **more: Any) -> tuple[Any, dict[str, str]]:
        """A unary call, e.g. of "inference.GRPCInferenceService/ModelInfer", and its trailing metadata."""
        name = answer or f"{method.rpartition('/')[2]}Response"
        read = getattr(pb, name).FromString
        call = self.channel.unary_unary(f"/{method}", type(message).SerializeToString, read)(message, **more)
        return await call, dict(await call.trailing_metadata())

    async def over_http(self, head: dict[str, Any], model: str = "double", **headers: str) -> Reply:
        """Ask over HTTP."""
        path, sent = f"/v2/models/{model}/infer", json.dumps(head).encode()
        status, answer, back = await self.http.ask("POST", path, data=sent, headers=headers)
        if status != 200:
            return Reply(answer["error"], None, back, {})
        return Reply("", answer["outputs"][0]["data"], back, answer["parameters"])

    async def over_grpc(self, head: dict[str, Any], model: str = "double", **more: Any) -> Reply:
        """Ask over gRPC: the same fields as a message."""
        made = pb.ModelInferRequest(model_name=model, id=head.get("id", ""))
        _parameters(made, head)
        for one in head["inputs"]:
            tensor = made.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
            tensor.contents.fp32_contents.extend(one["data"])
            _parameters(tensor, one)
        for one in head.get("outputs", []):
            _parameters(made.outputs.add(name=one["name"]), one)
        try:
            answer, back = await self.call(f"{SERVICE}/ModelInfer", made, **more)
        except grpc.aio.AioRpcError as error:
            return Reply(str(error.details()), None, dict(error.trailing_metadata()), {})
        parameters = {name: one.int64_param or one.string_param for name, one in answer.parameters.items()}
        return Reply("", list(memoryview(answer.raw_output_contents[0]).cast("f")), back, parameters)


def _parameters(message: Any, holder: dict[str, Any]) -> None:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in holder.get("parameters", {}).items():
        setattr(message.parameters[name], fields[type(value)], value)


@asynccontextmanager
async def both(executor: CpuExecutor, **settings: Any) -> AsyncIterator[Both]:
    """Both clients of a server with these settings."""
    async with serving_plane(executor, **settings) as plane:
        listeners = [await start_http(plane), await start_grpc(plane)]
        async with (
            http_client.aiohttp.ClientSession() as session,
            grpc.aio.insecure_channel(f"127.0.0.1:{listeners[1].port}") as channel,
        ):
            yield Both(plane, http_client.Client(plane, listeners[0].port, session), channel)
        for listener in listeners:
            await listener.close()
