"""Policies live on real traces: the headline table (``python -m benchmarks.live``).

Every policy serves the same requests on this machine, one after another in turn, with real models behind the live engine and
the parameters that policies take live (agents.learned.names.SERVED). There are arrivals of real traces (their fitted twins
where the traces are absent), loads around the measured capacity, and several repetitions with other requests; means with
bootstrap intervals over repetitions, and paired differences. Those are given once as they were, and once less what the
simulator says that the machine's changes of speed made of them. A run is cut into short turns, which all policies serve
before the next one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from agents.evaluation import metric
from agents.evaluation.statistics import bootstrap, difference, weighted_rate
from agents.learned.policy_file import SHIPPED
from benchmarks.common.timing import machine as machine_name
from benchmarks.live.runs import LiveRun, check_amounts, check_policies, in_turns, make_cells, run_all
from benchmarks.live.simulated import at_common_speed
from envs.profiles.profile import Profile
from serving.models.builtin.registry import DEFAULT_MODELS
from serving.replay.live_runs import capacity_rps, open_machine
from traces.command import run_command
from traces.files import atomic_write_text

RATES = ("high", "low", "weighted")  # violations in percent


@dataclass
class LiveConfig:
    """What to serve.

    Attributes:
        out: folder of results.
        policies: who serves; a policy.safetensors stands for itself.
        traces: arrivals, as for serve.py --replay.
        loads: offered loads over the measured capacity.
        duration: seconds of arrivals of each run; long enough for the trace's slow changes of rate to show.
        turn: seconds that a policy serves before it is the next one's turn at the same requests, on an engine that starts
            without having learned; the speed of a shared machine changes within tens of seconds.
        repetitions: runs of each policy, trace and load.
        models: built-in names, or NAME=SOURCE.
        high_fraction: share of high-priority requests.
        profile: what the schedulers are told of interference: a profile by name, or a JSON file.
        streams: batches in flight.
        device: auto, cpu, cuda or cuda:N.
        seed: of the first repetition's requests.

    Raises:
        InputError: a setting is out of range.
    """

    out: str = "runs/live"
    policies: list[str] = field(default_factory=lambda: ["fifo", "edf", "clockwork", "triton", "strait", *SHIPPED])
    traces: list[str] = field(default_factory=lambda: ["azure_llm_2023", "mooncake"])
    loads: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    duration: float = 20.0
    turn: float = 5.0
    repetitions: int = 3
    models: list[str] = field(default_factory=lambda: list(DEFAULT_MODELS))
    high_fraction: float = 0.3
    profile: str = "cpu2"
    streams: int = 4
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_amounts(self, ("duration", "turn", "repetitions"))


def frame_of(runs: Sequence[LiveRun], rates: np.ndarray | None = None) -> pd.DataFrame:
    """One row a run, in the columns of ``agents.evaluation.statistics``: workload, load, seed, policy, violations in percent.

    Violations are those of all requests of a run; other columns are means over its turns.

    Args:
        runs: the turns of all runs. rates: (R, 2) violations by priority in percent to take in place of those measured.
    """
    rows = []
    for i, one in enumerate(runs):
        high, low = (100 * one.result[tag] for tag in metric.VIOLATION) if rates is None else rates[i]
        n_high = int((one.table["priority"] == 0).sum())
        rows.append(
            {
                "workload": one.offered.trace,
                "load": one.offered.load,
                "seed": one.offered.repetition,
                "policy": one.policy,
                "high": high,
                "low": low,
                "n_high": n_high,
                "n_low": len(one.table) - n_high,
                "p99_high_ms": one.result[metric.LATENCY_HIGH_P99_MS],
                "goodput": one.result[metric.GOODPUT_RPS],
                "decision_p99_us": one.result[metric.DECISION_P99_US],
            }
        )
    turns = pd.DataFrame(rows)
    for rate in ("high", "low"):
        turns[rate] *= turns[f"n_{rate}"]
    by_run = turns.groupby(["workload", "load", "seed", "policy"], sort=False)
    sums = by_run[["high", "low", "n_high", "n_low"]].sum()
    for rate in ("high", "low"):
        sums[rate] /= sums[f"n_{rate}"].clip(lower=1)
    frame = sums.join(by_run[["p99_high_ms", "goodput", "decision_p99_us"]].mean()).reset_index()
    columns = (frame[name].to_numpy() for name in ("high", "low", "n_high", "n_low"))
    return frame.assign(weighted=weighted_rate(*columns))


def table_of(frame: pd.DataFrame, references: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each policy over traces, loads and repetitions: rates and paired differences as [low, mean, high]."""
    rows = []
    for policy, mine in frame.groupby("policy", sort=False):
        row: dict[str, Any] = {"policy": policy, "runs": len(mine)}
        row |= {rate: _rounded(bootstrap(mine[rate].to_numpy())) for rate in RATES}
        row |= {name: float(mine[name].fillna(0.0).mean()) for name in ("p99_high_ms", "goodput", "decision_p99_us")}
        for reference in references:
            if reference != policy:
                row[f"minus_{reference}"] = {
                    rate: _rounded(bootstrap(difference(frame, str(policy), reference, rate))) for rate in RATES
                }
        rows.append(row)
    return rows


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]


def claims(frame: pd.DataFrame, common: pd.DataFrame) -> dict[str, Any]:
    """What the headline says, as far as those it is about were run: each with the interval of the difference in points.

    Args:
        frame: of the runs as they were. common: the same at a common speed (benchmarks.live.simulated).
    """
    names = list(dict.fromkeys(frame["policy"]))
    learned = [name for name in names if name in SHIPPED or name.endswith(".safetensors")]
    straits = [name for name in names if name.startswith("strait")]
    rivals = [name for name in names if name not in (*straits, *learned)]
    pairs = [(name, rival, "high") for name in straits for rival in rivals]
    pairs += [(name, "strait", "weighted") for name in learned if "strait" in names]
    out = {}
    for policy, rival, rate in pairs:
        measured, steadied = (_rounded(bootstrap(difference(f, policy, rival, rate))) for f in (frame, common))
        out[f"{policy} below {rival} in {rate}"] = {
            "points": measured,
            "clear": measured[2] < 0,
            "at_common_speed": {"points": steadied, "clear": steadied[2] < 0},
        }
    return out


def print_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The table for people, with intervals."""
    table = Table(title="live, deadline violations, mean and 95 % interval over runs", title_justify="left")
    for i, head in enumerate(("policy", "high", "low", "weighted", "p99 high", "in time", "decision p99")):
        table.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        shown = [f"{mean:.2f} % [{low:.2f}, {high:.2f}]" for low, mean, high in (row[rate] for rate in RATES)]
        times = (f"{row['p99_high_ms']:.1f} ms", f"{row['goodput']:.1f}/s", f"{row['decision_p99_us']:.0f} us")
        table.add_row(row["policy"], *shown, *times)
    console.print(table)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Weighted violations against load, one panel a trace, with intervals over repetitions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(frame["workload"]))
    figure, row = pyplot.subplots(1, len(traces), figsize=(4.4 * len(traces), 3.4), squeeze=False, layout="tight")
    for axes, trace in zip(row[0], traces, strict=True):
        here = frame[frame["workload"] == trace]
        for policy, mine in here.groupby("policy", sort=False):
            loads = sorted(set(mine["load"]))
            ends = np.array([bootstrap(mine.loc[mine["load"] == load, "weighted"].to_numpy()) for load in loads])
            bars = np.abs(ends[:, [0, 2]] - ends[:, [1]]).T
            axes.errorbar(loads, ends[:, 1], bars, marker="o", markersize=3, capsize=2, label=Path(str(policy)).stem)
        axes.set_title(trace, fontsize=9)
        axes.set_xlabel("offered load over capacity")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    row[0][0].set_ylabel("weighted violations (%)")
    row[0][0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run_benchmark(config: LiveConfig) -> dict[str, Any]:
    """Run it; returns what is printed as the last line.

    Raises:
        InputError: an unknown policy, model or trace.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr)

    policies = check_policies(config.policies)
    machine = open_machine(config.models, config.streams, config.device, Profile.load(config.profile), config.seed)
    try:
        capacity = capacity_rps(machine, seed=config.seed)
        say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
        cells = make_cells(
            machine.profile,
            config.traces,
            config.loads,
            config.repetitions,
            capacity,
            config.duration,
            config.high_fraction,
            config.seed,
        )
        cells = in_turns(cells, config.turn)
        runs = list(run_all(machine, policies, cells, say))
    finally:
        machine.close()
    say("simulating what the machine's changes of speed made of the rates")
    frame = frame_of(runs)
    common = frame_of(runs, at_common_speed(runs, machine.profile, machine.info, config.streams))
    rows = table_of(frame, [name for name in ("strait", *SHIPPED) if name in policies])
    print_table(rows, Console(width=130, stderr=True))
    summary = {
        "device": machine.executor.device.name,
        "machine": machine_name(),
        "capacity_rps": capacity,
        "loads": config.loads,
        "traces": config.traces,
        "seconds": time.monotonic() - began,
        "policies": rows,
        "claims": claims(frame, common),
    }
    out = Path(config.out)
    whole = summary | {"config": asdict(config), "results": [one.result for one in runs]}
    atomic_write_text(out / "results.json", json.dumps(whole, indent=1) + "\n")
    draw(frame, out / "live.png")
    return summary


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(
        lambda config: print(json.dumps(run_benchmark(config))), LiveConfig, argv, "python -m benchmarks.live", __doc__
    )


if __name__ == "__main__":
    sys.exit(main())
