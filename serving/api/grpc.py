"""gRPC: `inference.GRPCInferenceService` of the Open Inference Protocol v2. Needs the extra `grpc`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from serving.api.dataplane import NO_TOKEN, Answer, DataPlane, Listener, allowed
from serving.api.model_view import INPUT, OUTPUT, VERSION, ModelView, check_name
from serving.api.protocol import inference_pb2 as pb
from serving.api.refusal import Kind, Refusal
from serving.api.tensors import check_datatype, check_shape, from_bytes, from_values, to_bytes
from traces.errors import InputError

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
OPEN_METHODS = ("ServerLive", "ServerReady")  # probes carry no token
STREAM_WINDOW = 256  # requests of one stream that are worked on at a time

# Which field carries a tensor that is not raw; FP16 has none.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip

Method = Callable[[Any, str], Any]


async def start_grpc(plane: DataPlane) -> Listener:
    """Serve gRPC where the settings of the data plane say. Keep what is returned: without it, gRPC closes its server.

    Args:
        plane: answers.

    Raises:
        InputError: the address cannot be listened on.
    """
    config = plane.config
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", int(config.keepalive_s * 1e3)),
        ]
    )
    server.add_generic_rpc_handlers((_Service(plane).handler(),))
    host, port = config.host, config.grpc_port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if config.tls_cert is None or config.tls_key is None:
            bound = server.add_insecure_port(address)
        else:
            pair = Path(config.tls_key).read_bytes(), Path(config.tls_cert).read_bytes()
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise InputError(f"cannot listen on {address} for gRPC: is the port taken?")
    await server.start()
    return Listener(bound, partial(server.stop, config.close_timeout_s))


class _Service:
    """One method per call; each takes the request and the client's address."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods, as gRPC takes them."""
        plane = self.plane
        unary: dict[str, Method] = {
            "ServerLive": lambda request, client: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda request, client: pb.ServerReadyResponse(ready=plane.ready),
            "ServerMetadata": lambda request, client: pb.ServerMetadataResponse(**plane.server_metadata()),
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelInfer": self.model_infer,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_load,
            "RepositoryModelUnload": self.repository_unload,
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, method), response_serializer=getattr(pb, f"{name}Response").SerializeToString
            )
            for name, method in unary.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer, response_serializer=pb.ModelStreamInferResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _guarded(self, name: str, method: Method) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[Any]]:
        # Parsed here and not by gRPC, which would log every message that is none with a traceback.
        read, is_open = getattr(pb, f"{name}Request").FromString, name in OPEN_METHODS

        async def call(message: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                if not is_open:
                    self._admit(context)
                answer = method(read(message), _address(context.peer()))
                return await answer if asyncio.iscoroutine(answer) else answer
            except Exception as error:
                refusal = _as_refusal(error)
            retry = (("retry-after", "1"),) if refusal.kind.retry else ()
            await context.abort(grpc.StatusCode[refusal.kind.code], str(refusal), retry)

        return call

    def _admit(self, context: grpc.aio.ServicerContext) -> None:
        token = self.plane.config.token
        if token is not None and not allowed(token, dict(context.invocation_metadata() or ()).get("authorization")):
            raise Refusal(Kind.UNAUTHENTICATED, NO_TOKEN)

    # Metadata, statistics, and the repository.

    def model_ready(self, request: Any, client: str) -> Any:
        self.plane.model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self.plane.ready)

    def model_metadata(self, request: Any, client: str) -> Any:
        return pb.ModelMetadataResponse(**self.plane.model(request.name, request.version).metadata())

    def model_config(self, request: Any, client: str) -> Any:
        view = self.plane.model(request.name, request.version)
        return pb.ModelConfigResponse(config=view.config(self.plane.most_items))

    def model_statistics(self, request: Any, client: str) -> Any:
        return pb.ModelStatisticsResponse(model_stats=self.plane.model_statistics(request.name, request.version))

    def repository_index(self, request: Any, client: str) -> Any:
        return pb.RepositoryIndexResponse(models=self.plane.repository_index(request.ready))

    async def repository_load(self, request: Any, client: str) -> Any:
        await self.plane.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def repository_unload(self, request: Any, client: str) -> Any:
        await self.plane.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # Inference.

    async def model_infer(self, request: Any, client: str) -> Any:
        plane = self.plane
        view = plane.model(request.model_name, request.model_version)
        values = _read_input(request, view, plane.most_items)
        priority, deadline_ms = plane.schedule(view, _parameters(request.parameters), len(values))
        answer = await plane.infer(view, values, priority, deadline_ms, client)
        return _write_answer(request.id, view, answer)

    async def model_stream_infer(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
        """Answers in the order of the requests, which are worked on side by side."""
        client = _address(context.peer())
        try:
            self._admit(context)
        except Refusal as refusal:
            await context.abort(grpc.StatusCode[refusal.kind.code], str(refusal))
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(STREAM_WINDOW)
        tasks: set[asyncio.Task[Any]] = set()

        async def feed() -> None:
            async for message in messages:
                task = asyncio.ensure_future(self._stream_answer(message, client))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await answers.put(task)
            await answers.put(None)

        feeder = asyncio.ensure_future(feed())
        try:
            while (task := await answers.get()) is not None:
                yield await task
        finally:
            for one in (feeder, *tasks):
                one.cancel()

    async def _stream_answer(self, message: bytes, client: str) -> Any:
        request = pb.ModelInferRequest()
        try:
            request.ParseFromString(message)
            return pb.ModelStreamInferResponse(infer_response=await self.model_infer(request, client))
        except Exception as error:
            named = pb.ModelInferResponse(id=request.id)  # so that the client knows which one failed
            return pb.ModelStreamInferResponse(error_message=str(_as_refusal(error)), infer_response=named)


def _read_input(request: Any, view: ModelView, most: int) -> np.ndarray:
    if len(request.inputs) != 1:
        raise InputError(f"{len(request.inputs)} inputs; there must be exactly one, {INPUT!r}")
    for output in request.outputs:
        check_name(output.name, OUTPUT)
        if "classification" in output.parameters:
            raise InputError(f"{OUTPUT}: classification is not supported")
    tensor = request.inputs[0]
    check_name(tensor.name, INPUT)
    check_datatype(tensor.datatype, view.datatype, INPUT)
    shape = check_shape(list(tensor.shape), view.item, most, INPUT)
    if "shared_memory_region" in tensor.parameters:
        raise InputError(f"{INPUT}: shared memory is not supported")
    raw = request.raw_input_contents
    if raw:
        if len(raw) != 1 or tensor.HasField("contents"):
            raise InputError(f"{INPUT}: its data must be in one place, raw_input_contents or contents")
        values = from_bytes(raw[0], view.dtype, shape, INPUT)
    else:
        name = _CONTENTS.get(view.datatype)
        if name is None:
            raise InputError(f"{INPUT}: {view.datatype} is taken in raw_input_contents only")
        values = from_values(list(getattr(tensor.contents, name)), view.dtype, shape, INPUT)
    view.check_values(values)
    return values


def _parameters(sent: Any) -> dict[str, Any]:
    found = {}
    for name in ("priority", "timeout"):
        if name in sent:
            kind = sent[name].WhichOneof("parameter_choice")
            found[name] = getattr(sent[name], kind) if kind else 0
    if "sequence_id" in sent:
        raise InputError("sequence_id: stateful models are not supported")
    return found


def _write_answer(id_: str, view: ModelView, answer: Answer) -> Any:
    output = answer.output
    response = pb.ModelInferResponse(model_name=view.name, model_version=VERSION, id=id_)
    tensor = response.outputs.add()
    tensor.name, tensor.datatype = OUTPUT, view.output_datatype
    tensor.shape.extend(output.shape)
    response.raw_output_contents.append(to_bytes(output))
    parameters = response.parameters
    for name, value in answer.parameters.items():
        if isinstance(value, str):
            parameters[name].string_param = value
        else:
            parameters[name].int64_param = value
    return response


def _as_refusal(error: Exception) -> Refusal:
    """What the client gets for an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(Kind.BAD_INPUT, str(error))
    if isinstance(error, DecodeError):
        return Refusal(Kind.BAD_INPUT, "the message is not what this method takes")
    log.error("a call failed", exc_info=error)
    return Refusal(Kind.FAULT, "internal error; the server's log says more")


@lru_cache(1024)
def _address(peer: str) -> str:
    """A client's address without its port, as HTTP names it: "ipv4:127.0.0.1:4711" is 127.0.0.1."""
    _, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]")
