"""A real server in the test's process, of the models of `tensor_models`, and tritonclient over HTTP and over gRPC, alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import tensor_models
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from api_server import until

from agents.policies.registry import make_policy
from agents.routing.registry import router
from envs.profiles.profile import synthetic_profile
from serving.api.dataplane import DataPlane
from serving.cluster.link import LinkConfig
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_buckets


def tensor_executor() -> CpuExecutor:
    """All models, loaded."""
    made = CpuExecutor(2)
    for spec in tensor_models.MODELS.values():
        for model in load_buckets(spec):
            made.load(model)
    return made


@asynccontextmanager
async def plane_of(executor: CpuExecutor) -> AsyncIterator[DataPlane]:
    names = tuple(executor.models)
    made = synthetic_profile(len(names))
    profile = replace(made, models=names, solo_ms=np.ones_like(made.solo_ms) * np.array(made.batch_sizes) ** 0.5)
    config = ServeConfig(port=0, grpc_port=0, deadline_floor_ms=5000.0)
    engine = Engine(executor, profile, make_policy("edf", max_batch=4), config)
    plane = DataPlane(engine, config)
    engine.observers += plane.observers
    await engine.start(warm_executor=False)
    try:
        yield plane
    finally:
        await engine.stop(5.0)
        plane.close()
        assert engine.offered.sum() == engine.ended.sum()


@asynccontextmanager
async def door_to(plane: DataPlane, replica: Replica | None = None) -> AsyncIterator[RemotePlane]:
    """A door; to a replica that others have doors to, or to one of its own."""
    listener = await listen_for_doors(replica or Replica(plane), 0, None)
    config, link = ServeConfig(port=0, grpc_port=0), LinkConfig(None, None, 5.0)
    door = RemotePlane(config, [("127.0.0.1", listener.port)], router("quote"), link, retries=1)
    try:
        await until(lambda: door.ready)
        yield door
    finally:
        await door.close()
        await listener.close()


class Client:
    """A client of one of the protocols; it lives on one thread."""

    def __init__(self, protocol: str, port: int) -> None:
        self.module: Any = triton_http if protocol == "http" else triton_grpc
        self.client = self.module.InferenceServerClient(f"127.0.0.1:{port}")
        self.protocol = protocol

    def tensor(self, name: str, values: np.ndarray, datatype: str) -> Any:
        made = self.module.InferInput(name, values.shape, datatype)
        made.set_data_from_numpy(values)
        return made

    def infer(self, model: str, outputs: list[str] | None = None, **values: tuple[np.ndarray, str]) -> Any:
        inputs = [self.tensor(name, array, datatype) for name, (array, datatype) in values.items()]
        wanted = None if outputs is None else [self.module.InferRequestedOutput(name) for name in outputs]
        return self.client.infer(model, inputs, outputs=wanted)
