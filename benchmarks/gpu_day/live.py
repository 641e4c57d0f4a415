"""Policies live on the networks, and the same simulated with the profile that was just fitted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pandas as pd

from agents.learned.policy_file import SHIPPED
from benchmarks.common.timing import Progress
from benchmarks.gpu_day.networks import load_networks
from benchmarks.gpu_day.profile import STREAMS, fitted_profile
from benchmarks.gpu_day.step import Context
from benchmarks.live.headline import LiveBenchmark, claims, frame_of, table_of
from benchmarks.live.runs import LiveRun, make_cells, run_all
from benchmarks.sim_to_live import VERDICT, SimToLiveBenchmark, compare_on
from serving.replay.live_runs import Machine, capacity_rps, open_machine
from traces.files import atomic_path

LOADS = [0.8, 1.1]
POLICIES = ["fifo", "edf", "triton", "clockwork", "strait"]
TRACE = "azure_llm_2023"
SLOT_S = 2.0  # that a policy serves before the next one serves the same requests
WORLDS = 4
SIMULATED_REQUESTS = 15_000  # which take some ten seconds, with five truths and four worlds
CALIBRATING = 3  # short runs in front of those that are compared


def opened(context: Context) -> Machine:
    """The device with the networks, as the profile knows it; without a profile, only what is measured alone is known."""
    return open_machine(load_networks(context.device, context.models), STREAMS, context.device, fitted_profile(context))


def live(context: Context) -> dict[str, Any]:
    """Every policy serves each slot of requests once; as many slots as there is time for, with results after each."""
    slot_s = min(SLOT_S, context.seconds / 50)
    config = LiveBenchmark(str(context.folder), [*POLICIES, *SHIPPED], LOADS, slot_s, 1, device=context.device)
    runs: list[LiveRun] = []
    found: dict[str, Any] = {}
    with closing(opened(context)) as machine:
        capacity = capacity_rps(machine, 2 * slot_s)
        print(f"{time.monotonic() - context.begun:.0f} s: capacity {capacity:.0f} requests/s", flush=True)
        round_s, rounds = 0.0, 0
        while not runs or context.left_s > 1.2 * round_s:
            begun = time.monotonic()
            first = rounds % len(config.policies)
            order = [*config.policies[first:], *config.policies[:first]]
            cells = make_cells(machine.profile, [TRACE], capacity, config, seed=rounds)
            runs += run_all(machine, order, [replace(cell, repetition=rounds) for cell in cells])
            found = results(context, runs, capacity)
            rounds, round_s = rounds + 1, time.monotonic() - begun
    return found


def results(context: Context, runs: Sequence[LiveRun], capacity: float) -> dict[str, Any]:
    """The table of policies, saved with every request."""
    frame = frame_of(runs)
    rows = table_of(frame, ["strait", *SHIPPED])
    found = {
        "capacity_rps": capacity,
        "loads": LOADS,
        "traces": [TRACE],
        "policies": rows,
        "claims": claims(frame, frame),
        "results": [one.result for one in runs],
    }
    context.save("live.json", found)
    tables = [
        one.table.assign(policy=one.policy, load=one.offered.load, repetition=one.offered.repetition) for one in runs
    ]
    with atomic_path(context.folder / "requests.parquet") as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, compression="zstd", index=False)
    keys = ("high", "low", "weighted", "p99_high_ms", "goodput")
    by_policy = {row["policy"]: {key: row[key] for key in keys} for row in rows}
    return {"capacity_rps": capacity, "rounds": len(runs) // (len(rows) * len(LOADS)), **by_policy}


def simulated(context: Context) -> dict[str, Any]:
    """Live and simulated figures of the same requests; see benchmarks.sim_to_live."""
    say = Progress()
    cells = len(LOADS) * len(POLICIES) + CALIBRATING
    config = SimToLiveBenchmark(
        str(context.folder), POLICIES, LOADS, repetitions=1, device=context.device, worlds=WORLDS, quick=False
    )
    with closing(opened(context)) as machine:
        probed = capacity_rps(machine, 1.0)
        seconds = min(0.5 * context.left_s / cells, SIMULATED_REQUESTS / (probed * cells))
        config = replace(config, duration=max(seconds, 0.2))
        record, _, _ = compare_on(machine, config, say)
    context.save("simulated.json", record)
    kept = ("capacity_rps", *VERDICT)
    return {"duration_s": config.duration} | {key: record[key] for key in kept}
