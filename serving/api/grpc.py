"""gRPC: `inference.GRPCInferenceService` of the Open Inference Protocol v2, and our own `strait.StraitService`.

Needs the extra `grpc`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from serving.api.answer import Answer, Caller
from serving.api.config import allowed
from serving.api.grpc_standard import OWN_SERVICE, SERVICE, standard_services
from serving.api.infer_call import InferCall, read_call, read_id
from serving.api.model_view import ModelView
from serving.api.plane import NO_TOKEN, Listener, Plane
from serving.api.protocol import inference_pb2 as pb
from serving.api.refusal import Kind, Refusal, too_large
from serving.engine.request import UNNAMED
from serving.models.tensors import to_bytes
from traces.errors import InputError

log = logging.getLogger(__name__)

OPEN_METHODS = ("ServerLive", "ServerReady")  # probes carry no token
COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}
STREAM_WINDOW = 256  # requests of one stream that are worked on at a time

# Which field carries a tensor that is not raw; FP16 and BF16 have none.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip

Method = Callable[[Any, Caller], Any]


async def start_grpc(plane: Plane) -> Listener:
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
            ("grpc.max_receive_message_length", config.max_grpc_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", int(config.keepalive_s * 1e3)),
        ],
        compression=COMPRESSIONS[config.grpc_compression],
    )
    server.add_generic_rpc_handlers((*_Service(plane).handlers(), *standard_services(plane)))
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
    """One method per call; each takes the request and its caller."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """All methods of both services, as gRPC takes them."""
        plane = self.plane
        unary: dict[str, Method] = {
            "ServerLive": lambda request, caller: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda request, caller: pb.ServerReadyResponse(ready=plane.ready),
            "ServerMetadata": lambda request, caller: pb.ServerMetadataResponse(**plane.server_metadata()),
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelInfer": self.model_infer,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_load,
            "RepositoryModelUnload": self.repository_unload,
        }
        methods = {name: self._unary(name, method) for name, method in unary.items()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer, response_serializer=pb.ModelStreamInferResponse.SerializeToString
        )
        own = {"Quote": self._unary("Quote", self.quote)}
        make = grpc.method_handlers_generic_handler
        return make(SERVICE, methods), make(OWN_SERVICE, own)

    def _unary(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        write = getattr(pb, f"{name}Response").SerializeToString
        return grpc.unary_unary_rpc_method_handler(self._guarded(name, method), response_serializer=write)

    def _guarded(self, name: str, method: Method) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[Any]]:
        # Parsed here and not by gRPC, which would log every message that is none with a traceback.
        read, is_open = getattr(pb, f"{name}Request").FromString, name in OPEN_METHODS

        async def call(message: bytes, context: grpc.aio.ServicerContext) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            caller, left_s = self._caller(context, metadata), context.time_remaining()
            if left_s is not None:
                caller.left_ms = left_s * 1e3
            try:
                if not is_open:
                    self._admit(metadata)
                answer = method(self._read(read, message), caller)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if caller.origin is not UNNAMED:
                    context.set_trailing_metadata(tuple(caller.headers().items()))
                return answer
            except Exception as error:
                refusal = self._refused(error, caller)
            retry = {"retry-after": "1"} if refusal.kind.retry else {}
            await context.abort(
                grpc.StatusCode[refusal.kind.code], str(refusal), tuple((retry | caller.headers()).items())
            )

        return call

    def _caller(self, context: grpc.aio.ServicerContext, metadata: dict[str, str]) -> Caller:
        return Caller.of("grpc", _address(context.peer()), metadata.get)

    def _admit(self, metadata: dict[str, str]) -> None:
        token = self.plane.config.token
        if token is not None and not allowed(token, metadata.get("authorization")):
            raise Refusal(Kind.UNAUTHENTICATED, NO_TOKEN)

    def _read(self, read: Callable[[bytes], Any], message: bytes) -> Any:
        most = self.plane.config.max_grpc_bytes
        if len(message) > most:  # it came compressed; gRPC itself refuses others
            raise too_large(most, "max_grpc_bytes")
        request = read(message)
        _check_known(request)
        if getattr(request, "repository_name", ""):
            raise InputError("repository_name is not supported: there is one repository")
        return request

    def _refused(self, error: Exception, caller: Caller) -> Refusal:
        refusal = _as_refusal(error)
        self.plane.refused(refusal, caller)
        return refusal

    # Metadata, statistics, and the repository.

    def model_ready(self, request: Any, caller: Caller) -> Any:
        ready = self.plane.ready
        try:
            self.plane.model(request.name, request.version)
        except Refusal:  # as Triton has it: what is not there is not ready
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    def model_metadata(self, request: Any, caller: Caller) -> Any:
        return pb.ModelMetadataResponse(**self.plane.model(request.name, request.version).metadata())

    def model_config(self, request: Any, caller: Caller) -> Any:
        most = self.plane.config.max_grpc_bytes
        return pb.ModelConfigResponse(config=self.plane.model_config(request.name, request.version, most))

    def model_statistics(self, request: Any, caller: Caller) -> Any:
        return pb.ModelStatisticsResponse(model_stats=self.plane.model_statistics(request.name, request.version))

    def repository_index(self, request: Any, caller: Caller) -> Any:
        return pb.RepositoryIndexResponse(models=self.plane.repository_index(request.ready))

    def quote(self, request: Any, caller: Caller) -> Any:
        parameters = {"priority": request.priority, "timeout": request.timeout}
        if request.HasField("size"):
            parameters["size"] = request.size
        quotation = self.plane.quotation(request.model_name, request.model_version, parameters)
        return pb.QuoteResponse(**quotation._asdict())

    async def repository_load(self, request: Any, caller: Caller) -> Any:
        await self.plane.load(request.model_name, _plain(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def repository_unload(self, request: Any, caller: Caller) -> Any:
        await self.plane.unload(request.model_name, _plain(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    # Inference.

    async def model_infer(self, request: Any, caller: Caller) -> Any:
        plane = self.plane
        caller.named(read_id({"id": request.id}))
        view = plane.model(request.model_name, request.model_version)
        head, raw = _head(request, {spec.name: spec.datatype for spec in view.inputs})
        call = read_call(head, raw, view, plane.most_items(view, plane.config.max_grpc_bytes))
        view = view.bucket(call.size)
        priority, deadline_ms = plane.schedule(view, call.parameters, call.n_items, caller.left_ms)
        answer = await plane.infer(view, call, priority, deadline_ms, caller)
        return _write_answer(request.id, view, call, answer)

    async def model_stream_infer(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
        """Answers in the order of the requests, which are worked on side by side."""
        metadata = dict(context.invocation_metadata() or ())
        try:
            self._admit(metadata)
        except Refusal as error:
            refusal = self._refused(error, self._caller(context, metadata))
            await context.abort(grpc.StatusCode[refusal.kind.code], str(refusal))
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(STREAM_WINDOW)
        tasks: set[asyncio.Task[Any]] = set()

        async def feed() -> None:
            async for message in messages:
                task = asyncio.ensure_future(self._stream_answer(message, self._caller(context, metadata)))
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

    async def _stream_answer(self, message: bytes, caller: Caller) -> Any:
        request = pb.ModelInferRequest()
        try:
            request = self._read(pb.ModelInferRequest.FromString, message)
            return pb.ModelStreamInferResponse(infer_response=await self.model_infer(request, caller))
        except Exception as error:
            named = pb.ModelInferResponse(id=request.id)  # so that the client knows which one failed
            return pb.ModelStreamInferResponse(error_message=str(self._refused(error, caller)), infer_response=named)


def _head(request: Any, datatypes: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    """A message as `read_call` takes it: its fields as JSON has them, and the bytes of its tensors, by the model's types."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(f"raw_input_contents holds {len(raw)} tensors; expected {len(request.inputs)}, one per input")
    for part in (*request.inputs, *request.outputs):
        _check_known(part)
    head = {
        "id": request.id,
        "parameters": _plain(request.parameters),
        "inputs": [
            _tensor(tensor, raw[place] if raw else None, datatypes.get(tensor.name, ""))
            for place, tensor in enumerate(request.inputs)
        ],
        "outputs": [{"name": one.name, "parameters": _plain(one.parameters)} for one in request.outputs],
    }
    return head, raw[0] if len(raw) == 1 else b"".join(raw)


def _tensor(tensor: Any, raw: bytes | None, datatype: str) -> dict[str, Any]:
    parameters = _plain(tensor.parameters)
    made = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
    given = [(field.name, values) for field, values in tensor.contents.ListFields()]
    if raw is not None:
        if parameters.setdefault("binary_data_size", len(raw)) != len(raw):
            size = str(parameters["binary_data_size"])[:80]
            raise InputError(f"{tensor.name[:80]}: binary_data_size is {size}; it has {len(raw)} bytes")
        return made | ({"data": []} if given else {})
    expected = _CONTENTS.get(datatype)
    if given and datatype and tensor.datatype == datatype and [name for name, _ in given] != [expected]:
        where = expected or "raw_input_contents"
        raise InputError(f"{tensor.name}: {datatype} is taken in {where}, not in {given[0][0]}")
    return made | ({"data": list(given[0][1])} if given else {})


def _plain(parameters: Any) -> dict[str, Any]:
    if not parameters:
        return {}
    return {name: getattr(one, one.WhichOneof("parameter_choice") or "", None) for name, one in parameters.items()}


def _check_known(message: Any) -> None:
    for field in UnknownFieldSet(message):
        raise InputError(f"the request: field number {field.field_number} is not supported")


def _write_answer(id_: str, view: ModelView, call: InferCall, answer: Answer) -> Any:
    response = pb.ModelInferResponse(model_name=view.name, model_version=view.version, id=id_)
    for wanted, output in zip(call.outputs, answer.outputs):
        spec = view.outputs[wanted.place]
        tensor = response.outputs.add()
        tensor.name, tensor.datatype = spec.name, spec.datatype
        tensor.shape.extend(output.shape)
        response.raw_output_contents.append(bytes(to_bytes(output)))
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
