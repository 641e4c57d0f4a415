"""gRPC's own services: health, which load balancers and Kubernetes probe, and reflection, which grpcurl asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from serving.api.plane import Plane
from serving.api.protocol import inference_pb2 as pb

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")  # equal on the wire
SERVICE, OWN_SERVICE = "inference.GRPCInferenceService", "strait.StraitService"
SERVICES = (SERVICE, OWN_SERVICE, HEALTH, REFLECTION[0])
WATCH_S = 0.5  # between two looks for a client that watches
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)


def standard_services(plane: Plane) -> tuple[grpc.GenericRpcHandler, ...]:
    """Handlers of health and reflection. A service is healthy while requests are taken; so is each served model by its name."""

    def status(request: Any) -> int:
        if request.service not in ("", *SERVICES) and not plane.serves(request.service):
            return SERVICE_UNKNOWN
        return SERVING if plane.ready else NOT_SERVING

    async def check(request: Any, context: grpc.aio.ServicerContext) -> Any:
        found = status(request)
        if found == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r}")
        return pb.HealthCheckResponse(status=found)

    async def watch(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        said = None
        while True:
            if (found := status(request)) != said:
                said = found
                yield pb.HealthCheckResponse(status=found)
            await asyncio.sleep(WATCH_S)

    async def reflect(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        async for request in requests:
            yield pb.ServerReflectionResponse(valid_host=request.host, original_request=request, **_reflected(request))

    read, write = pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(check, read, write),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, read, write),
    }
    reflection = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            reflect, pb.ServerReflectionRequest.FromString, pb.ServerReflectionResponse.SerializeToString
        )
    }
    make = grpc.method_handlers_generic_handler
    return make(HEALTH, health), *(make(name, reflection) for name in REFLECTION)


def _reflected(request: Any) -> dict[str, Any]:
    """The field of a ServerReflectionResponse that answers a request."""
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        return {"list_services_response": {"service": [{"name": name} for name in SERVICES]}}
    find = {"file_by_filename": pb.POOL.FindFileByName, "file_containing_symbol": pb.POOL.FindFileContainingSymbol}
    try:
        found = find[asked](getattr(request, asked))
    except KeyError:
        status = grpc.StatusCode.NOT_FOUND if asked in find else grpc.StatusCode.UNIMPLEMENTED
        return {"error_response": {"error_code": status.value[0], "error_message": f"{asked}: not found here"}}
    described = FileDescriptorProto()
    found.CopyToProto(described)
    return {"file_descriptor_response": {"file_descriptor_proto": [described.SerializeToString()]}}
