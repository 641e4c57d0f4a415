"""The clairvoyant reference: how well one could do who knows all arrivals and true latencies.

Small instances are solved exactly, by branch and bound over all decisions of a world without noise. On large ones a search
with perfect information improves a base policy by rollout (Bertsekas, Tsitsiklis and Wu, 1997): before each decision every
valid action is tried on a copy of the world, true noise and future arrivals included, followed by the base policy for a
horizon, and the best one is taken. Both decide on arrivals and completions only, and from the same FIFO queues as everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from agents.evaluation.rollout import run
from agents.evaluation.statistics import bootstrap
from agents.learned.names import resolve
from agents.policies.base import Policy, call_compiled
from envs.profiles.profile import Profile
from envs.scheduling.candidates import valid
from envs.scheduling.forecast import place
from envs.scheduling.jit import njit
from envs.scheduling.state import HIGH
from envs.simulation.events import step
from envs.simulation.simulator import Simulator
from traces.workload import HIGH_WEIGHT, Workload, WorkloadConfig, make_workload

NAME = "clairvoyant"
HORIZON_MS = 500.0  # how far ahead the search judges a decision
NODE_LIMIT = 3_000_000


class WorldRows(NamedTuple):
    """What changes in worlds, to be copied from one to another between two decisions.

    The arrivals do not change and stay out, and so do free places of queues and requests that ended, which were read
    by then: most of a world's bytes.

    Attributes:
        words: (N, W) uint64 arrays, copied whole.
        queue: (N, 2, M) records. entry: (N, 2, M, Q) records; see ``SchedState``.
    """

    words: tuple[np.ndarray, ...]
    queue: np.ndarray
    entry: np.ndarray


def world_rows(sim: Simulator, *more: np.ndarray) -> WorldRows:
    """What changes in the worlds of ``sim``, and ``more`` arrays with a row for each of them; views."""
    state = {name: a for name, a in sim.state._asdict().items() if name not in ("entry", "ended")}
    world = {name: a for name, a in sim.world._asdict().items() if name != "request"}
    arrays = (*state.values(), *world.values(), *more)
    words = tuple(a.view(np.ndarray).reshape(len(a), -1).view(np.uint64) for a in arrays)
    return WorldRows(words, sim.state.queue, sim.state.entry)


@njit
def copy_world(rows, source, target_rows, target):
    """Make world ``target`` of some rows (see ``world_rows``) what world ``source`` of others is."""
    for a in range(len(rows.words)):
        for i in range(rows.words[a].shape[1]):
            target_rows.words[a][target, i] = rows.words[a][source, i]
    for priority in range(2):
        for model in range(rows.queue.shape[2]):
            for i in range(rows.queue[source, priority, model].length):
                at = place(rows, source, priority, model, i)
                held = rows.entry[source, priority, model, at]
                room = target_rows.entry[target, priority, model, at]
                room.id = held.id
                room.arrival = held.arrival
                room.deadline = held.deadline


@njit
def _search(choose, memory, params, sim, rows, horizon):
    """Take all decisions of the episode in world 0, trying them out in world 1."""
    state, tables, world = sim.state, sim.tables, sim.world
    defer = 2 * state.queue.shape[2] * tables.size.shape[0]
    while world.episode[0].done == 0:
        base, base_wake = choose(state, tables, memory, 0, params)
        until = state.scheduler[0].now + horizon
        best = base
        best_return = -np.inf
        # The base policy's own decision is tried first, and kept where nothing is better.
        for i in range(-1, defer + 1):
            action = base if i < 0 else i
            if i == base or not (action == defer or valid(state, tables, 0, action)):
                continue
            copy_world(rows, 0, rows, 1)
            step(sim, 1, action, base_wake if i < 0 else np.inf)
            while world.episode[1].done == 0 and state.scheduler[1].now < until:
                then, wake = choose(state, tables, memory, 1, params)
                step(sim, 1, then, wake)
            if world.episode[1].ret > best_return:
                best_return = world.episode[1].ret
                best = action
        step(sim, 0, best, base_wake if best == base else np.inf)


def search(sim: Simulator, base: Policy, workload: Workload, seed: int) -> float:
    """Run one episode of world 0 with perfect information; results stay in ``sim``, which needs two worlds.

    Args:
        sim: simulator of two worlds; the second is scratch.
        base: policy to improve on, ready for two schedulers.
        workload: arrivals. seed: of the noise.

    Returns:
        Weighted violations: no more than the base policy's, whose own run is the answer where the search does no better.
    """
    if sim.n != 2:
        raise ValueError(f"search needs a simulator of 2 worlds, not {sim.n}")
    run(sim, base, [workload], [seed, seed])
    base_cost = 0.0 - float(sim.world.episode[0].ret)
    base.reset(2)
    rows = world_rows(sim, base.memory)
    sim.begin([seed, seed])
    call_compiled(_search, base.kind.choose, base.memory, base.vector, sim.arrays, rows, HORIZON_MS)
    cost = 0.0 - float(sim.world.episode[0].ret)
    if cost > base_cost:
        run(sim, base, [workload], [seed, seed])
    return min(cost, base_cost)


@njit
def _solve(sim, rows, upcoming, bound, limit):
    """Least weighted violations from the state of world 0, found below ``bound``; world d is the state after d decisions.

    Args:
        sim: the worlds' arrays. rows: see ``world_rows``.
        upcoming: (n worlds,) scratch, next action to try at each depth.
        bound: violations known to be possible. limit: largest number of decisions to try.

    Returns:
        (cost, decisions tried, whether the search was complete).
    """
    state, tables, world = sim.state, sim.tables, sim.world
    defer = 2 * state.queue.shape[2] * tables.size.shape[0]
    best = bound
    tried = 0
    depth = 0
    upcoming[0] = 0
    while depth >= 0:
        action = upcoming[depth]
        while action < defer and not valid(state, tables, depth, action):
            action += 1
        if action > defer or best <= 0.0:
            depth -= 1
            continue
        upcoming[depth] = action + 1
        if tried == limit or depth + 1 == upcoming.shape[0]:
            return best, tried, False
        tried += 1
        copy_world(rows, depth, rows, depth + 1)
        step(sim, depth + 1, action, np.inf)
        cost = -world.episode[depth + 1].ret
        if cost >= best:
            continue
        if world.episode[depth + 1].done == 1:
            best = cost
            continue
        depth += 1
        upcoming[depth] = 0
    return best, tried, True


def solve(sim: Simulator, workload: Workload, bound: float = np.inf, limit: int = NODE_LIMIT) -> tuple[float, bool]:
    """Least weighted violations of a workload over all decisions, by branch and bound.

    Args:
        sim: simulator without noise, with a world for each decision that an episode may need.
        workload: a few requests.
        bound: weighted violations that some policy reaches; a good one makes the search short.
        limit: decisions to try before giving up.

    Returns:
        (weighted violations, whether they are proven least).
    """
    sim.world.rules["drop_scale"] = 1.0
    sim.world.preemption[:] = (0.0, 0.0, 0.0, 0.0)
    sim.load([workload])
    sim.begin([0] * sim.n)
    if sim.world.episode[0].done:
        return 0.0 - float(sim.world.episode[0].ret), True
    upcoming = np.zeros(sim.n, np.int64)
    cost, _, proven = _solve(sim.arrays, world_rows(sim), upcoming, float(bound), limit)
    return float(cost), bool(proven)


@dataclass(frozen=True)
class SmallConfig:
    """Instances that can be solved exactly.

    Attributes:
        instances: number.
        requests: of each.
        models: of each, drawn from the profile.
        streams: of the device.
        window_share: time in which the requests arrive, over the time that they take one after the other.
        factors: deadline of high and of low priority over the solo latency; short, so that not everything can be met.
    """

    instances: int = 40
    requests: int = 9
    models: int = 3
    streams: int = 2
    window_share: float = 0.1
    factors: tuple[float, float] = (2.0, 3.0)


def small_instance(profile: Profile, config: SmallConfig, seed: int) -> tuple[Profile, Workload]:
    """A few models of the profile, and a few requests for them in a short time."""
    rng = np.random.default_rng([seed, config.requests])
    few = profile.select(tuple(rng.permutation(profile.models)[: config.models]))
    window = config.window_share * config.requests * few.unit_ms
    arrivals = np.sort(rng.uniform(0.0, window, config.requests))
    laid = WorkloadConfig(
        high_fraction=0.4, deadline_factor_high=config.factors[0], deadline_factor_low=config.factors[1]
    )
    workload = make_workload(arrivals, few.models, few.solo_latency_ms, laid, rng, f"small-{seed}")
    return few, workload


def distances(
    profile: Profile,
    policies: Sequence[str],
    config: SmallConfig = SmallConfig(),
    tuned_for: str = "",
    progress: bool = True,
) -> pd.DataFrame:
    """Weighted violations of each policy on small instances without noise beside the optimum, in percent of the weight.

    Args:
        tuned_for: name or path of the profile whose tuned parameters heuristics take.

    Returns:
        One row for each instance and policy: instance, policy, weighted, optimum, distance. Instances whose optimum was not
        proven within the limit are left out; their number is in ``attrs["unproven"]``.
    """
    rows = []
    unproven = 0
    for seed in tqdm(range(config.instances), unit="instance", desc="exact optimum", disable=not progress):
        few, workload = small_instance(profile, config, seed)
        settings: dict[str, Any] = {
            "n_streams": config.streams,
            "n_requests": config.requests,
            "queue_places": 16,
            "noise": False,
        }
        costs = {}
        for name in policies:
            policy, change = resolve(name, profile=tuned_for)
            sim = Simulator(few, 1, tables=change(few.tables()), **settings)
            run(sim, policy, [workload], [0])
            costs[name] = 0.0 - float(sim.world.episode[0].ret)
        exact = Simulator(few, 6 * config.requests, **settings)
        # Just above the best policy, so that a tie is found as well; a preempting device may do better than the bound.
        optimum, proven = solve(
            exact, workload, min((c for n, c in costs.items() if "preempt" not in n), default=np.inf) + 0.5
        )
        if not proven:
            unproven += 1
            continue
        weight = float(np.where(workload.priority == HIGH, HIGH_WEIGHT, 1.0).sum())
        for name, cost in costs.items():
            share, least = 100 * cost / weight, 100 * optimum / weight
            rows.append((seed, name, share, least, share - least))
    frame = pd.DataFrame(rows, columns=["instance", "policy", "weighted", "optimum", "distance"])
    frame.attrs["unproven"] = unproven
    return frame


def distance_digest(frame: pd.DataFrame) -> dict[str, dict[str, object]]:
    """By policy: mean weighted violations, distance to the optimum with its interval, share of instances at the optimum."""
    return {
        str(policy): {
            "weighted": round(float(rows["weighted"].mean()), 3),
            "optimum": round(float(rows["optimum"].mean()), 3),
            "distance": [round(v, 3) for v in bootstrap(rows["distance"].to_numpy())],
            "at_optimum_pct": round(100 * float((rows["distance"] < 1e-6).mean()), 1),
        }
        for policy, rows in frame.groupby("policy", sort=True)
    }
