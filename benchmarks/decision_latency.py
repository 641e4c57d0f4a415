"""Time of one decision of each policy: ``python -m benchmarks.decision_latency``.

256 requests are queued and 4 batches are in flight on a device of 5 streams, so that one stream is free. Every decision gets a
new state with other queues, deadlines and batches, so no forecast is left over from the one before. Timed is ``Policy.decide``
called from Python, as the live engine calls it. Figures: ``{policy: {p50_us, p99_us}}``.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.learned.names import resolve
from agents.learned.policy_file import CHECKPOINT
from agents.policies.base import Policy
from agents.policies.registry import kinds
from benchmarks.common.command import as_command
from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.candidates import action_of
from envs.scheduling.jit import njit
from envs.scheduling.operations import clear, dispatch, enqueue
from envs.scheduling.predictor import advance
from envs.simulation.simulator import Simulator

STREAMS = 5
WARM = 50


@njit
def fill(state, tables, seed, queued, in_flight):
    """Build a state of scheduler 0: ``in_flight`` batches that began some ms ago, and ``queued`` requests."""
    clear(state, tables, 0)
    n_models = state.queue.shape[2]
    n_sizes = tables.size.shape[0]
    draw = 0
    id_ = 0
    now = 0.0
    for _ in range(in_flight):
        model = int(rng.uniform(seed, draw) * n_models)
        priority = int(rng.uniform(seed, draw + 1) * 2)
        size = int(rng.uniform(seed, draw + 2) * n_sizes)
        for _ in range(tables.size[size]):
            deadline = now + tables.solo[0, model, size] * (2.0 + 6.0 * rng.uniform(seed, draw + 3))
            enqueue(state, tables, 0, now, priority, model, id_, deadline)
            id_ += 1
        dispatch(state, tables, 0, action_of(tables, n_models, priority, model, size))
        now += 0.3 * rng.uniform(seed, draw + 4)
        advance(state, tables, 0, now)
        draw += 5
    for i in range(queued):
        # As many for each queue, so that none overflows; every one of them holds something.
        priority = i % 2
        model = (i // 2) % n_models
        factor = 3.0 + 3.0 * priority + 20.0 * rng.uniform(seed, draw)
        enqueue(state, tables, 0, now, priority, model, id_, now + factor * tables.solo[0, model, 0])
        id_ += 1
        draw += 1


def busy_simulator(profile: Profile) -> Simulator:
    """A scheduler whose streams are each a core of its own, so that policies that share no core have a choice, too."""
    return Simulator(replace(profile, cores=0.0), 1, STREAMS)


def durations_us(policy: Policy, profile: Profile, decisions: int, queued: int = 256, in_flight: int = 4) -> np.ndarray:
    """Duration of each of so many decisions, in microseconds."""
    sim = busy_simulator(profile)
    durations = np.empty(decisions)
    for i in range(-WARM, decisions):
        fill(sim.state, sim.tables, np.uint64(i + WARM), queued, in_flight)
        begin = time.perf_counter_ns()
        policy.decide(sim.state, sim.tables)
        end = time.perf_counter_ns()
        if i >= 0:
            durations[i] = (end - begin) / 1e3
    return durations


@dataclass
class DecisionLatencyBenchmark:
    """What to measure.

    Attributes:
        policies: names or checkpoint paths; none: all.
        decisions: of each.
        profile: shipped profile by name, or a JSON file written by envs.fit.
    """

    policies: list[str] = field(default_factory=list)
    decisions: int = 5000
    profile: str = "cpu2"


def measure(config: DecisionLatencyBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    profile = Profile.load(config.profile)
    names = config.policies or sorted(kinds()) + ["ppo"] * CHECKPOINT.is_file()
    policies = {name: resolve(name)[0] for name in names}
    result = {}
    gc.disable()
    try:
        for name, policy in policies.items():
            p50, p99 = np.quantile(durations_us(policy, profile, config.decisions), [0.5, 0.99]).tolist()
            result[name] = {"p50_us": p50, "p99_us": p99}
    finally:
        gc.enable()
    return result


main = as_command(measure, DecisionLatencyBenchmark, "decision_latency", __doc__)

if __name__ == "__main__":
    sys.exit(main())
