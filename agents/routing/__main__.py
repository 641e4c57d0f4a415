"""Routers compared on a simulated cluster: ``python -m agents.routing --accelerators 64``.

The same arrivals and the same noise for each router; violations, and the paired difference of weighted violations from power of
two with a 95 % bootstrap interval over the seeds. A load is a share of the capacity that the accelerators have together.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from agents.evaluation.statistics import bootstrap, difference, violations, weighted_rate
from agents.evaluation.suites import check_workload, seen_models, workload_for
from agents.routing.base import RouterKind
from agents.routing.registry import router, routers
from agents.routing.simulate import ClusterConfig, cluster_policy, run_cluster
from envs.profiles.profile import Profile
from envs.simulation.capacity import measure_capacity
from traces.command import run_command
from traces.files import rounded
from traces.settings import LARGEST_SEED, check_settings
from traces.worker_pool import results, worker_pool
from traces.workload import WorkloadConfig

REFERENCE = "power_of_two"
ALL = "all"


@dataclass(frozen=True)
class RoutingConfig(ClusterConfig):
    """What to compare, on which cluster.

    Attributes:
        profile: of each: shipped profile by name, or a JSON file written by envs.fit.
        policy: on each: name, or path of a checkpoint.
        routers: names; empty: all.
        workloads: kinds of arrivals at the cluster, see agents.evaluate.
        loads: offered loads, as shares of the capacity of all.
        seeds: number of seeds.
        first_seed: the first of them.
        duration_ms: length of each run.
        workers: processes; all cores by default.
        cluster: run on Ray in place of processes: local, auto or ray://HOST:PORT; needs strait-rl[ray].
        json: print the JSON line only.
    """

    profile: str = "gpu-v100"
    policy: str = "strait"
    routers: list[str] = field(default_factory=list)
    workloads: list[str] = field(default_factory=lambda: ["poisson", "bursty"])
    loads: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    seeds: int = 10
    first_seed: int = 1
    duration_ms: float = 1000.0
    workers: int | None = None
    cluster: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(
            self,
            "--",
            {"seeds": 1, "workers": 1, "first_seed": 0},
            {"loads": 0, "duration_ms": 0},
            {"first_seed": LARGEST_SEED},
        )


class Cell(NamedTuple):
    """What one process runs at a time: all routers on the same arrivals.

    Attributes:
        config: the comparison.
        capacity_rps: of all accelerators together.
        workload: kind of arrivals.
        load: as a share of the capacity.
        seed: of arrivals, noise and draws.
    """

    config: RoutingConfig
    capacity_rps: float
    workload: str
    load: float
    seed: int


def run_cell(cell: Cell) -> list[dict[str, Any]]:
    """One row for each router; ``policy`` is the router, as the statistics call what they compare."""
    config, capacity_rps, *labels = cell
    profile = _profile(config)
    policy = cluster_policy(config.policy, config.profile, profile)
    workload = workload_for(
        cell.workload, cell.load * capacity_rps, config.duration_ms, profile, WorkloadConfig(), cell.seed
    )
    rows = []
    for kind in _routers(config):
        violated, total = violations(run_cluster(profile, config, policy, kind, workload, cell.seed).count)
        high, low = (violated / total.clip(1)).tolist()
        rates = {"high": high, "low": low, "weighted": float(weighted_rate(violated, total))}
        rows.append({"policy": kind.name} | dict(zip(("workload", "load", "seed"), labels)) | rates)
    return rows


def compare(config: RoutingConfig, progress: bool = False) -> pd.DataFrame:
    """Run all cells on all cores, or on a Ray cluster: one row for each router, workload, load and seed.

    Raises:
        InputError: an unknown profile, policy, router or workload.
    """
    profile = _profile(config)
    cluster_policy(config.policy, config.profile, profile)
    _routers(config)
    for name in config.workloads:
        check_workload(name, profile)
    capacity_rps = measure_capacity(profile, config.streams) * config.capacity()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    cells = [Cell(config, capacity_rps, *labels) for labels in product(config.workloads, config.loads, seeds)]
    with worker_pool(config.workers, config.cluster) as pool:
        found = results([pool.submit(run_cell, cell) for cell in cells], "run", "routers", progress)
    return pd.DataFrame([row for rows in found for row in rows])


def _profile(config: RoutingConfig) -> Profile:
    full = Profile.load(config.profile)
    return full.select(seen_models(full))


def _routers(config: RoutingConfig) -> list[RouterKind]:
    return [router(name) for name in config.routers or routers()]


def digest(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rates in percent by workload, load and router, and the paired difference from power of two: [low, mean, high].

    Of several workloads, the rows of `ALL` are over the runs of all of them.
    """
    groups = [*frame.groupby(["workload", "load"], sort=False)]
    if frame["workload"].nunique() > 1:
        groups += [((ALL, load), group) for load, group in frame.groupby("load", sort=False)]
    rows = []
    for (workload, load), group in groups:
        for name, mine in group.groupby("policy", sort=False):
            row: dict[str, Any] = {"workload": workload, "load": load, "router": name}
            row |= {column: 100 * float(mine[column].mean()) for column in ("high", "low", "weighted")}
            if REFERENCE in set(group["policy"]):
                row["difference"] = list(bootstrap(100 * difference(group, str(name), REFERENCE)))
            rows.append(row)
    return rows


def tabulate(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = [
        f"{'workload':<10}{'load':>5}  {'router':<20}{'high %':>8}{'low %':>8}{'weighted %':>11}   from {REFERENCE}"
    ]
    for row in rows:
        line = f"{row['workload']:<10}{row['load']:>5g}  {row['router']:<20}"
        line += f"{row['high']:>8.2f}{row['low']:>8.2f}{row['weighted']:>11.2f}"
        if "difference" in row and row["router"] != REFERENCE:
            low, mean, high = row["difference"]
            line += f"   {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(line)
    return "\n".join(lines)


def run_command_line(config: RoutingConfig) -> None:
    """Run what the settings ask for; the JSON line comes last."""
    rows = digest(compare(config, progress=sys.stderr.isatty()))
    if not config.json:
        print(tabulate(rows))
    settings = {name: value for name, value in asdict(config).items() if name not in ("json", "workers", "cluster")}
    print(json.dumps(rounded(settings | {"routers": rows}, 5)))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_command_line, RoutingConfig, argv, "python -m agents.routing", __doc__)


if __name__ == "__main__":
    sys.exit(main())
