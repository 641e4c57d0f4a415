"""The same engines as replicas of Ray Serve, called by its own handle; what `benchmarks.cluster` compares ours with."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.common.open_loop import Offer
from serving.library import open_engine
from traces.errors import InputError
from traces.ray_session import ray_session

SETUP = 'pip install "ray[serve]==2.60.*"'
PACKAGES = ("ray", "starlette", "fastapi", "uvicorn", "grpc_reflection")


def missing_packages() -> list[str]:
    """What Ray Serve needs and is not installed."""
    return [package for package in PACKAGES if importlib.util.find_spec(package) is None]


def check_ray_serve() -> None:
    """Refuse to measure what is not installed.

    Raises:
        InputError: it is not.
    """
    if missing := missing_packages():
        raise InputError(f"--ray_serve: the package {missing[0]} is not here; {SETUP}")


class EngineReplica:
    """A replica: an engine on a simulated device.

    Args:
        profile: path of its profile.
    """

    def __init__(self, profile: str) -> None:
        self._settings = {"device": f"sim:{profile}", "profile": profile}
        self._stack = contextlib.AsyncExitStack()
        self._engine: Any = None

    async def start(self) -> int:
        """Start the engine, on the loop of the replica's calls. Returns the number of its process."""
        if self._engine is None:
            self._engine = await self._stack.enter_async_context(open_engine(**self._settings))
        return os.getpid()

    async def __call__(self, model: str, priority: int, deadline_ms: float) -> bool:
        """Serve a request of zeros; whether it was in time."""
        values = np.zeros(self._engine.inputs(model)[0].shape, np.float32)
        return bool((await self._engine.infer(model, values, priority, deadline_ms)).outcome == "met")


class RayServe(NamedTuple):
    """Replicas that run.

    Attributes:
        offer: offers a request to one of them, by Ray Serve's own choice.
        processes: all of theirs and of Ray's.
    """

    offer: Offer
    processes: list[psutil.Process]


@contextlib.asynccontextmanager
async def ray_serve(profile: Path, replicas: int) -> AsyncIterator[RayServe]:
    """Start replicas on a cluster of this machine.

    Args:
        profile: of the simulated devices.
        replicas: how many.
    """
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    # A processor for each and for what Ray Serve keeps itself; the devices are simulated and need none.
    with ray_session("local", cpus=replicas + 2, show_output=False):
        serve = importlib.import_module("ray.serve")
        kind = serve.deployment(num_replicas=replicas, max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 1})(
            EngineReplica
        )
        serve.start(proxy_location="Disabled")
        handle = serve.run(kind.bind(str(profile)), name="engines", route_prefix=None)

        async def offer(model: str, priority: int, deadline_ms: float) -> bool:
            begin = time.perf_counter()
            met = await handle.remote(model, priority, deadline_ms)
            return bool(met) and 1e3 * (time.perf_counter() - begin) <= deadline_ms  # the ways there and back count

        started: set[int] = set()
        while len(started) < replicas:  # the handle chooses which of them it is
            started.add(await handle.start.remote())
        children = psutil.Process().children(recursive=True)
        yield RayServe(offer, [process for process in children if process.pid not in before])
        serve.shutdown()
