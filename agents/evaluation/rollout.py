"""Running policies in simulation from the first arrival to the last end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from agents.policies.base import Policy, call_compiled
from envs.scheduling import rng
from envs.scheduling.jit import njit
from envs.scheduling.state import OUTCOMES
from envs.simulation.events import begin, run_to_decision, step
from envs.simulation.generate import Generator, generate
from envs.simulation.records import SimArrays
from envs.simulation.simulator import Simulator
from traces.workload import Workload


def finish(policy: Policy, sim: SimArrays, memory: np.ndarray, lo: int, hi: int) -> None:
    """Run worlds lo..hi-1 to their end under ``policy``, one after the other, with its memory in ``memory``."""
    call_compiled(_finish_range, policy.kind.choose, memory, policy.vector, sim, lo, hi, np.full(hi, np.inf))


def play_until(policy: Policy, sim: SimArrays, until_ms: np.ndarray) -> None:
    """Run each world to a time of its own (N,), or to its end, if that is before."""
    call_compiled(_finish_range, policy.kind.choose, policy.memory, policy.vector, sim, 0, len(until_ms), until_ms)


@njit
def _finish_range(choose, memory, params, sim, lo, hi, until_ms):
    state, tables, world = sim.state, sim.tables, sim.world
    for e in range(lo, hi):
        while world.episode[e].done == 0 and state.scheduler[e].now < until_ms[e]:
            action, wake = choose(state, tables, memory, e, params)
            step(sim, e, action, wake)


def play_range(policy: Policy, sim: SimArrays, generator: Generator, lo: int, hi: int, decisions: int) -> None:
    """Run ``decisions`` decisions in each world lo..hi-1 in lockstep; a world that ends generates its next episode."""
    call_compiled(_play_range, policy.kind.choose, policy.memory, policy.vector, sim, generator, lo, hi, decisions)


@njit
def _play_range(choose, memory, params, sim, generator, lo, hi, decisions):
    state, tables, world = sim.state, sim.tables, sim.world
    for _ in range(decisions):
        for e in range(lo, hi):
            action, wake = choose(state, tables, memory, e, params)
            step(sim, e, action, wake)
            if world.episode[e].done == 1:
                seed = rng.mix(world.episode[e].seed, rng.NEXT_EPISODE)
                generate(world, tables, generator, e, seed)
                begin(sim, e, seed)
                for i in range(memory.shape[1]):
                    memory[e, i] = 0.0
                run_to_decision(sim, e)


def govern(sim: Simulator, policy: Policy) -> None:
    """Make a policy ready for the worlds of ``sim``, and have them drop and preempt as it wants; before they begin."""
    policy.reset(sim.n)
    params = getattr(policy, "params", None)
    sim.world.rules["drop_scale"] = policy.drop
    sim.world.preemption[:] = getattr(params, "preemption", (0.0, 0.0, 0.0, 0.0))


def prepare(sim: Simulator, policy: Policy, workloads: Sequence[Workload], seeds: Sequence[int]) -> None:
    """Begin an episode in each world of ``sim`` as ``policy`` wants it; arguments as in ``run``."""
    govern(sim, policy)
    sim.load(workloads)
    sim.begin(seeds)


def run(sim: Simulator, policy: Policy, workloads: Sequence[Workload], seeds: Sequence[int]) -> None:
    """Run one episode in each world of ``sim``, on its workload and with its seed, under ``policy``; results stay in sim.

    The noise of a world depends on its seed and workload alone, so that policies run on the same seeds are paired.

    Args:
        sim: worlds. policy: who decides. workloads: one a world (fewer repeat in turn). seeds: one a world.
    """
    prepare(sim, policy, workloads, seeds)
    finish(policy, sim.arrays, policy.memory, 0, sim.n)


def request_table(sim: Simulator, env: int = 0) -> pd.DataFrame:
    """The requests of world e, one row each, in the columns that ``agents.evaluation.summary.summarise`` reads."""
    rows = sim.world.request[env, : int(sim.world.episode[env].n)]
    return pd.DataFrame(
        {
            "arrival_ms": rows["arrival"],
            "finish_ms": rows["finish"],
            "model": np.array(sim.profile.models)[rows["model"]],
            "priority": rows["priority"],
            "outcome": np.array(OUTCOMES)[rows["outcome"]],
            "latency_ms": rows["finish"] - rows["arrival"],
            "queue_ms": rows["start"] - rows["arrival"],
            "batch_id": rows["batch"],
        }
    )
