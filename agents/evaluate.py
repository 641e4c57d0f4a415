"""Judging policies alike: the same traces and the same noise for each, paired differences, bootstrap intervals.

``python -m agents.evaluate --suite quick --json`` prints one JSON line; without ``--json`` it also writes Parquet, a report
in Markdown with pictures, and TensorBoard scalars into a run folder.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from agents import tags
from agents.policy import kinds
from agents.rollout import request_table, run
from agents.suites import WORKLOADS, Suite, workload_for
from agents.summary import summarise
from agents.variants import ABLATIONS, CHECKPOINT, resolve
from envs.capacity import measure_capacity
from envs.config import EnvConfig, load_profile
from envs.profile import Profile
from envs.simulator import Simulator
from traces.errors import InputError
from traces.workload import Workload

HIGH_WEIGHT = 5.0
QUICK_LOADS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
HELDOUT_LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
REAL = ("azure_llm_2023", "mooncake")


def suites() -> dict[str, Suite]:
    """The suites by name."""
    learned = ("ppo",) if CHECKPOINT.is_file() else ()
    everyone = tuple(sorted(kinds())) + learned
    return {
        "quick": Suite("quick", everyone, ("bursty",), QUICK_LOADS, 10, 5_000.0),
        "full": Suite("full", everyone + ABLATIONS, ("poisson", "bursty", "diurnal", *REAL), QUICK_LOADS, 20, 20_000.0),
        "ablation": Suite("ablation", ("strait", *ABLATIONS), ("poisson", "bursty"), QUICK_LOADS, 10, 10_000.0),
        "heldout": Suite("heldout", ("strait", *learned), (*REAL, "gamma", "diurnal"), HELDOUT_LOADS, 10, 20_000.0),
    }


def weighted_rate(high: np.ndarray, low: np.ndarray, n_high: np.ndarray, n_low: np.ndarray) -> np.ndarray:
    """Share of violated weight: a high-priority request counts ``HIGH_WEIGHT``, a low-priority one 1."""
    return (HIGH_WEIGHT * high * n_high + low * n_low) / np.maximum(HIGH_WEIGHT * n_high + n_low, 1e-9)


def bootstrap(values: np.ndarray, rounds: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences with a 95 % percentile interval (Efron, 1979): (low, mean, high)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(values.mean()), float(high)


@dataclass(frozen=True)
class Group:
    """One policy on one workload at all loads and seeds: what one process runs, for a policy compiles once a process."""

    profile: str
    policy: str
    workload: str
    capacity_rps: float
    streams: int
    suite: Suite


def make_workloads(group: Group, profile: Profile) -> list[Workload]:
    """The workloads of a group, one for each load and seed; the same whatever the policy."""
    suite = group.suite
    return [
        workload_for(group.workload, load * group.capacity_rps, suite.duration_ms, profile, suite.workload, seed)
        for load, seed in product(suite.loads, range(suite.seeds))
    ]


def run_group(group: Group) -> pd.DataFrame:
    """Results of a group, one row for each load and seed."""
    suite = group.suite
    profile = named_profile(group.profile)
    workloads = make_workloads(group, profile)
    policy, change = resolve(group.policy, len(workloads))
    room = max(1, *(len(w) for w in workloads))
    sim = Simulator(profile, len(workloads), group.streams, room, tables=change(profile.tables()))
    seeds = [seed for _ in suite.loads for seed in range(suite.seeds)]
    run(sim, policy, workloads, seeds)
    rows = []
    for e, (load, seed) in enumerate(product(suite.loads, range(suite.seeds))):
        table = request_table(sim, e)
        row: dict[str, Any] = {"policy": group.policy, "workload": group.workload, "load": load, "seed": seed}
        row |= summarise(table, suite.duration_ms)
        row["n_high"] = int((table["priority"] == 0).sum())
        row["n_low"] = int((table["priority"] == 1).sum())
        row["decisions"] = int(sim.world.env[e].steps)
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame["weighted"] = weighted_rate(
        frame[tags.VIOLATION_HIGH].to_numpy(),
        frame[tags.VIOLATION_LOW].to_numpy(),
        frame["n_high"].to_numpy(),
        frame["n_low"].to_numpy(),
    )
    return frame


def named_profile(name: str) -> Profile:
    """A profile by shipped name, by path, or made up: ``synthetic:SEED``."""
    return load_profile(EnvConfig(profile=name))


def evaluate(
    suite: Suite, profile: str = "cpu2", streams: int = 4, workers: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Run a suite on all cores. One row for each policy, workload, load and seed; the capacity is in its ``attrs``.

    Raises:
        InputError: an unknown profile, policy or workload.
    """
    loaded = named_profile(profile)
    for policy in suite.policies:
        resolve(policy)  # an unknown name is told before anything runs
    for workload in suite.workloads:
        if workload not in WORKLOADS:
            raise InputError(f"unknown workload {workload!r}; known: {', '.join(WORKLOADS)}")
    capacity = measure_capacity(loaded, streams)
    groups = [
        Group(profile, policy, workload, capacity, streams, suite)
        for policy, workload in product(suite.policies, suite.workloads)
    ]
    # The slowest policies begin first, so that no core waits for one of them at the end.
    groups.sort(key=lambda group: not group.policy.startswith(("ppo", "strait", "/")))
    workers = min(workers or os.cpu_count() or 1, len(groups))
    bar = {"total": len(groups), "unit": "run", "desc": f"suite {suite.name}", "disable": not progress}
    if workers == 1:
        frames = list(tqdm(map(run_group, groups), **bar))
    else:
        with ProcessPoolExecutor(workers) as pool:
            frames = list(tqdm(pool.map(run_group, groups), **bar))
    result = pd.concat(frames, ignore_index=True)
    result.attrs["capacity_rps"] = capacity
    return result


def digest(frame: pd.DataFrame, reference: str = "strait") -> dict[str, dict[str, dict[str, Any]]]:
    """Per policy and load, over all workloads and seeds: rates in percent and the paired difference from ``reference``."""
    key = ["workload", "load", "seed"]
    base = frame[frame["policy"] == reference].set_index(key)["weighted"] if reference in set(frame["policy"]) else None
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for (policy, load), rows in frame.groupby(["policy", "load"], sort=True):
        cell: dict[str, Any] = {
            "high": round(100 * float(rows[tags.VIOLATION_HIGH].mean()), 3),
            "low": round(100 * float(rows[tags.VIOLATION_LOW].mean()), 3),
            "goodput": round(float(rows[tags.GOODPUT_RPS].mean()), 2),
            "jain": round(float(rows[tags.FAIRNESS_MODELS].mean()), 4),
            "weighted": round(100 * float(rows["weighted"].mean()), 3),
        }
        if base is not None:
            mine = rows.set_index(key)["weighted"]
            difference = 100 * (mine - base.loc[mine.index]).to_numpy()
            cell["weighted_minus_strait"] = [round(v, 3) for v in bootstrap(difference)]
        out.setdefault(str(policy), {})[f"{load:g}"] = cell
    return out


@dataclass
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        suite: quick, heldout or full.
        policies: names or checkpoint paths to run instead of the suite's.
        workloads: workloads to run instead of the suite's.
        loads: loads (over measured capacity) to run instead of the suite's.
        seeds: number of seeds instead of the suite's.
        profile: shipped profile by name, or a JSON file written by envs.fit.
        streams: streams of the device.
        workers: processes; all cores by default.
        out: folder for Parquet, report and TensorBoard.
    """

    suite: str = "quick"
    policies: list[str] | None = None
    workloads: list[str] | None = None
    loads: list[float] | None = None
    seeds: int | None = None
    profile: str = "cpu2"
    streams: int = 4
    workers: int | None = None
    out: str = "runs/evaluate"


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = ArgumentParser(prog="python -m agents.evaluate", description=__doc__.split("\n\n")[0], exit_on_error=False)
    parser.add_class_arguments(EvaluateConfig, as_group=False)
    parser.add_argument("--json", action="store_true", help="print the JSON line only, write nothing")
    try:
        given = parser.parse_args(argv).as_dict()
        only_json = given.pop("json")
        config = EvaluateConfig(**given)
        known = suites()
        if config.suite not in known:
            raise InputError(f"--suite: unknown suite {config.suite!r}; known: {', '.join(known)}")
        suite = known[config.suite]
        changes: dict[str, Any] = {
            k: tuple(v) for k in ("policies", "workloads", "loads") if (v := getattr(config, k)) is not None
        }
        if config.seeds is not None:
            changes["seeds"] = config.seeds
        suite = replace(suite, **changes)
        frame = evaluate(suite, config.profile, config.streams, config.workers, progress=sys.stderr.isatty())
    except (InputError, ArgumentError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    result = {"suite": suite.name, "loads": list(suite.loads), "policies": digest(frame)}
    if not only_json:
        from agents.report import write_report

        print(f"report: {write_report(frame, suite, asdict(config), Path(config.out))}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
