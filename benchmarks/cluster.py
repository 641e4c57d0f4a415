"""Replicas behind a door, on this machine: ``python -m benchmarks.cluster``.

Replicas are processes with a simulated device (``sim:PROFILE``), which takes time and no CPU. The same requests are offered in
turns to one engine in this process, to two replicas by each router, and to two of which one is slower; this process routes
them as a door does; where ``ray[serve]`` is installed, also to two replicas of Ray Serve by its own handle. Figures of each:
violations by priority, CPU of all processes for each request. Further: what a door adds to the latency of a lone request,
beside an engine in the same process, and requests per second over HTTP through a door, beside those of a replica's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agents.evaluation.statistics import weighted_rate
from agents.evaluation.suites import workload_for
from agents.routing.registry import router, routers
from benchmarks.common.command import as_command
from benchmarks.common.open_loop import Offer
from benchmarks.common.ray_serve import RayServe, check_ray_serve, missing_packages, ray_serve
from benchmarks.common.server import (
    Connection,
    closed_loops,
    free_port,
    http_message,
    running,
    serve_command,
    wait_until_ready,
)
from envs.profiles.profile import Profile
from envs.simulation.capacity import measure_capacity
from serving.api.infer_call import whole_call
from serving.api.plane import Plane
from serving.api.refusal import Refusal
from serving.cluster.remote_plane import RemotePlane
from serving.config import ServeConfig
from serving.door import open_plane
from serving.library import HIGH, LibraryEngine, open_engine
from serving.loop import run_on_loop
from traces.settings import check_settings
from traces.workload import Workload, WorkloadConfig

START_S = 180.0
PATIENCE_MS = 2000.0  # deadline of the lone requests, which are all met
WARM_S = 3.0
FAST = 0.01  # slowness of a device that is never what requests wait for


@dataclass
class ClusterBenchmark:
    """What to measure.

    Attributes:
        routers: names of routers.
        profile: of the simulated devices.
        scale: factor on its times, so that two cores can keep up.
        load: offered, as a share of the capacity of two equal replicas.
        slow_load: the same for two of which one is slower.
        slowness: how many times as long the slower one takes.
        measured: whether it has measured itself, or became slow later and has yet to learn it.
        workload: kind of arrivals, see agents.evaluate.
        seconds: of each turn.
        rounds: turns of each.
        lone: lone requests.
        clients: HTTP connections side by side.
        ray_serve: measure replicas of Ray Serve, too; by default where it is installed.
    """

    routers: list[str] = field(default_factory=lambda: [*routers()])
    profile: str = "gpu-v100"
    scale: float = 6.0
    load: float = 0.8
    slow_load: float = 0.65
    slowness: float = 2.5
    measured: bool = True
    workload: str = "poisson"
    seconds: float = 10.0
    rounds: int = 2
    lone: int = 200
    clients: int = 16
    ray_serve: bool | None = None

    def __post_init__(self) -> None:
        if self.ray_serve is None:
            self.ray_serve = not missing_packages()
        above = {"scale": 0, "load": 0, "slow_load": 0, "slowness": 0, "seconds": 0}
        check_settings(self, "--", {"rounds": 1, "lone": 1, "clients": 1}, above, not_empty=["routers"])
        for name in self.routers:
            router(name)


@contextlib.asynccontextmanager
async def replicas(
    profile: Path, slowness: Sequence[float], folder: Path, measured: bool = False
) -> AsyncIterator[tuple[list[Any], list[int], list[int]]]:
    """Replicas on simulated devices: their processes, and their ports for doors and for HTTP.

    A machine that has ``measured`` itself has a profile of its own times; another takes the profile's for its own.
    """
    async with contextlib.AsyncExitStack() as stack:
        processes, peers, http = [], [free_port() for _ in slowness], [free_port() for _ in slowness]
        for factor, peer, port in zip(slowness, peers, http):
            own = profile
            if measured:
                own = folder / f"profile-{factor:g}.json"
                scaled(Profile.load(profile), factor).save(own)
            device = ["--device", f"sim:{profile}:{factor:g}", "--profile", str(own)]
            ports = ["--port", str(port), "--peer_port", str(peer)]
            processes.append(stack.enter_context(running(serve_command(*device, *ports), folder)))
        for process, port in zip(processes, http):
            await wait_until_ready(process, port, "a replica", START_S)
        yield processes, peers, http


@contextlib.asynccontextmanager
async def door(peers: Sequence[int], name: str = "quote") -> AsyncIterator[RemotePlane]:
    """The plane of a door in this process, once all its replicas are there."""
    config = ServeConfig(router=name, max_per_client=100_000)
    plane = open_plane(config, [("127.0.0.1", port) for port in peers], None)
    try:
        while not all(link.accepting for link in plane.links):
            await asyncio.sleep(0.02)
        yield plane
    finally:
        await plane.close()


def by_plane(plane: Plane) -> Offer:
    """Offers a request to a plane."""

    async def offer(model: str, priority: int, deadline_ms: float) -> bool:
        view = plane.model(model)
        zeros = np.zeros((1, *view.inputs[0].shape), view.inputs[0].dtype)
        try:
            answer = await plane.infer(view, whole_call(view, zeros), priority, deadline_ms)
        except Refusal:
            return False
        return answer.parameters["outcome"] == "met"

    return offer


def by_engine(engine: LibraryEngine) -> Offer:
    """Offers a request to an engine of this process."""

    async def offer(model: str, priority: int, deadline_ms: float) -> bool:
        values = np.zeros(engine.inputs(model)[0].shape, np.float32)
        return (await engine.infer(model, values, priority, deadline_ms)).outcome == "met"

    return offer


async def play(workload: Workload, offer: Offer) -> np.ndarray:
    """Offer the requests at their times: violations and all, (2, 2) by priority."""
    begin, tasks = time.perf_counter(), []
    for at, model, priority, deadline in zip(
        workload.arrival_ms.tolist(), workload.model.tolist(), workload.priority.tolist(), workload.deadline_ms.tolist()
    ):
        if (wait := begin + at / 1e3 - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(offer(workload.models[model], priority, deadline)))
    met = np.array(await asyncio.gather(*tasks))
    return np.array([[np.sum(~met & (workload.priority == p)), np.sum(workload.priority == p)] for p in range(2)])


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU that processes have used, seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class Turns:
    """Turns of variants, and their figures."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._counts: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))
        self._cpu_s: defaultdict[str, float] = defaultdict(float)

    async def take(self, name: str, workload: Workload, offer: Offer, others: Sequence[psutil.Process] = ()) -> None:
        """Offer a workload to a variant, which runs in these processes, too."""
        processes = [*self._processes, *others]
        before = cpu_s(processes)
        self._counts[name] += await play(workload, offer)
        self._cpu_s[name] += cpu_s(processes) - before

    def figures(self) -> dict[str, dict[str, float]]:
        """Rates in percent, and CPU in ms for each request, by variant."""
        found = {}
        for name, count in self._counts.items():
            violated, total = count[:, 0], count[:, 1]
            found[name] = {
                "high_percent": 100 * violated[0] / max(total[0], 1),
                "low_percent": 100 * violated[1] / max(total[1], 1),
                "weighted_percent": 100 * float(weighted_rate(violated, total)),
                "cpu_ms": 1e3 * self._cpu_s[name] / max(total.sum(), 1),
                "requests": int(total.sum()),
            }
        return found


async def lone_ms(offer: Offer, model: str, n: int) -> np.ndarray:
    """Latencies of requests one at a time."""
    took = []
    for _ in range(n):
        begin = time.perf_counter()
        await offer(model, HIGH, PATIENCE_MS)
        took.append(1e3 * (time.perf_counter() - begin))
    return np.array(took)


def added_ms(there: Sequence[np.ndarray], here: Sequence[np.ndarray]) -> dict[str, float]:
    """What one way adds to the latencies of another."""
    levels = {"added_p50_ms": 0.5, "added_p99_ms": 0.99}
    return {
        name: float(np.quantile(np.concatenate(there), q) - np.quantile(np.concatenate(here), q))
        for name, q in levels.items()
    }


async def measure_routers(config: ClusterBenchmark, folder: Path) -> dict[str, Any]:
    """Violations by variant, and what a door adds to the latency of a lone request."""
    profile = scaled(Profile.load(config.profile), config.scale)
    path = folder / "profile.json"
    profile.save(path)
    async with contextlib.AsyncExitStack() as stack:
        # First, since its start holds this process's loop up.
        foreign = await stack.enter_async_context(ray_serve(path, 2)) if config.ray_serve else None
        three = replicas(path, [1.0, 1.0, config.slowness], folder, config.measured)
        processes, peers, _ = await stack.enter_async_context(three)
        engine = await stack.enter_async_context(open_engine(device=f"sim:{path}", profile=str(path)))
        turns = Turns([psutil.Process(), *(psutil.Process(process.pid) for process in processes)])
        await take_turns(config, profile, turns, engine, peers, foreign)
        return {"violations": turns.figures()} | await measure_lone(config, profile.models[0], engine, peers, foreign)


async def take_turns(
    config: ClusterBenchmark,
    profile: Profile,
    turns: Turns,
    engine: LibraryEngine,
    peers: Sequence[int],
    foreign: RayServe | None,
) -> None:
    """Offer the same requests to all variants in turns.

    Args:
        config: settings.
        profile: of the simulated devices.
        turns: takes them down.
        engine: of this process.
        peers: ports of two equal replicas, and of a slower one.
        foreign: Ray Serve's replicas; None: not measured.
    """
    capacity = measure_capacity(profile)
    rates = {"equal": 2 * config.load * capacity, "unequal": config.slow_load * (1 + 1 / config.slowness) * capacity}
    offers = {"one engine": ("equal", by_engine(engine))}
    async with contextlib.AsyncExitStack() as stack:
        for kind, ports in (("equal", peers[:2]), ("unequal", peers[1:])):
            for name in config.routers:
                plane = await stack.enter_async_context(door(ports, name))
                offers[f"{kind}, {name}"] = (kind, by_plane(plane))
        others: dict[str, Sequence[psutil.Process]] = {}
        if foreign is not None:
            offers["equal, ray serve"] = ("equal", foreign.offer)
            others["equal, ray serve"] = foreign.processes
        for seed in range(config.rounds + 1):
            # Before the first round all have a short one that does not count: a door learns for some seconds.
            ms = 1e3 * (config.seconds if seed else WARM_S)
            load = {
                kind: workload_for(config.workload, rate, ms, profile, WorkloadConfig(), seed)
                for kind, rate in rates.items()
            }
            for name, (kind, offer) in offers.items():
                if seed:
                    await turns.take(name, load[kind], offer, others.get(name, ()))
                else:
                    await play(load[kind], offer)


async def measure_lone(
    config: ClusterBenchmark, model: str, engine: LibraryEngine, peers: Sequence[int], foreign: RayServe | None
) -> dict[str, Any]:
    """What a door, which is the only one then, adds to the latency of a lone request; arguments as above."""
    async with door(peers[:2]) as plane:
        offers = {"engine": by_engine(engine), "lone_request": by_plane(plane)}
        if foreign is not None:
            offers["lone_request_ray_serve"] = foreign.offer
        took = defaultdict[str, list[np.ndarray]](list)
        for _ in range(5):  # in turns, so that what disturbs one disturbs all
            for name, offer in offers.items():
                took[name].append(await lone_ms(offer, model, max(config.lone // 5, 1)))
    here = took.pop("engine")
    return {name: added_ms(there, here) for name, there in took.items()}


async def measure_http(config: ClusterBenchmark, folder: Path) -> dict[str, float]:
    """Requests per second over HTTP: of one server, and through a door to two of them."""
    path = folder / "profile.json"
    model = Profile.load(path).models[0]
    values = {"name": "input", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
    body = json.dumps({"inputs": [values], "parameters": {"timeout": int(1e3 * PATIENCE_MS)}}).encode()
    message = http_message(f"/v2/models/{model}/infer", body, ["Content-Type: application/json"])
    rates: defaultdict[str, list[float]] = defaultdict(list)
    async with replicas(path, [FAST, FAST], folder) as (_, peers, http):
        port = free_port()
        names = ",".join(f"127.0.0.1:{peer}" for peer in peers)
        with running(serve_command("--peers", names, "--port", str(port)), folder) as process:
            await wait_until_ready(process, port, "the door", START_S)
            for _ in range(4):
                for name, at in (("one server", http[0]), ("door", port)):
                    open_ = [await Connection.open(at) for _ in range(config.clients)]
                    calls = [lambda one=one: one.ask(message) for one in open_]
                    latencies, seconds = await closed_loops(calls, 1.0)
                    rates[name].append(len(latencies) / seconds)
                    for one in open_:
                        one.close()
    server, through = (float(np.median(rates[name])) for name in ("one server", "door"))
    return {"one_server_rps": server, "door_rps": through, "share": through / server}


def scaled(profile: Profile, factor: float) -> Profile:
    """A profile whose models take ``factor`` times as long."""
    return replace(
        profile, solo_ms=profile.solo_ms * factor, h2d_ms=profile.h2d_ms * factor, d2h_ms=profile.d2h_ms * factor
    )


def measure(config: ClusterBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned. Raises InputError: what is asked for is not installed."""
    if config.ray_serve:
        check_ray_serve()

    async def all_of_it() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            result = await measure_routers(config, Path(folder))
            result["http"] = await measure_http(config, Path(folder))
            return result

    return run_on_loop(all_of_it())


main = as_command(measure, ClusterBenchmark, "cluster", __doc__)

if __name__ == "__main__":
    sys.exit(main())
