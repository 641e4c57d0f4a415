"""Time of one decision of each policy: ``python -m benchmarks.decision_latency``.

256 requests are queued and 4 batches are in flight on a device of 5 streams, so that there is a stream to dispatch to. The
state is built anew before every decision, from other queues, deadlines and batches: nothing foreseen is left over. Timed is
``Policy.decide`` from Python, as the live engine calls it. The last line is JSON: {POLICY: {"p50_us", "p99_us"}}.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from jsonargparse import ArgumentParser

from agents.learned.names import resolve
from agents.learned.policy_file import CHECKPOINT
from agents.policies.base import Policy
from agents.policies.registry import kinds
from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of, clear, dispatch, enqueue
from envs.scheduling.predictor import advance
from envs.simulation.simulator import Simulator
from traces.errors import InputError

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
    """A scheduler whose streams are each a core of its own: a policy that lets no core be shared still has to decide."""
    return Simulator(replace(profile, cores=0.0), 1, STREAMS)


def measure(policy: Policy, profile: Profile, decisions: int, queued: int = 256, in_flight: int = 4) -> np.ndarray:
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
class LatencyConfig:
    """What to measure.

    Attributes:
        policies: names or checkpoint paths; all by default.
        decisions: of each.
        profile: shipped profile by name, or a JSON file written by envs.fit.
    """

    policies: list[str] | None = None
    decisions: int = 5000
    profile: str = "cpu2"


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.decision_latency", description=__doc__.split("\n\n")[0])
    parser.add_class_arguments(LatencyConfig, as_group=False)
    config = LatencyConfig(**parser.parse_args(argv).as_dict())
    result = {}
    try:
        profile = Profile.load(config.profile)
        names = config.policies or sorted(kinds()) + ["ppo"] * CHECKPOINT.is_file()
        gc.disable()
        for name in names:
            policy, _ = resolve(name)
            p50, p99 = np.quantile(measure(policy, profile, config.decisions), [0.5, 0.99])
            result[name] = {"p50_us": round(float(p50), 2), "p99_us": round(float(p99), 2)}
            print(f"{name}: p50 {p50:.2f} us, p99 {p99:.2f} us")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        gc.enable()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
