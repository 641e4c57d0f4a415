"""Simulated against live: ``python -m benchmarks.sim_to_live``.

The same requests under the same policies, live on this machine and in the simulator with its profile, and the differences.
The simulator's truth gets the engine's overheads and the noise of batches beside it, measured in runs that are not compared
(serving.observers.overhead), and the speed of the machine over each live run, which is an input to both, as the arrivals are.
The table says what each of these explains and what remains. ``--quick`` takes under a minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.evaluation import metric
from agents.evaluation.statistics import weighted_rate
from agents.evaluation.summary import summarise
from benchmarks.common.command import as_command
from benchmarks.common.timing import Progress
from benchmarks.common.timing import machine as machine_name
from benchmarks.live.report import draw, sim_to_live_table
from benchmarks.live.runs import LiveRun, LiveSettings, make_cells, run_all
from benchmarks.live.simulated import ON_TIME, as_served, log_slowdown_of, simulate
from envs.profiles.profile import Profile
from envs.profiles.refit import with_noise, with_slowdowns
from serving.observers.overhead import Overhead, OverheadMeter, measure_overhead
from serving.replay.live_runs import Machine, capacity_rps, open_machine
from traces.files import atomic_write_text
from traces.machine import MachineInfo
from traces.settings import check_settings
from traces.workload import HIGH, LOW

TIE_POINTS = 1.0  # policies whose live weighted violations are closer than this have no order to keep
CALIBRATE_S = 4.0
# Large batches on all streams, single requests on all streams, and one batch per core.
CALIBRATE_WITH = ("fifo", "priority-edf", "strait")
CALIBRATE_SEED = 1000  # far from the seeds of what is compared
VERDICT = (
    "max_violation_difference_points", "mean_violation_difference_points", "max_p99_difference_pct",
    "mean_p99_difference_pct", "same_order", "swapped",
)  # fmt: skip
TRUTHS = ("profile", "+ delays", "+ slowdowns", "+ noise", "+ speed")


@dataclass
class SimToLiveBenchmark(LiveSettings):
    """What to compare.

    Attributes:
        trace: arrivals, as for serve.py --replay.
        worlds: simulated runs for each live one, with different noise.
        quick: one short repetition, under a minute.

    Raises:
        InputError: a setting is out of range.
    """

    out: str = "runs/sim-to-live"
    policies: list[str] = field(
        default_factory=lambda: ["fifo", "edf", "priority-edf", "clockwork", "triton", "strait", "ppo"]
    )
    loads: list[float] = field(default_factory=lambda: [0.6, 0.9, 1.1])
    duration: float = 5.0
    repetitions: int = 6
    trace: str = "bursty"
    worlds: int = 8
    quick: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, "--", above={"worlds": 0})
        if self.quick:
            self.duration, self.repetitions = 1.0, 1


def describe(tables: Sequence[pd.DataFrame], streams: int) -> dict[str, float]:
    """What is compared of one cell: the same for live and simulated tables of requests, pooled over runs."""
    busy_ms, span_ms = 0.0, 0.0
    for table in tables:
        ran = table[table["batch_id"] >= 0]
        start = (ran["arrival_ms"] + ran["queue_ms"]).groupby(ran["batch_id"]).min()
        finish = ran["finish_ms"].groupby(ran["batch_id"]).max()
        busy_ms += float((finish - start).sum())
        # To the last batch: requests that no policy dispatches any more end by a timer live, with the episode in simulation.
        span_ms += streams * max(float(finish.max() - table["arrival_ms"].min()), 0.0) if len(ran) else 0.0
    whole = pd.concat(tables, ignore_index=True)
    metrics = summarise(whole)
    rates = 100 * np.array([metrics[tag] for tag in metric.VIOLATION])
    total = np.bincount(whole["priority"], minlength=2)
    return {
        "high": rates[HIGH],
        "low": rates[LOW],
        "weighted": float(weighted_rate(rates * total, total)),
        "p50_ms": metrics[metric.LATENCY_P50_MS],
        "p99_ms": metrics[metric.LATENCY_P99_MS],
        "busy": busy_ms / max(span_ms, 1e-9),
    }


def calibrate(machine: Machine, config: SimToLiveBenchmark, capacity: float, repetition: int) -> list[OverheadMeter]:
    """Short runs that are not compared, for overheads and slowdowns in each regime: see `CALIBRATE_WITH`."""
    seconds = min(CALIBRATE_S, config.duration)
    short = replace(config, loads=[0.9], repetitions=1, duration=seconds, quick=False)
    seed = config.seed + CALIBRATE_SEED + repetition
    cells = make_cells(machine.profile, [config.trace], capacity, short, seed)
    return [one.meter for one in run_all(machine, CALIBRATE_WITH, cells)]


def truths(profile: Profile, overhead: Overhead) -> dict[str, Profile]:
    """Truths that include ever more: the profile as calibrated, then the engine's delays, slowdowns and noise beside it.

    The last has the noise that is left when the speed of the cores over each run is given, too.
    """
    delayed = overhead.delays.put_into(profile, overhead.timer_ms)
    slowed = with_slowdowns(delayed, overhead.log)
    known = (profile, delayed, slowed, with_noise(slowed, overhead.log), overhead.put_into(profile))
    return dict(zip(TRUTHS, known, strict=True))


def compare(
    runs: Sequence[LiveRun], profile: Profile, overhead: Overhead, info: MachineInfo, config: SimToLiveBenchmark
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Live and simulated figures, pooled over repetitions.

    Returns:
        One row for each load, policy and truth; and by policy the mean log of the factor by which its batches were slower
        than the truth has it: what the given speed may hide of an error of the truth.
    """
    known = truths(profile, overhead)
    given = TRUTHS[-1]
    speeds = {id(one): log_slowdown_of(one, known[given], info) for one in runs}
    policies = list(dict.fromkeys(one.policy for one in runs))
    rows = []
    for load in config.loads:
        for policy in policies:
            mine = [one for one in runs if one.policy == policy and one.offered.load == load]
            live = describe([one.table for one in mine], config.streams)
            for name, truth in known.items():
                tables = []
                for one in mine:
                    late_ms = overhead.late_ms if truth.timer_ms > 0 else ON_TIME
                    speed = speeds[id(one)] if name == given else None
                    args = (profile, truth, policy, one.offered, config.streams, config.worlds)
                    tables += simulate(*args, late_ms, speed)
                simulated = describe(tables, config.streams)
                rows.append(
                    {"load": load, "policy": policy, "truth": name, "requests": sum(len(one.table) for one in mine)}
                    | {f"live_{key}": value for key, value in live.items()}
                    | {f"sim_{key}": value for key, value in simulated.items()}
                )
    levels = pd.Series([speeds[id(one)].mean() if speeds[id(one)].size else np.nan for one in runs])
    by_policy = levels.groupby([one.policy for one in runs], sort=False).mean().dropna()
    return pd.DataFrame(rows), {str(policy): float(level) for policy, level in by_policy.items()}


def verdict(frame: pd.DataFrame) -> dict[str, Any]:
    """The largest differences, and whether policies that differ live have the same order in simulation."""
    points = np.concatenate([np.abs(frame[f"live_{p}"] - frame[f"sim_{p}"]) for p in ("high", "low")])
    ratio = 100 * np.abs(frame["sim_p99_ms"] / frame["live_p99_ms"] - 1)
    swapped = []
    for load, rows in frame.groupby("load"):
        for one, other in combinations(rows.to_dict("records"), 2):
            live, simulated = (other[f"{side}_weighted"] - one[f"{side}_weighted"] for side in ("live", "sim"))
            if abs(live) > TIE_POINTS and live * simulated <= 0:
                swapped.append(f"{one['policy']} and {other['policy']} at {load:g}")
    values = (float(f) for f in (np.nanmax(points), np.nanmean(points), np.nanmax(ratio), np.nanmean(ratio)))
    return dict(zip(VERDICT, (*values, not swapped, swapped), strict=True))


def compare_on(
    machine: Machine, config: SimToLiveBenchmark, say: Progress
) -> tuple[dict[str, Any], list[LiveRun], Overhead]:
    """Serve, simulate the same, and compare: the record of results.json, the runs, and what calibrated them."""
    runs: list[LiveRun] = []
    meters: list[OverheadMeter] = []
    capacity = capacity_rps(machine, 2.0 if config.quick else 5.0, config.seed)
    say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
    cells = make_cells(machine.profile, [config.trace], capacity, config)
    for repetition in range(config.repetitions):
        meters += calibrate(machine, config, capacity, repetition)
        runs += run_all(machine, config.policies, [c for c in cells if c.repetition == repetition], say)
    overhead = measure_overhead(meters, machine.info)
    say(f"overheads: {overhead.figures}; simulating the same")
    frame, slower = compare(runs, machine.profile, overhead, machine.info, config)
    final = frame[frame["truth"] == TRUTHS[-1]].reset_index(drop=True)
    record = {
        "device": machine.executor.device.name,
        "capacity_rps": capacity,
        "config": asdict(config),
        "overheads": overhead.figures,
        "slower_by_policy": slower,
        "explained": {name: verdict(frame[frame["truth"] == name]) for name in TRUTHS},
        "cells": json.loads(final.drop(columns="truth").to_json(orient="records")),
        **verdict(final),
    }
    return record, runs, overhead


def measure(config: SimToLiveBenchmark) -> dict[str, Any]:
    """Measure, and write results.json, violations.png and the profile of the machine as it serves.

    Raises:
        InputError: an unknown model or trace.
    """
    say = Progress()
    with closing(open_machine(config.models, config.streams, config.device, seed=config.seed)) as machine:
        record, runs, overhead = compare_on(machine, config, say)
        info = machine.info
    record["seconds"] = say.seconds
    out = Path(config.out)
    atomic_write_text(out / "results.json", json.dumps({"machine": machine_name(), **record}, indent=1) + "\n")
    draw(record, out / "violations.png")
    as_served(machine.profile, overhead, runs, info).save(out / "profile.json")
    say(f"profile of this machine as it serves, to train on (train.py --config live): {out / 'profile.json'}")
    return record


main = as_command(measure, SimToLiveBenchmark, "sim_to_live", __doc__, sim_to_live_table)

if __name__ == "__main__":
    sys.exit(main())
