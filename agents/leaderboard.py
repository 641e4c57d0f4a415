"""All policies on one table: ``python -m agents.leaderboard --profile gpu-a100 --seeds 10``.

Every registered policy, and those that were trained and ship, serve the same requests with the same noise: workloads at some
loads on a profile, or with ``--env Strait/DualPriority-Bursty-v2`` episodes as an environment draws them. Prints a table,
the best first, and one JSON object as its last line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd

import envs  # noqa: F401 (registers the environments)
from agents.evaluate import evaluate, result_of, with_weighted
from agents.evaluation import metric
from agents.evaluation.rollout import finish, govern
from agents.evaluation.statistics import bootstrap, difference
from agents.evaluation.suites import Suite
from agents.learned.names import resolve
from agents.learned.policy_file import SHIPPED
from agents.policies.registry import kinds
from envs.simulation.config import make_config
from envs.simulation.worlds import Worlds, world_seed
from traces.command import run_command
from traces.errors import InputError
from traces.settings import check_settings
from traces.worker_pool import results, worker_pool

REFERENCE = "strait"
Interval = tuple[float, float, float]  # low, mean, high


@dataclass
class LeaderboardConfig:
    """What is ranked, and on what.

    Attributes:
        profile: shipped profile by name, or a JSON file written by envs.fit.
        policies: names or files of policies; by default every registered one and the trained ones that ship.
        workloads: kinds of arrivals by name, or trace files.
        loads: offered loads over the measured capacity.
        seeds: workloads at each load; intervals are over them.
        duration_ms: length of each.
        streams: batches that may be in flight side by side.
        env: id of an environment; its episodes are served, one for each seed, and the settings above are its own.
        workers: processes; all cores by default.

    Raises:
        InputError: a setting is out of range, or there is no such environment.
    """

    profile: str = "gpu-a100"
    policies: list[str] | None = None
    workloads: tuple[str, ...] = ("bursty",)
    loads: tuple[float, ...] = (0.7, 0.9, 1.1)
    seeds: int = 10
    duration_ms: float = 5_000.0
    streams: int = 4
    env: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.env is not None:
            check_environment("--env", self.env)
        at_least = {"seeds": 1, "streams": 1, "workers": 1}
        check_settings(
            self, "--", at_least, {"loads": 0, "duration_ms": 0}, not_empty=["policies", "workloads", "loads"]
        )


def environments() -> list[str]:
    """The ids of the environments of one accelerator."""
    return [name for name in gym.registry if name.startswith("Strait/DualPriority")]


def check_environment(flag: str, name: str) -> None:
    """Raise InputError for an id that a flag names and that is none of them."""
    if name not in environments():
        raise InputError(f"{flag}: no environment {name!r}; there are {', '.join(environments())}")


def play(env: str, seeds: int, policy: str) -> pd.DataFrame:
    """Results of a policy in the first episodes of an environment with seeds 0, 1, ...: one row for each."""
    config = make_config(None, gym.spec(env).kwargs)
    worlds = Worlds(config, seeds, autoreset=False)
    resolved, change = resolve(policy, seeds, profile=config.profile)
    worlds.sim.tables = change(worlds.sim.tables)
    govern(worlds.sim, resolved)
    worlds.reset(np.array([world_seed(seed) for seed in range(seeds)]))
    finish(resolved, worlds.sim.arrays, resolved.memory, 0, seeds)
    labels = {"policy": policy, "workload": env, "load": 0.0}
    rows = [labels | {"seed": seed} | result_of(worlds.sim, seed) for seed in range(seeds)]
    frame = with_weighted(pd.DataFrame(rows))
    frame.attrs["capacity_rps"] = worlds.capacity_rps
    return frame


def play_all(env: str, policies: list[str], seeds: int, workers: int | None) -> pd.DataFrame:
    """The rows of all policies. Raises InputError: an unknown policy."""
    for policy in policies:
        resolve(policy)  # an unknown name is told before anything runs
    with worker_pool(workers, None) as pool:
        waiting = [pool.submit(play, env, seeds, policy) for policy in policies]
        frames = results(waiting, "policy", env, sys.stderr.isatty())
    whole = pd.concat(frames, ignore_index=True)
    whole.attrs = frames[0].attrs
    return whole


def rank(frame: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """The score of each policy, the best first, from one row for each policy, workload, load and seed.

    Returns:
        By policy, means with bootstrap 95 % intervals over seeds, in percent: violations of ``high`` and ``low`` priority and
        ``weighted``; ``minus_strait``: the weighted ones less Strait's, paired, in points, where Strait is among them.
    """
    columns = {"high": metric.VIOLATION_HIGH, "low": metric.VIOLATION_LOW, "weighted": "weighted"}
    scores: dict[str, dict[str, Interval]] = {}
    for policy, rows in frame.groupby("policy"):
        by_seed = 100 * rows.groupby("seed")[list(columns.values())].mean()
        scores[str(policy)] = {name: bootstrap(by_seed[column].to_numpy()) for name, column in columns.items()}
        if REFERENCE in set(frame["policy"]):
            seeds = frame["seed"].unique()
            paired = [difference(frame[frame["seed"] == seed], str(policy), REFERENCE).mean() for seed in seeds]
            scores[str(policy)]["minus_strait"] = bootstrap(100 * pd.Series(paired).to_numpy())
    return dict(sorted(scores.items(), key=lambda item: item[1]["weighted"][1]))


def markdown(scores: dict[str, dict[str, Interval]]) -> str:
    """The scores as a Markdown table."""
    heads = {"high": "high, %", "low": "low, %", "weighted": "weighted, %", "minus_strait": "minus Strait, points"}
    shown = [name for name in heads if all(name in score for score in scores.values())]

    def cell(name: str, values: Interval) -> str:
        low, mean, high = (f"{value:{'+' if name == 'minus_strait' else ''}.2f}" for value in values)
        return f"{mean} [{low}, {high}]"

    lines = [f"| | policy | {' | '.join(heads[name] for name in shown)} |", "|---:|---|" + "---:|" * len(shown)]
    for place, (policy, score) in enumerate(scores.items(), 1):
        lines.append(f"| {place} | {policy} | {' | '.join(cell(name, score[name]) for name in shown)} |")
    return "\n".join(lines)


def leaderboard(config: LeaderboardConfig) -> None:
    """Run every policy, and print the table and the JSON line.

    Raises:
        InputError: an unknown policy, workload or profile.
    """
    policies = config.policies or [*sorted(kinds()), *(name for name, path in SHIPPED.items() if path.is_file())]
    result: dict[str, Any]
    if config.env is None:
        suite = Suite("leaderboard", tuple(policies), config.workloads, config.loads, config.seeds, config.duration_ms)
        frame = evaluate(suite, config.profile, config.streams, config.workers, progress=sys.stderr.isatty())
        loads = ", ".join(f"{load:g}" for load in config.loads)
        said = f"profile {config.profile} (simulated), {', '.join(config.workloads)} at loads {loads}"
        result = {"profile": config.profile, "loads": list(config.loads), "workloads": list(config.workloads)}
    else:
        frame = play_all(config.env, policies, config.seeds, config.workers)
        said, result = f"first episodes of {config.env} (simulated)", {"env": config.env}
    scores = rank(frame)
    print(markdown(scores))
    print(f"\nViolations, mean and 95 % interval over {config.seeds} seeds; {said}.")
    result |= {"seeds": config.seeds, "capacity_rps": round(frame.attrs["capacity_rps"], 2)}
    rounded = {
        policy: {name: [round(value, 3) for value in values] for name, values in score.items()}
        for policy, score in scores.items()
    }
    print(json.dumps(result | {"policies": rounded}))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(leaderboard, LeaderboardConfig, argv, "python -m agents.leaderboard", __doc__)


if __name__ == "__main__":
    sys.exit(main())
