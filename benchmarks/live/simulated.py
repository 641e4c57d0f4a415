"""Simulation of a live run: the same requests, offered as late, on cores that are as fast as they were.

It is compared with the live run (benchmarks.sim_to_live), and corrects live rates for drift: policies that ran at different
times met a machine of different speed, and the simulator says what that made of their rates (`drift_corrected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd

from agents.evaluation import metric
from agents.evaluation.rollout import request_table, run
from agents.evaluation.summary import summarise
from agents.learned.names import SERVED, resolve
from benchmarks.live.runs import LiveRun, Offered
from envs.profiles.profile import Profile
from envs.profiles.refit import KEPT_MS, KNOT_MS, measured_log_slowdown, with_measured_slowdown
from envs.simulation.simulator import Simulator
from serving.observers.overhead import Overhead, measure_overhead
from serving.observers.recorder import LEAST_MS
from traces.machine import MachineInfo
from traces.workload import Workload

ON_TIME = np.zeros(1)


def simulate(
    known: Profile,
    truth: Profile,
    policy: str,
    offered: Offered,
    streams: int,
    worlds: int,
    late_ms: np.ndarray = ON_TIME,
    log_slowdown: np.ndarray | None = None,
) -> list[pd.DataFrame]:
    """Requests of one cell in simulation, one table per world.

    Args:
        known: what the scheduler knows, as live.
        truth: what the device and the engine do.
        policy: as for ``agents.learned.names.resolve``.
        offered: the cell.
        streams: of the device.
        worlds: runs with different noise.
        late_ms: (n,) delays with which requests are offered; one is drawn for each request.
        log_slowdown: of the cores over time, see ``refit.measured_log_slowdown``; None: it drifts as the truth says.
    """
    device = with_measured_slowdown(truth.truth(streams), log_slowdown)
    workload = offered.workload
    seen = offered_late(workload, late_ms, offered.repetition)
    late = seen.arrival_ms - workload.arrival_ms
    chosen, change = resolve(policy, worlds, profile=SERVED)
    sim = Simulator(known, worlds, streams, max(len(workload), 1), tables=change(known.tables()), truth=device)
    sim.end_as_served(workload)
    run(sim, chosen, [seen], [1 + offered.repetition * worlds + e for e in range(worlds)])
    tables = [request_table(sim, e) for e in range(worlds)]
    for table in tables:
        table["arrival_ms"] -= late
        table["latency_ms"] += late
        table["queue_ms"] += late
    return tables


def offered_late(workload: Workload, late_ms: np.ndarray, seed: int) -> Workload:
    """The requests as the driver of a live run offers them: late by a timer, in order, with their absolute deadlines kept."""
    drawn = np.random.default_rng(seed).choice(late_ms, len(workload))
    arrival_ms = np.maximum.accumulate(workload.arrival_ms + drawn)
    left_ms = np.maximum(workload.arrival_ms + workload.deadline_ms - arrival_ms, LEAST_MS)
    return replace(workload, arrival_ms=arrival_ms, deadline_ms=left_ms)


def log_slowdown_of(one: LiveRun, truth: Profile, info: MachineInfo) -> np.ndarray:
    """Log slowdown of the cores over a live run, on the clock of its workload; see ``refit.measured_log_slowdown``."""
    ran = one.table[one.table["batch_id"] >= 0]
    start_ms = (ran["arrival_ms"] + ran["queue_ms"]).groupby(ran["batch_id"]).first()
    shifts = [b.decided_ms - start_ms[b.batch_id] for b in one.meter.batches if b.batch_id in start_ms.index]
    begin_ms = float(np.median(shifts)) if shifts else 0.0
    return measured_log_slowdown(truth, one.meter.log(info), begin_ms, begin_ms + float(one.table["finish_ms"].max()))


def as_served(base: Profile, overhead: Overhead, runs: Sequence[LiveRun], info: MachineInfo) -> Profile:
    """The calibrated profile ``base`` as the machine serves: with delays, slowdowns, noise, and the drift of all runs."""
    truth = overhead.put_into(base)
    measured = [one for run in runs if (one := log_slowdown_of(run, truth, info)).size]
    if not measured:
        return truth
    log_slowdown = np.concatenate(measured, axis=1)[:, : int(KEPT_MS / KNOT_MS)]
    source = (
        f"{base.source}; {len(overhead.log.batches)} batches beside an engine, {log_slowdown.shape[1]} knots of drift"
    )
    return replace(truth, name="served", log_slowdown=log_slowdown, drift_knot_ms=KNOT_MS, source=source)


def violation_rates(tables: Sequence[pd.DataFrame]) -> np.ndarray:
    """(2,) violations in percent by priority, over all tables."""
    metrics = summarise(pd.concat(tables, ignore_index=True))
    return 100.0 * np.array([metrics[tag] for tag in metric.VIOLATION])


def drift_corrected(
    runs: Sequence[LiveRun], known: Profile, info: MachineInfo, streams: int, worlds: int = 8
) -> np.ndarray:
    """Live violation rates as if all policies had met the same machine, by control variates (Lavenberg and Welch, 1981).

    For each run, subtract the rates that the simulator gives at the speed that the run's own batches show, and add the mean
    of those that it gives the same policy at the speeds of all runs on the same requests. Policies alternate, so no speed
    belongs to one of them: the simulator's error about a policy cancels, and the variance shrinks. What does not cancel is an
    error of the truth that makes batches seem slower under one policy than under another.

    Args:
        runs: of all policies, those on the same requests next to each other.
        known: what the schedulers know.
        info: the machine.
        streams: of the device.
        worlds: simulated runs for each speed.

    Returns:
        (R, 2) percent by priority, in the order of the runs.
    """
    overhead = measure_overhead([one.meter for one in runs], info)
    truth = overhead.put_into(known)
    out = []
    for _, cell in groupby(runs, key=lambda one: id(one.offered)):
        here = list(cell)
        slowdowns = [log_slowdown_of(one, truth, info) for one in here]
        for i, one in enumerate(here):
            args = (known, truth, one.policy, one.offered, streams, worlds, overhead.late_ms)
            at = np.array([violation_rates(simulate(*args, log_slowdown)) for log_slowdown in slowdowns])
            out.append(violation_rates([one.table]) - at[i] + at.mean(axis=0))
    return np.array(out)
