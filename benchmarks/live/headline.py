"""Policies live on real traces: the headline table (``python -m benchmarks.live``).

Every policy serves the same requests on this machine with real models behind the live engine and the parameters that policies
take live (agents.learned.names.SERVED). Arrivals are those of real traces (their fitted twins where the traces are absent), at
loads around the measured capacity, in several repetitions with other requests. Figures are means with bootstrap intervals over
repetitions, and paired differences: raw, and corrected for drift in machine speed (benchmarks.live.simulated). A run is cut
into short time slots, each of which all policies serve before the next one begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.evaluation import metric
from agents.evaluation.statistics import bootstrap, difference, weighted_rate
from agents.learned.policy_file import SHIPPED
from benchmarks.common.command import DIGITS, as_command
from benchmarks.common.timing import Progress
from benchmarks.live.report import headline_table
from benchmarks.live.runs import LiveRun, LiveSettings, in_slots, make_cells, run_all
from benchmarks.live.simulated import drift_corrected
from envs.profiles.profile import Profile
from serving.replay.live_runs import capacity_rps, open_machine
from traces.files import atomic_write_text, rounded
from traces.settings import check_settings
from traces.workload import HIGH, LOW

RATES = ("high", "low", "weighted")  # violations in percent
# Means over the slots of a run.
MEANS = {
    "p99_high_ms": metric.LATENCY_HIGH_P99_MS,
    "goodput": metric.GOODPUT_RPS,
    "decision_p99_us": metric.DECISION_P99_US,
}


@dataclass
class LiveBenchmark(LiveSettings):
    """What to serve.

    Attributes:
        traces: arrivals, as for serve.py --replay.
        slot: seconds that a policy serves before the next one serves the same requests, each on an engine that has not learned
            yet; the speed of a shared machine changes within tens of seconds.
        profile: what the schedulers know of interference: a profile by name, or a JSON file.

    Raises:
        InputError: a setting is out of range.
    """

    traces: list[str] = field(default_factory=lambda: ["azure_llm_2023", "mooncake"])
    slot: float = 5.0
    profile: str = "cpu2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, "--", above={"slot": 0})


def frame_of(runs: Sequence[LiveRun], rates: np.ndarray | None = None) -> pd.DataFrame:
    """One row per run, in the columns of ``agents.evaluation.statistics``: workload, load, seed, policy, violations in percent.

    Violations are those of all requests of a run; other columns are means over its slots.

    Args:
        runs: the slots of all runs.
        rates: (R, 2) violations by priority in percent to take in place of those measured.
    """
    rows = []
    for i, one in enumerate(runs):
        percent = [100 * one.result[tag] for tag in metric.VIOLATION] if rates is None else rates[i]
        n = np.bincount(one.table["priority"], minlength=2)
        rows.append(
            {
                "workload": one.offered.trace,
                "load": one.offered.load,
                "seed": one.offered.repetition,
                "policy": one.policy,
            }
            | {"high": percent[HIGH] * n[HIGH], "low": percent[LOW] * n[LOW], "n_high": n[HIGH], "n_low": n[LOW]}
            | {name: one.result[tag] for name, tag in MEANS.items()}
        )
    by_run = pd.DataFrame(rows).groupby(["workload", "load", "seed", "policy"], sort=False)
    sums = by_run[["high", "low", "n_high", "n_low"]].sum()
    violated, total = sums[["high", "low"]].to_numpy(), sums[["n_high", "n_low"]].to_numpy()
    sums[["high", "low"]] = violated / np.maximum(total, 1)
    frame = sums.assign(weighted=weighted_rate(violated, total)).join(by_run[list(MEANS)].mean())
    return frame.reset_index()


def table_of(frame: pd.DataFrame, references: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each policy over traces, loads and repetitions: rates and paired differences as [low, mean, high]."""
    rows = []
    for policy, mine in frame.groupby("policy", sort=False):
        row: dict[str, Any] = {"policy": policy, "runs": len(mine)}
        row |= {rate: _interval(mine[rate]) for rate in RATES}
        row |= {name: float(mine[name].fillna(0.0).mean()) for name in MEANS}
        for reference in references:
            if reference != policy:
                row[f"minus_{reference}"] = {
                    rate: _interval(difference(frame, str(policy), reference, rate)) for rate in RATES
                }
        rows.append(row)
    return rows


def _interval(values: np.ndarray | pd.Series) -> list[float]:
    return rounded(bootstrap(np.asarray(values)), DIGITS)


def claims(frame: pd.DataFrame, steady: pd.DataFrame) -> dict[str, Any]:
    """The comparisons of the headline among the policies that ran, each with the interval of the difference in points.

    Args:
        frame: of the runs as they were measured.
        steady: the same corrected for drift in machine speed (benchmarks.live.simulated).
    """
    names = list(dict.fromkeys(frame["policy"]))
    learned = [name for name in names if name in SHIPPED or name.endswith(".safetensors")]
    straits = [name for name in names if name.startswith("strait")]
    rivals = [name for name in names if name not in (*straits, *learned)]
    pairs = [(name, rival, "high") for name in straits for rival in rivals]
    pairs += [(name, "strait", "weighted") for name in learned if "strait" in names]
    out = {}
    for policy, rival, rate in pairs:
        raw, corrected = (_interval(difference(f, policy, rival, rate)) for f in (frame, steady))
        out[f"{policy} - {rival}, {rate}"] = {
            "points": raw,
            "clear": raw[2] < 0,
            "corrected_for_drift": {"points": corrected, "clear": corrected[2] < 0},
        }
    return out


def measure(config: LiveBenchmark) -> dict[str, Any]:
    """Measure, write results.json, and return the summary.

    Raises:
        InputError: an unknown model or trace.
    """
    say = Progress()
    base = Profile.load(config.profile)
    with closing(open_machine(config.models, config.streams, config.device, base, config.seed)) as machine:
        capacity = capacity_rps(machine, seed=config.seed)
        say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
        cells = in_slots(make_cells(machine.profile, config.traces, capacity, config), config.slot)
        runs = list(run_all(machine, config.policies, cells, say))
    say("simulating the effect of the machine's changes of speed on the rates")
    frame = frame_of(runs)
    steady = frame_of(runs, drift_corrected(runs, machine.profile, machine.info, config.streams))
    rows = table_of(frame, [name for name in ("strait", *SHIPPED) if name in config.policies])
    summary = {
        "device": machine.executor.device.name,
        "capacity_rps": capacity,
        "loads": config.loads,
        "traces": config.traces,
        "seconds": say.seconds,
        "policies": rows,
        "claims": claims(frame, steady),
    }
    out = Path(config.out)
    whole = summary | {"config": asdict(config), "results": [one.result for one in runs]}
    atomic_write_text(out / "results.json", json.dumps(whole, indent=1) + "\n")
    return summary


main = as_command(measure, LiveBenchmark, "live", __doc__, headline_table)
