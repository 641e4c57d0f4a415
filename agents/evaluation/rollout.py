"""Running policies in simulation from the first arrival to the last end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from agents.policies.base import Policy, call_compiled
from envs.scheduling.jit import njit
from envs.scheduling.rng import mix
from envs.scheduling.state import OUTCOMES, SchedState, Tables
from envs.simulation.events import begin, run_to_decision, step
from envs.simulation.generate import Generator, generate
from envs.simulation.records import Truth, World
from envs.simulation.simulator import Simulator
from traces.workload import Workload


def finish_range(
    choose: Callable[..., tuple[int, float]],
    st: SchedState,
    w: World,
    tb: Tables,
    tr: Truth,
    mem: np.ndarray,
    lo: int,
    hi: int,
    p: np.ndarray,
) -> None:
    """Run worlds lo..hi-1 to their end under ``choose``, one after the other."""
    call_compiled(_finish_range, choose, mem, p, st, tb, w, tr, lo, hi)


@njit
def _finish_range(choose, mem, p, st, tb, w, tr, lo, hi):
    for e in range(lo, hi):
        while w.env[e].done == 0:
            action, wake = choose(st, tb, mem, e, p)
            step(st, w, tb, tr, e, action, wake)


def play_range(
    policy: Policy, st: SchedState, w: World, tb: Tables, tr: Truth, gen: Generator, lo: int, hi: int, decisions: int
) -> None:
    """Run ``decisions`` decisions in each world lo..hi-1 in lockstep; a world that ends generates its next episode."""
    call_compiled(_play_range, policy.kind.choose, policy.memory, policy.vector, st, tb, w, tr, gen, lo, hi, decisions)


@njit
def _play_range(choose, mem, p, st, tb, w, tr, gen, lo, hi, decisions):
    for _ in range(decisions):
        for e in range(lo, hi):
            action, wake = choose(st, tb, mem, e, p)
            step(st, w, tb, tr, e, action, wake)
            if w.env[e].done == 1:
                seed = mix(w.env[e].seed, 7)
                generate(w, tb, gen, e, seed)
                begin(st, w, tb, tr, e, seed)
                for i in range(mem.shape[1]):
                    mem[e, i] = 0.0
                run_to_decision(st, w, tb, tr, e)


def prepare(sim: Simulator, policy: Policy, workloads: Sequence[Workload], seeds: Sequence[int]) -> None:
    """Begin an episode in each world of ``sim`` as ``policy`` wants it; arguments as in ``run``."""
    policy.reset(sim.n)
    params = getattr(policy, "params", None)
    sim.world.options[:, 0] = policy.drop
    sim.world.preempt[:] = getattr(params, "device_mode", 0.0)
    sim.load(workloads)
    sim.begin(seeds)


def run(sim: Simulator, policy: Policy, workloads: Sequence[Workload], seeds: Sequence[int]) -> None:
    """Run one episode in each world of ``sim``, on its workload and with its seed, under ``policy``; results stay in sim.

    The noise of a world depends on its seed and workload alone, so that policies run on the same seeds are paired.

    Args:
        sim: worlds. policy: who decides. workloads: one a world (fewer repeat in turn). seeds: one a world.
    """
    prepare(sim, policy, workloads, seeds)
    finish_range(
        policy.kind.choose, sim.state, sim.world, sim.tables, sim.truth, policy.memory, 0, sim.n, policy.vector
    )


def request_table(sim: Simulator, e: int = 0) -> pd.DataFrame:
    """The requests of world e, one row each, in the columns that ``agents.evaluation.summary.summarise`` reads."""
    rows = sim.world.request[e, : int(sim.world.env[e].n)]
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
