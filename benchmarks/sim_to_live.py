"""Simulated against live: ``python -m benchmarks.sim_to_live``.

The same requests under the same policies, live on this machine and in the simulator with its profile, and the differences.
The simulator's truth gets the engine's overheads and the noise of batches beside it, measured in runs that are not compared
(serving.observers.overhead), and the speed of the machine over each live run, which is an input to both, as the arrivals are.
The report says what each of these explains and what remains. ``--quick`` takes under a minute, ``--full`` a quarter of an hour.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
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
from benchmarks.live.report import sim_to_live_table, write_report
from benchmarks.live.runs import LiveRun, LiveSettings, make_cells, run_all
from benchmarks.live.simulated import ON_TIME, as_served, log_slowdown_of, simulate
from envs.profiles.fit import fit
from envs.profiles.profile import Profile
from serving.observers.overhead import Overhead, OverheadMeter, measure_overhead
from serving.profiler import ProfilerConfig, profile_device
from serving.replay.live_runs import Machine, capacity_rps, open_machine
from traces.files import atomic_write_text
from traces.machine import MachineInfo
from traces.workload import HIGH, LOW

TIE_POINTS = 1.0  # policies whose live weighted violations are closer than this have no order to keep
CALIBRATE_S = 4.0
# Large batches on all streams, single requests on all streams, and one batch per core.
CALIBRATE_WITH = ("fifo", "priority-edf", "strait")
CALIBRATE_SEED = 1000  # far from the seeds of what is compared
TRUTHS = ("profile", "+ delays", "+ slowdowns", "+ noise", "+ speed")


@dataclass
class SimToLiveBenchmark(LiveSettings):
    """What to compare.

    Attributes:
        trace: arrivals, as for serve.py --replay.
        worlds: simulated runs for each live one, with different noise.
        profile_first: measure interference on this machine (a minute) rather than take that of the shipped profile.
        quick: one short repetition, under a minute.
        full: long repetitions, for figures to be quoted.

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
    profile_first: bool = False
    quick: bool = False
    full: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unless_positive("worlds")
        if self.quick:
            self.duration, self.repetitions = 1.0, 1
        elif self.full:
            self.duration, self.repetitions = 10.0, 5


def describe(tables: Sequence[pd.DataFrame], streams: int, sizes: Sequence[int]) -> dict[str, Any]:
    """What is compared of one cell: the same for live and simulated tables of requests, pooled over runs."""
    pooled, busy_ms, span_ms, base = [], 0.0, 0.0, 0
    for table in tables:
        ran = table[table["batch_id"] >= 0]
        start = (ran["arrival_ms"] + ran["queue_ms"]).groupby(ran["batch_id"]).min()
        finish = ran["finish_ms"].groupby(ran["batch_id"]).max()
        busy_ms += float((finish - start).sum())
        # To the last batch: requests that no policy dispatches any more end by a timer live, with the episode in simulation.
        span_ms += streams * max(float(finish.max() - table["arrival_ms"].min()), 0.0) if len(ran) else 0.0
        batch = table["batch_id"].to_numpy()
        pooled.append(table.assign(batch_id=np.where(batch >= 0, batch + base, -1)))
        base += int(batch.max(initial=0)) + 1
    whole = pd.concat(pooled, ignore_index=True)
    metrics = summarise(whole)
    ran_in = whole["batch_id"].to_numpy()
    count = np.unique(ran_in[ran_in >= 0], return_counts=True)[1]
    rates = 100 * np.array([metrics[tag] for tag in metric.VIOLATION])
    total = np.array([np.sum(whole["priority"] == priority) for priority in (HIGH, LOW)])
    return {
        "high": rates[HIGH],
        "low": rates[LOW],
        "weighted": float(weighted_rate(rates * total, total)),
        "p50_ms": metrics[metric.LATENCY_P50_MS],
        "p99_ms": metrics[metric.LATENCY_P99_MS],
        "p99_high_ms": metrics[metric.LATENCY_HIGH_P99_MS],
        "busy": busy_ms / max(span_ms, 1e-9),
        "batch_sizes": [float(np.mean(count == size)) if len(count) else 0.0 for size in sizes],
    }


def calibrate(machine: Machine, config: SimToLiveBenchmark, capacity: float, repetition: int) -> list[OverheadMeter]:
    """Short runs that are not compared, for overheads and slowdowns in each regime: see `CALIBRATE_WITH`."""
    seconds = min(CALIBRATE_S, config.duration)
    short = replace(config, loads=[0.9], repetitions=1, duration=seconds, quick=False, full=False)
    seed = config.seed + CALIBRATE_SEED + repetition
    cells = make_cells(machine.profile, [config.trace], capacity, short, seed)
    return [one.meter for one in run_all(machine, CALIBRATE_WITH, cells)]


def truths(profile: Profile, overhead: Overhead) -> dict[str, Profile]:
    """Truths that include ever more: the profile as calibrated, then the engine's delays, slowdowns and noise beside it.

    The last has the noise that is left when the speed of the cores over each run is given, too.
    """
    delayed = overhead.with_delays(profile)
    slowed = overhead.slowdowns(delayed)
    known = (profile, delayed, slowed, overhead.noise(slowed), overhead.put_into(profile))
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
            live = describe([one.table for one in mine], config.streams, profile.batch_sizes)
            for name, truth in known.items():
                tables = []
                for one in mine:
                    late_ms = overhead.late_ms if truth.timer_ms > 0 else ON_TIME
                    speed = speeds[id(one)] if name == given else None
                    args = (profile, truth, policy, one.offered, config.streams, config.worlds)
                    tables += simulate(*args, late_ms, speed)
                simulated = describe(tables, config.streams, profile.batch_sizes)
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
        live, simulated = rows["live_weighted"].to_numpy(), rows["sim_weighted"].to_numpy()
        names = rows["policy"].to_numpy()
        for i in range(len(rows)):
            for j in range(i):
                gap = live[i] - live[j]
                if abs(gap) > TIE_POINTS and gap * (simulated[i] - simulated[j]) <= 0:
                    swapped.append(f"{names[j]} and {names[i]} at {load:g}")
    return {
        "max_violation_difference_points": float(np.nanmax(points)),
        "mean_violation_difference_points": float(np.nanmean(points)),
        "max_p99_difference_pct": float(np.nanmax(ratio)),
        "mean_p99_difference_pct": float(np.nanmean(ratio)),
        "same_order": not swapped,
        "swapped": swapped,
    }


def fitted_base(config: SimToLiveBenchmark) -> Profile | None:
    """The profile of a quick campaign on this machine; None: the one that ships, calibrated."""
    if not config.profile_first:
        return None
    settings = ProfilerConfig(config.out, config.device, config.streams, list(config.models), quick=True)
    return fit(profile_device(settings, "python -m benchmarks.sim_to_live", sys.stderr.isatty()), "measured")


def run_live_part(
    config: SimToLiveBenchmark, machine: Machine, say: Progress
) -> tuple[float, list[LiveRun], list[OverheadMeter]]:
    """Capacity of the machine in requests/s, the runs to compare, and the meters of those that calibrate."""
    capacity = capacity_rps(machine, 2.0 if config.quick else 5.0, config.seed)
    say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
    cells = make_cells(machine.profile, [config.trace], capacity, config)
    runs: list[LiveRun] = []
    meters: list[OverheadMeter] = []
    for repetition in range(config.repetitions):
        meters += calibrate(machine, config, capacity, repetition)
        here = [cell for cell in cells if cell.repetition == repetition]
        runs += run_all(machine, config.policies, here, say)
    return capacity, runs, meters


def measure(config: SimToLiveBenchmark) -> dict[str, Any]:
    """Measure, and write the report, results.json and the profile of the machine as it serves.

    Raises:
        InputError: an unknown model or trace.
    """
    say = Progress()
    base = fitted_base(config)
    with closing(open_machine(config.models, config.streams, config.device, base, config.seed)) as machine:
        capacity, runs, meters = run_live_part(config, machine, say)
        info = machine.info
    overhead = measure_overhead(meters, info)
    say(f"overheads: {overhead.figures}; simulating the same")
    frame, slower = compare(runs, machine.profile, overhead, info, config)
    final = frame[frame["truth"] == TRUTHS[-1]].reset_index(drop=True)
    record = {
        "device": machine.executor.device.name,
        "capacity_rps": capacity,
        "seconds": say.seconds,
        "config": asdict(config),
        "overheads": overhead.figures,
        "slower_by_policy": slower,
        "explained": {name: verdict(frame[frame["truth"] == name]) for name in TRUTHS},
        "cells": json.loads(final.drop(columns="truth").to_json(orient="records")),
        **verdict(final),
    }
    out = Path(config.out)
    whole = {"machine": machine_name(), **record}
    atomic_write_text(out / "results.json", json.dumps(whole, indent=1) + "\n")
    say(f"report: {write_report(whole, out)}")
    as_served(machine.profile, overhead, runs, info).save(out / "profile.json")
    say(f"profile of this machine as it serves, to train on (train.py --config live): {out / 'profile.json'}")
    return record


main = as_command(measure, SimToLiveBenchmark, "sim_to_live", __doc__, sim_to_live_table)

if __name__ == "__main__":
    sys.exit(main())
