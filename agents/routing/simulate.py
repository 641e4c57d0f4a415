"""A simulated cluster from the first arrival to the last end, under a policy on each replica and a router before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from agents.evaluation.rollout import prepare
from agents.learned.names import resolve
from agents.policies import base as policies
from agents.policies.base import Policy
from agents.routing import base as routers
from agents.routing.base import RouterKind
from envs.cluster.cluster import (
    Cluster,
    begin_cluster,
    hear,
    make_cluster,
    note_ended,
    report,
    routed,
    send_to,
    with_speeds,
)
from envs.cluster.ledger import make_ledger
from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.jit import inlined, njit
from envs.simulation.events import act, collect, needs_decision, next_event, run_event
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.settings import check_settings
from traces.workload import Workload

ROOM = 3.0  # requests that a replica has room for, over its share; and so many beside
SPARE_ROOM = 1000


@inlined
def _run_until(choose, memory, params, sim, cluster, env, t):
    """Run a world up to time t: its events before that, and the decisions that they lead to."""
    state, tables, world = sim.state, sim.tables, sim.world
    episode = world.episode[env]
    own = state.scheduler[env]
    while episode.done == 0:
        ready = needs_decision(sim, env)
        if own.n_ended > 0:
            note_ended(sim, cluster, env)
            collect(sim, env)
        if ready:
            action, wake = choose(state, tables, memory, env, params)
            act(sim, env, action, wake)
            continue
        report(sim, cluster, env)
        at, _ = next_event(state, world, env)
        if at >= t and t < np.inf:
            cluster.replica[env].next = at
            return
        run_event(sim, env)
    if own.n_ended > 0:
        note_ended(sim, cluster, env)
        collect(sim, env)
    report(sim, cluster, env)


@njit
def run_to_arrival(choose, memory, params, sim, cluster, i):
    """Run all worlds up to arrival i, or to their end behind the last one, and note the answers that have come by then."""
    last = cluster.arrival.shape[0]
    t = cluster.arrival[i].time if i < last else np.inf
    for env in range(sim.world.episode.shape[0]):
        if cluster.replica[env].next < t or i == last:
            _run_until(choose, memory, params, sim, cluster, env, t)
        hear(cluster, env, t)


@njit
def _run_cluster(choose, route, memory, params, sim, cluster, seed):
    """Route all arrivals and run all worlds to their end. Returns the index of an arrival that found no room; -1: none."""
    for i in range(cluster.arrival.shape[0]):
        run_to_arrival(choose, memory, params, sim, cluster, i)
        arrival = cluster.arrival[i]
        env = route(cluster.ledger, cluster.profile, arrival.door, routed(arrival), rng.mix(seed, i))
        if not send_to(sim, cluster, i, env):
            return i
    run_to_arrival(choose, memory, params, sim, cluster, cluster.arrival.shape[0])
    return -1


@dataclass(frozen=True)
class ClusterConfig:
    """A cluster.

    Attributes:
        accelerators: number of replicas, each with one.
        streams: of each accelerator.
        doors: processes that route; each knows its own requests and what answers tell.
        request_delay_ms: how long a request is on its way to a replica.
        answer_delay_ms: how long an answer is, and so how old the router's knowledge is at least.
        slow_share: share of the accelerators that are slower.
        slow_factor: how many times as long they take.
        slow_measured: whether they measured that; else they became slow later, and learn it while they serve.
        queue_places: places of each queue.
        models_in_memory: models that the memory of each holds at once; 0: all. A request for another waits until it is loaded.
            Replicas begin with different ones.
        load_ms: how long it takes to load one.

    Raises:
        InputError: a setting is out of range.
    """

    accelerators: int = 64
    streams: int = 4
    doors: int = 1
    request_delay_ms: float = 0.0
    answer_delay_ms: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 2.0
    slow_measured: bool = True
    queue_places: int = 128
    models_in_memory: int = 0
    load_ms: float = 100.0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("accelerators", "streams", "doors", "queue_places"), 1)
        least |= dict.fromkeys(("request_delay_ms", "answer_delay_ms", "slow_share", "models_in_memory", "load_ms"), 0)
        check_settings(self, "--", least, {"slow_factor": 0}, {"slow_share": 1})

    def slowness(self) -> np.ndarray:
        """(N,) how many times as long each replica takes; the slow ones are spread evenly."""
        n = self.accelerators
        slow = np.floor(np.arange(1, n + 1) * self.slow_share) > np.floor(np.arange(n) * self.slow_share)
        return np.where(slow, self.slow_factor, 1.0)

    def capacity(self) -> float:
        """What the replicas can do together, over what one of the profile can."""
        return float((1.0 / self.slowness()).sum())


@dataclass(frozen=True)
class ClusterRun:
    """A cluster after a run.

    Attributes:
        sim: the worlds.
        cluster: arrivals with where each went, and the ledgers.
        count: (2, 6) requests by priority and outcome.
    """

    sim: Simulator
    cluster: Cluster
    count: np.ndarray


def cluster_policy(name: str, profile_name: str, profile: Profile) -> Policy:
    """A policy for the replicas, with the parameters tuned for their profile.

    Raises:
        InputError: there is none of that name, or it changes what a scheduler is told, which clusters do not simulate.
    """
    policy, change = resolve(name, profile=profile_name)
    told = profile.tables()
    if change(told) is not told:
        raise InputError(f"policy {name!r} changes what a scheduler is told, which clusters do not simulate")
    return policy


def make_worlds(profile: Profile, config: ClusterConfig, n_requests: int) -> Simulator:
    """The worlds of a cluster, with room for their share of so many requests."""
    n = config.accelerators
    room = n_requests if n == 1 else min(n_requests, int(ROOM * n_requests / n) + SPARE_ROOM)
    tables, truth = profile.tables(), profile.truth(config.streams)
    if config.slow_share > 0.0:
        tables, truth = with_speeds(tables, truth, config.slowness(), config.slow_measured)
    sim = Simulator(profile, n, config.streams, max(room, 1), config.queue_places, tables=tables, truth=truth)
    sim.limit_memory(config.models_in_memory, config.load_ms, spread=True)
    return sim


def open_cluster(
    profile: Profile, config: ClusterConfig, policy: Policy, workload: Workload, seed: int
) -> tuple[Simulator, Cluster]:
    """The worlds of a cluster and what is known of them before the first arrival; arguments as of `run_cluster`."""
    sim = make_worlds(profile, config, len(workload))
    none = Workload(*(np.empty(0),) * 4, profile.models)
    with np.errstate(over="ignore"):
        # The first world has the seed itself: a cluster of one is the simulator.
        seeds = np.array([seed] + [rng.mix(np.uint64(seed), i) for i in range(1, sim.n)], np.uint64)
    prepare(sim, policy, [none], seeds.tolist())
    ledger = make_ledger(config.doors, sim.n, len(profile.models))
    if config.slow_measured:
        ledger.replica["log_measured"] = ledger.replica["log_told"] = np.log(config.slowness())
    delays = (config.request_delay_ms, config.answer_delay_ms)
    cluster = make_cluster(sim, ledger, workload, profile.tables(), delays)
    begin_cluster(sim.arrays, cluster, seeds)
    return sim, cluster


def run_cluster(
    profile: Profile, config: ClusterConfig, policy: Policy, router: RouterKind, workload: Workload, seed: int
) -> ClusterRun:
    """Run a workload through a cluster.

    Args:
        profile: of every replica, and what the router is told.
        config: the cluster.
        policy: decides on each replica.
        router: chooses the replica.
        workload: all requests.
        seed: of the noise of all replicas and the draws of the router; compared routers meet the same arrivals.

    Raises:
        InputError: a replica was sent many times its share, so that it has no room.
    """
    sim, cluster = open_cluster(profile, config, policy, workload, seed)
    full = _call(policy, router, sim, cluster, seed)
    if full >= 0:
        raise InputError(f"router {router.name!r} {no_room(sim)}")
    return ClusterRun(sim, cluster, sim.state.count.sum(axis=0))


def no_room(sim: Simulator) -> str:
    """What is wrong where `send_to` finds no room."""
    return f"sent one replica more than {sim.world.request.shape[1]} requests"


def _call(policy: Policy, router: RouterKind, sim: Simulator, cluster: Cluster, seed: int) -> int:
    """``_run_cluster`` with both functions as pointers, so that one compiled loop serves all policies and routers."""
    choose, route = policy.kind.choose, router.route
    rest = (policy.memory, policy.vector, sim.arrays, cluster, np.uint64(seed))
    loop: Any = _run_cluster
    if hasattr(loop, "overloads"):
        chooser = policies.pointer_type(choose, policy.memory, policy.vector, sim.state, sim.tables)
        signature = (chooser, routers.pointer_type(router, cluster.ledger, cluster.profile), *map(numba.typeof, rest))
        if signature not in loop.overloads:
            loop.compile(signature)
        loop = loop.overloads[signature].entry_point
    return int(loop(choose, route, *rest))
