"""Speed of the simulator under Strait: ``python -m benchmarks.env_speed``.

``decisions_per_s``: many worlds in lockstep on one core; a decision is Strait's choice and all events until the next one.
``decisions_per_s_observed``: the same through ``Worlds``, which also writes every world's observation and action mask.
``decisions_per_s_single``: one world, driven from Python, one call to choose and one to step.
``two_core_scaling``: the first figure on two threads over the same on one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.evaluation.rollout import play_range
from agents.policies.base import Policy
from agents.policies.registry import make_policy
from benchmarks.common.command import as_command
from benchmarks.common.timing import alternate, timed
from envs.scheduling.jit import bind
from envs.simulation.config import EnvConfig
from envs.simulation.simulator import step_range
from envs.simulation.worlds import Worlds, world_seed

POLICY = "strait"


def make(config: EnvConfig, n: int) -> tuple[Worlds, Policy]:
    """Worlds that have begun, n of them, and a policy for them."""
    worlds = Worlds(config, n)
    worlds.reset(np.array([world_seed(i) for i in range(n)], np.uint64))
    return worlds, make_policy(POLICY, n)


def batched(config: EnvConfig, n: int, decisions: int, threads: int) -> Callable[[], float]:
    """Decisions per second of n worlds on so many threads, as a function to call."""
    worlds, policy = make(config, n)
    sim = worlds.sim
    parts = [(n * i // threads, n * (i + 1) // threads) for i in range(threads)]

    def part(bounds: tuple[int, int]) -> None:
        play_range(policy, sim.arrays, worlds.generator, *bounds, decisions // n)

    pool = ThreadPoolExecutor(threads)
    list(pool.map(part, parts))
    return lambda: decisions // n * n / timed(lambda: list(pool.map(part, parts)))


def observed(config: EnvConfig, n: int, decisions: int) -> Callable[[], float]:
    """Decisions per second of n worlds through the environment's own step, observations and masks included."""
    worlds, policy = make(config, n)
    actions, wakes, skip = np.zeros(n, np.int64), np.zeros(n), np.zeros(n, bool)

    def play() -> None:
        for _ in range(decisions // n):
            policy.decide_all(worlds.sim.state, worlds.sim.tables, skip, actions, wakes)
            worlds.step(actions)

    return lambda: decisions // n * n / timed(play)


def single(config: EnvConfig, decisions: int) -> Callable[[], float]:
    """Decisions per second of one world, two calls from Python for each."""
    worlds, policy = make(config, 1)
    sim = worlds.sim
    actions, wakes = np.zeros(1, np.int64), np.zeros(1)
    choose = bind(policy.kind.choose, sim.state, sim.tables, policy.memory, 0, policy.vector)
    step = bind(step_range, sim.arrays, 0, 1, actions, wakes)

    def play() -> None:
        arrays, state, tables, episode = sim.arrays, sim.state, sim.tables, sim.world.episode
        for _ in range(decisions):
            actions[0], wakes[0] = choose(state, tables, policy.memory, 0, policy.vector)
            step(arrays, 0, 1, actions, wakes)
            if episode["done"][0]:
                worlds.reset(worlds.next_seeds())
                policy.reset()

    return lambda: decisions / timed(play)


def events_per_decision(config: EnvConfig, n: int) -> float:
    """Events (arrivals, ends of copies and executions) for each decision: counted over finished episodes."""
    worlds, policy = make(config, n)
    actions, wakes, skip = np.zeros(n, np.int64), np.zeros(n), np.zeros(n, bool)
    events = decisions = 0
    while decisions < 20_000:
        policy.decide_all(worlds.sim.state, worlds.sim.tables, skip, actions, wakes)
        decisions += n
        before = worlds.sim.world.episode["next"] + 3 * worlds.sim.state.scheduler["next_batch"]
        worlds.step(actions)
        after = worlds.sim.world.episode["next"] + 3 * worlds.sim.state.scheduler["next_batch"]
        # Three events per batch: both copies and the execution end. A world that began anew is left out of that step.
        events += int(np.where(worlds.out.done, 0, after - before).sum())
    return events / decisions


@dataclass
class EnvSpeedBenchmark:
    """What to measure.

    Attributes:
        profile: shipped profile by name, or a JSON file.
        worlds: simulated side by side.
        decisions: of a run.
        rounds: runs of each kind, of which the median counts.
    """

    profile: str = EnvConfig().profile
    worlds: int = 128
    decisions: int = 300_000
    rounds: int = 5


def measure(config: EnvSpeedBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    env, worlds, decisions = EnvConfig(profile=config.profile), config.worlds, config.decisions
    runs = {
        "decisions_per_s": batched(env, worlds, decisions, 1),
        "decisions_per_s_observed": observed(env, worlds, decisions // 8),
        "decisions_per_s_single": single(env, decisions // 16),
        "two": batched(env, worlds, decisions, 2),
    }
    result = alternate(runs, config.rounds)
    return {
        "two_core_scaling": result.pop("two") / result["decisions_per_s"],
        **result,
        "events_per_s": result["decisions_per_s"] * events_per_decision(env, worlds),
        "profile": config.profile,
        "worlds": worlds,
        "policy": POLICY,
    }


main = as_command(measure, EnvSpeedBenchmark, "env_speed", __doc__)

if __name__ == "__main__":
    sys.exit(main())
