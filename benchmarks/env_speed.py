"""Speed of the simulated world with Strait choosing: ``python -m benchmarks.env_speed``.

``decisions_per_s``: many worlds in lockstep on one core, each decision Strait's choice and all events until the next.
``decisions_per_s_observed``: the same through ``Worlds``, which also writes every world's observation and action mask.
``decisions_per_s_single``: one world, driven from Python, one call to choose and one to step.
``two_core_scaling``: the first figure on two threads over the same on one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from agents.evaluation.rollout import play_range
from agents.policies.base import Policy
from agents.policies.registry import make_policy
from benchmarks.common.timing import alternate, report, timed
from envs.scheduling.jit import bind
from envs.simulation.config import EnvConfig
from envs.simulation.simulator import step_range
from envs.simulation.worlds import Worlds, world_seed

POLICY = "strait"


def make(config: EnvConfig, n: int) -> tuple[Worlds, Policy]:
    """A batch of worlds that has begun, and who decides in it."""
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
        # Three events a batch: both copies and the execution end. A world that began anew is left out of that step.
        events += int(np.where(worlds.out.done, 0, after - before).sum())
    return events / decisions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=EnvConfig().profile, help="profile by name or path (default: %(default)s)")
    parser.add_argument("--worlds", type=int, default=128, help="worlds of the batch (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=300_000, help="decisions of a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind, in turn (default: %(default)s)")
    args = parser.parse_args()
    config = EnvConfig(profile=args.profile)
    runs = {
        "decisions_per_s": batched(config, args.worlds, args.decisions, 1),
        "decisions_per_s_observed": observed(config, args.worlds, args.decisions // 8),
        "decisions_per_s_single": single(config, args.decisions // 16),
        "two": batched(config, args.worlds, args.decisions, 2),
    }
    result = alternate(runs, args.rounds)
    two = result.pop("two")
    events = events_per_decision(config, args.worlds)
    report(
        result
        | {
            "two_core_scaling": two / result["decisions_per_s"],
            "events_per_s": result["decisions_per_s"] * events,
            "profile": args.profile,
            "worlds": args.worlds,
            "policy": POLICY,
        }
    )


if __name__ == "__main__":
    main()
