"""Replicas on devices of this process, and a door to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
from api_server import BLOCKS, FakeRepository, X, call_of, serving_plane, until

from agents.routing.registry import router
from serving.api.dataplane import DataPlane
from serving.api.model_view import ModelView
from serving.api.plane import Listener
from serving.cluster.greeting import Greeting
from serving.cluster.link import LinkConfig
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.executors.cpu import CpuExecutor
from serving.models.tensors import TensorSpec

LINK = LinkConfig(None, None, 5.0)


class Cluster:
    """Two replicas on one device, and a door to them."""

    def __init__(
        self, planes: list[DataPlane], replicas: list[Replica], listeners: list[Listener], door: RemotePlane
    ) -> None:
        self.planes, self.replicas, self.listeners, self.door = planes, replicas, listeners, door

    async def double(self, deadline_ms: float = 5000.0, priority: int = 0) -> np.ndarray:
        answer = await self.door.infer(self.door.model("double"), call_of(X), priority, deadline_ms)
        return answer.outputs[0]

    def slow(self, n: int) -> list[asyncio.Future]:
        """Calls that end once the gate is open."""
        view = self.door.model("slow")
        return [asyncio.ensure_future(self.door.infer(view, call_of(BLOCKS), 0, 20_000.0)) for _ in range(n)]

    async def lose(self, place: int) -> None:
        """End a replica's connections and listen no more, as if its process had died."""
        await self.listeners[place].close()
        for door in list(self.replicas[place].doors):
            door._transport.abort()


@asynccontextmanager
async def cluster(
    executors: list[CpuExecutor], name: str = "round_robin", link: LinkConfig = LINK, **settings: Any
) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        planes = [
            await stack.enter_async_context(serving_plane(executor, FakeRepository(), **settings))
            for executor in executors
        ]
        replicas = [Replica(plane) for plane in planes]
        listeners = [await listen_for_doors(replica, 0, None) for replica in replicas]
        for listener in listeners:
            stack.push_async_callback(listener.close)
        config = ServeConfig(port=0, grpc_port=0)
        peers = [("127.0.0.1", listener.port) for listener in listeners]
        door = RemotePlane(config, peers, router(name), link, 2)
        stack.push_async_callback(door.close)
        await until(lambda: all(one.accepting for one in door.links))
        yield Cluster(planes, replicas, listeners, door)


def greeting_of(*names: str) -> Greeting:
    tensor = TensorSpec("x", "FP32", (4,))
    views = {name: ModelView(name, name, "1", "pytorch", (tensor,), (tensor,), 5.0, 1) for name in names}
    rows = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in names]
    ones = {name: [1.0] for name in names}
    return Greeting(views, ones, ones, [1], 8, 1000, rows)
