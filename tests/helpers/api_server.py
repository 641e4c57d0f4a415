"""A real server in the test's process: toy models, an engine and a data plane, to be listened for on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from toy_models import HELD

from agents.policies.registry import make_policy
from agents.routing.registry import router
from envs.profiles.profile import Profile, synthetic_profile
from serving.api.dataplane import DataPlane
from serving.api.infer_call import InferCall, Wanted
from serving.api.model_view import ModelView
from serving.api.plane import Listener
from serving.cluster.greeting import Greeting
from serving.cluster.link import LinkConfig
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec
from serving.models.tensors import TensorSpec
from traces.errors import InputError

NAMES = ("double", "slow", "faulty")
X = np.arange(8, dtype=np.float32).reshape(2, 4)
BLOCKS = np.full((1, 4), HELD, np.float32)  # "slow" executes it until the gate is open


def make_executor() -> CpuExecutor:
    executor = CpuExecutor(2)
    for name in NAMES:
        executor.load(load_model(ModelSpec(name, f"toy_models:{name}", (4,), "float32", compiled=False)))
    return executor


def toy_profile() -> Profile:
    """Latencies of about 1 ms for the scheduler: the models are faster, so that requests with a normal deadline are met."""
    made = synthetic_profile(len(NAMES))
    return replace(made, models=NAMES, solo_ms=np.ones_like(made.solo_ms) * np.array(made.batch_sizes) ** 0.5)


def call_of(values: np.ndarray) -> InferCall:
    """A call of a model with one input and one output."""
    return InferCall(None, (values,), None, {}, (Wanted(0, binary=True),))


class FakeRepository:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.evicted: dict[str, Any] = {}

    def defaults(self, name: str) -> tuple[int | None, float | None]:
        return None, None

    def index(self) -> list[dict[str, str]]:
        return [
            {"name": "double", "version": "1", "state": "READY", "reason": ""},
            {"name": "other", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        ]

    async def bring_back(self, name: str) -> None:
        raise AssertionError("nothing is out of memory")

    async def load(self, name: str, version: str = "") -> None:
        self._note("load", name)

    async def unload(self, name: str, version: str = "") -> None:
        self._note("unload", name)

    def _note(self, verb: str, name: str) -> None:
        if name == "nowhere":
            raise KeyError(name)
        if name == "broken":
            raise InputError("model 'broken': its file is damaged")
        if name == "bug":
            raise RuntimeError("a bug\nin two lines")
        self.calls.append((verb, name))


@asynccontextmanager
async def serving_plane(
    executor: CpuExecutor,
    repository: FakeRepository | None = None,
    metrics: Callable[[], tuple[bytes, str]] | None = None,
    **settings: Any,
) -> AsyncIterator[DataPlane]:
    config = ServeConfig(**{"port": 0, "grpc_port": 0, "deadline_floor_ms": 5000.0} | settings)
    engine = Engine(executor, toy_profile(), make_policy("edf", max_batch=4), config)
    plane = DataPlane(engine, config, repository, metrics)
    engine.observers += plane.observers
    await engine.start()
    try:
        yield plane
    finally:
        await engine.stop(5.0)
        plane.close()
        assert engine.offered.sum() == engine.ended.sum()
        assert not plane._clients, "no request is still counted"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that takes a moment."""
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.005)


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


def says(door: RemotePlane, place: int, *names: str) -> tuple[str, ...]:
    """What the door serves once a replica serves these; none: the replica is gone."""
    link = door.links[place]
    link.address, link.greeting, link.accepting = ("host", place), greeting_of(*names) if names else None, bool(names)
    door._on_change(link)
    return tuple(door.views)
