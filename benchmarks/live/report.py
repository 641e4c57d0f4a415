"""Tables of live results, and the report of benchmarks.sim_to_live with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pictures
from benchmarks.common.tables import interval, table
from traces.files import atomic_write_text

SHARED = "while no core is shared / another core is / its own is"
# What makes live differ from the profile: its cause, its name in the overheads, and its place in the simulator.
CAUSES = (
    ("Python between an event and the submission of a batch", "decision_ms", "part of dispatch_ms"),
    (f"worker thread wakes up and begins to copy, {SHARED}", "handover_ms", "dispatch_ms and shared_core_wait_ms"),
    (
        f"engine's thread wakes up when a batch has ended (event loop, Python's lock), {SHARED}",
        "completion_ms",
        "completion_ms and shared_core_wait_ms",
    ),
    ("event loop's timers fire at whole milliseconds", "timer_ms", "deferrals and offered requests are late"),
    ("engine's thread takes a core from the workers", "host_share", "in the middle of the residuals"),
)
NOT_MODELLED = (
    "noise of single batches: the simulator draws from the same distribution, not the same values, and from no wider one "
    "while the machine is slow, when batches vary twice as much;",
    "while the machine stands still, requests still arrive in simulation, and are dispatched;",
    "copies queue for one engine in simulation, while each CPU worker copies on its own;",
    "live, the host's share grows with the rate of events; in simulation it is the mean of the measured runs;",
    "live, batches on one core alternate in slices of a millisecond; in simulation they share it evenly except for the first "
    "slice, which the newest has, and only the wait for it is drawn.",
)
SIDES, COLOURS = ("live", "sim"), ("#d6603a", "#467ab2")


PICTURES = ("violations.png", "latency.png", "batches.png")


def headline_table(record: dict[str, Any]) -> str:
    """Of benchmarks.live: one row per policy, with intervals over repetitions, and the paired differences."""
    rows = [
        (
            row["policy"],
            *(interval(row[rate], "") for rate in ("high", "low", "weighted")),
            *(f"{row['p99_high_ms']:.1f} ms", f"{row['goodput']:.1f}/s", f"{row['decision_p99_us']:.0f} us"),
            str(row["runs"]),
        )
        for row in record["policies"]
    ]
    heads = ("policy", "high, violated (%)", "low, violated (%)", "weighted (%)")
    differences = [
        (name, interval(claim["points"]), interval(claim["corrected_for_drift"]["points"]))
        for name, claim in record["claims"].items()
    ]
    loads = ", ".join(f"{load:g}" for load in record["loads"])
    caption = (
        f"Live, on {record['device']}: {', '.join(record['traces'])} at {loads} of the measured capacity "
        f"({record['capacity_rps']:.0f} requests/s), means with bootstrap 95 % intervals over runs; high priority counts five "
        "times in the weighted rate. Paired differences in percentage points, raw and corrected for drift in machine speed:"
    )
    whole = table((*heads, "p99 high", "goodput", "decision p99", "runs"), rows)
    return f"{whole}\n\n{caption}\n\n{table(('difference', 'raw', 'corrected for drift'), differences)}"


def cells_table(record: dict[str, Any]) -> str:
    """Of benchmarks.sim_to_live: one row per load and policy, live and simulated figures side by side."""
    rows = []
    for c in record["cells"]:
        row = [f"{c['load']:g}", c["policy"]]
        row += [f"{c[f'live_{key}']:.2f} / {c[f'sim_{key}']:.2f} %" for key in ("high", "low")]
        row += [f"{_ms(c[f'live_{key}'])} / {_ms(c[f'sim_{key}'])} ms" for key in ("p50_ms", "p99_ms")]
        rows.append([*row, f"{c['live_busy']:.0%} / {c['sim_busy']:.0%}"])
    heads = ("load", "policy", "high, live / simulated", "low, live / simulated", "p50", "p99", "streams busy")
    return table(heads, rows, left=2)


def explained_table(record: dict[str, Any]) -> str:
    """Of benchmarks.sim_to_live: the differences by what the simulator knows."""
    keys = ("max_violation_difference_points", "mean_violation_difference_points")
    percent = ("max_p99_difference_pct", "mean_p99_difference_pct")
    rows = [
        (name, *(f"{v[k]:.2f}" for k in keys), *(f"{v[k]:.1f} %" for k in percent), "yes" if v["same_order"] else "no")
        for name, v in record["explained"].items()
    ]
    heads = ("what the simulator knows", "violations: largest difference, points", "mean", "p99: largest", "mean")
    return table((*heads, "same order"), rows)


def sim_to_live_table(record: dict[str, Any]) -> str:
    """Of benchmarks.sim_to_live: what explains how much, and one row per load and policy, live and simulated."""
    config = record["config"]
    caption = f"{config['repetitions']} repetitions of {config['duration']:g} s, arrivals {config['trace']}."
    return f"{explained_table(record)}\n\n{cells_table(record)}\n\n{caption}"


def write_report(record: dict[str, Any], out: Path) -> Path:
    """Write report.md and its pictures into ``out``; returns the report's path."""
    draw(record, out)
    config = record["config"]
    measured = [(cause, _measured(record["overheads"][key], key), where) for cause, key, where in CAUSES]
    levels = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in record["slower_by_policy"].items())
    lines = [
        "# Simulated and live",
        "",
        f"{record['device']} ({record['machine']}), capacity {record['capacity_rps']:.1f} requests/s, "
        f"{config['repetitions']} repetitions of {config['duration']:g} s, arrivals {config['trace']}, "
        f"{config['worlds']} simulated runs for each live one.",
        "",
        f"- largest difference of a violation rate: {record['max_violation_difference_points']:.2f} points",
        f"- largest difference of a p99 latency: {record['max_p99_difference_pct']:.1f} %",
        f"- same order of policies: {'yes' if record['same_order'] else 'no: ' + '; '.join(record['swapped'])}",
        "",
        cells_table(record),
        "",
        "## What differs, and why",
        "",
        table(("cause", "measured", "in the simulator"), measured, left=3),
        "",
        "Not modelled:",
        "",
        *(f"- {text}" for text in NOT_MODELLED),
        "",
        explained_table(record),
        "",
        "The speed of the machine over time (median over 51 batches) is taken from the live run itself: it is an input, as the",
        "arrivals are. It also makes up for errors of the truth. By policy, batches were slower than the truth by: "
        f"{levels}. What is common to all policies is the machine's; differences between policies are errors of the slowdowns.",
        "",
        *(f"![{name}]({name})" for name in PICTURES),
        "",
    ]
    path = out / "report.md"
    atomic_write_text(path, "\n".join(lines))
    return path


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _measured(value: Any, key: str) -> str:
    if key == "host_share":
        return f"{value:.0%} of a core"
    return " / ".join(f"{v:.2f}" for v in np.atleast_1d(value)) + " ms"


def draw(record: dict[str, Any], out: Path) -> None:
    """The pictures: violations and p99 of both against each other, and batch sizes."""
    cells = record["cells"]
    loads = sorted({c["load"] for c in cells})
    policies = list(dict.fromkeys(c["policy"] for c in cells))
    figure, rows = pictures.panels(2, len(loads), (3.4 * len(loads), 5), sharex=True)
    for row, (key, label) in zip(rows, (("high", "high priority"), ("low", "low priority")), strict=True):
        for axes, load in zip(row, loads, strict=True):
            by_policy = {c["policy"]: c for c in cells if c["load"] == load}
            _bars(axes, {side: [by_policy[p][f"{side}_{key}"] for p in policies] for side in SIDES})
            axes.set_xticks(range(len(policies)), policies, rotation=60, ha="right", fontsize=8)
            axes.set_title(f"{label}, load {load:g}", fontsize=9)
        row[0].set_ylabel("violations (%)")
    rows[0][0].legend(frameon=False, fontsize=8)
    pictures.save(figure, out / PICTURES[0])

    figure, [[axes]] = pictures.panels(1, 1, (4.2, 4))
    for load, marker in zip(loads, "osD^v<>" * len(loads), strict=False):
        here = [c for c in cells if c["load"] == load and c["live_p99_ms"] and c["sim_p99_ms"]]
        both = ([c[f"{side}_p99_ms"] for c in here] for side in SIDES)
        axes.plot(*both, marker, color=COLOURS[1], label=f"load {load:g}", alpha=0.8)
    low, high = axes.get_xlim()
    ends = np.array([max(low, 1e-3), high])
    axes.plot(ends, ends, color="#888888", linewidth=0.8)
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, color="#888888", alpha=0.15, linewidth=0)
    axes.set(xlabel="p99 latency live (ms)", ylabel="p99 latency simulated (ms), band of 15 %")
    axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, out / PICTURES[1])

    middle = loads[len(loads) // 2]
    figure, [row] = pictures.panels(1, len(policies), (1.9 * len(policies), 2.4), sharey=True)
    for axes, policy in zip(row, policies, strict=True):
        cell = next(c for c in cells if c["policy"] == policy and c["load"] == middle)
        _bars(axes, {side: cell[f"{side}_batch_sizes"] for side in SIDES})
        axes.set_xticks(range(len(cell["live_batch_sizes"])))
        axes.set_xlabel("batch size index", fontsize=8)
        axes.set_title(policy, fontsize=9)
    row[0].set_ylabel(f"share of batches, load {middle:g}", fontsize=8)
    row[0].legend(frameon=False, fontsize=8)
    pictures.save(figure, out / PICTURES[2])


def _bars(axes: Any, values: dict[str, Sequence[float]]) -> None:
    """Bars of both sides next to each other."""
    for shift, colour, (side, heights) in zip((-0.2, 0.2), COLOURS, values.items(), strict=True):
        axes.bar(np.arange(len(heights)) + shift, heights, 0.38, label=side, color=colour)
