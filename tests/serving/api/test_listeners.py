"""What HTTP and gRPC have in common: they require the token, and a port that is taken is a plain error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import grpc
import pytest
from api_server import serving_plane
from http_client import body

from serving.api.dataplane import DataPlane
from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.api.protocol import inference_pb2 as pb
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError

Ask = Callable[[str | None], Awaitable[bool]]  # with an Authorization header; returns whether the token was refused
Operations = Callable[[DataPlane], AbstractAsyncContextManager[dict[str, Ask]]]
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}


@asynccontextmanager
async def over_http(plane: DataPlane) -> AsyncIterator[dict[str, Ask]]:
    listener = await start_http(plane)
    async with aiohttp.ClientSession() as session:

        def operation(method: str, path: str) -> Ask:
            async def ask(header: str | None) -> bool:
                headers = {} if header is None else {"Authorization": header}
                sent = {"json": body()} if method == "POST" else {}
                url = f"http://127.0.0.1:{listener.port}{path}"
                async with session.request(method, url, headers=headers, **sent) as response:
                    if response.status == 401:
                        assert response.headers["WWW-Authenticate"] == "Bearer"
                        assert "s3cret" not in await response.text()
                    return response.status == 401

            return ask

        yield {
            "probe": operation("GET", "/v2/health/ready"),
            "metadata": operation("GET", "/v2"),
            "metrics": operation("GET", "/metrics"),
            "unknown path": operation("GET", "/nowhere"),
            "inference": operation("POST", "/v2/models/double/infer"),
        }
    await listener.close()


@asynccontextmanager
async def over_grpc(plane: DataPlane) -> AsyncIterator[dict[str, Ask]]:
    listener = await start_grpc(plane)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        infer = pb.ModelInferRequest(model_name="double", inputs=[TENSOR]).SerializeToString()

        def operation(method: str, message: bytes = b"", stream: bool = False) -> Ask:
            call = (channel.stream_stream if stream else channel.unary_unary)(
                f"/inference.GRPCInferenceService/{method}"
            )

            async def ask(header: str | None) -> bool:
                metadata = () if header is None else (("authorization", header),)
                try:
                    if stream:
                        assert [answer async for answer in call(iter([message]), metadata=metadata)]
                    else:
                        await call(message, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.INTERNAL and "Internal error from Core" in str(error.details()):
                        return await ask(
                            header
                        )  # grpcio's client lost the status: it wrote when the call had just ended
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED and "bearer token" in (error.details() or "")
                    return True
                return False

            return ask

        yield {
            "probe": operation("ServerReady"),
            "metadata": operation("ServerMetadata"),
            "inference": operation("ModelInfer", infer),
            "stream": operation("ModelStreamInfer", infer, stream=True),
        }
    await listener.close()


@pytest.mark.parametrize("operations_over", [over_http, over_grpc])
async def test_everything_but_the_probes_requires_the_token(executor: CpuExecutor, operations_over: Operations) -> None:
    async with serving_plane(executor, token="s3cret") as plane, operations_over(plane) as operations:
        for name, ask in operations.items():
            for header in (None, "Bearer wrong", "Basic s3cret"):
                assert await ask(header) == (name != "probe"), (name, header)
            assert not await ask("Bearer s3cret"), name


@pytest.mark.parametrize(("start", "setting"), [(start_http, "port"), (start_grpc, "grpc_port")])
async def test_a_port_that_is_taken_is_a_plain_error(executor: CpuExecutor, start: Callable, setting: str) -> None:
    async with serving_plane(executor) as plane:
        listener = await start(plane)
        setattr(plane.config, setting, listener.port)
        with pytest.raises(InputError, match="cannot listen on"):
            await start(plane)
        await listener.close()
