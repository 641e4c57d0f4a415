"""The report of benchmarks.sim_to_live: Markdown and three pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.files import atomic_write_text

CROWDS = "while no core is shared / another core is / its own is"
# What makes live differ from the profile, and where it went.
CAUSES = (
    ("Python between an event and the submission of a batch", "decision_ms", "modelled: part of dispatch_ms"),
    (
        f"worker thread wakes up and begins to copy, {CROWDS}",
        "handover_ms",
        "modelled: dispatch_ms and shared_core_wait_ms",
    ),
    (
        f"engine's thread wakes up when a batch has ended (event loop, Python's lock), {CROWDS}",
        "completion_ms",
        "modelled: completion_ms and shared_core_wait_ms",
    ),
    ("event loop's timers ring in whole milliseconds", "timer_ms", "modelled: deferrals and offered requests are late"),
    ("engine's thread takes a core from the workers", "host_share", "modelled: in the middle of the residuals"),
)
LISTED = (
    "noise of single batches: the simulator draws from the same distribution, not the same values, and from no wider one "
    "while the machine is slow, when batches vary twice as much;",
    "while the machine stands still, requests still arrive in simulation, and are dispatched;",
    "copies queue for one engine in simulation, while each CPU worker copies on its own;",
    "live, the host's share grows with the rate of events; in simulation it is the mean of the measured runs;",
    "live, batches on one core take turns of a millisecond (serving.executors.time_slices); in simulation they share it evenly "
    "but for the first turn, which the newest has, and only the wait for it is drawn.",
)
COLOURS = ("#d6603a", "#467ab2")


def write_report(record: dict[str, Any], out: Path) -> Path:
    """Write report.md and its pictures into ``out``; returns the report's path."""
    draw(record, out)
    sizes = ["violations.png", "latency.png", "batches.png"]
    lines = [
        "# Simulated and live",
        "",
        f"{record['device']} ({record['machine']}), capacity {record['capacity_rps']:.1f} requests/s, "
        f"{record['config']['repetitions']} repetitions of {record['config']['duration']:g} s, "
        f"arrivals {record['config']['trace']}, {record['config']['worlds']} simulated runs for each live one.",
        "",
        f"- largest difference of a violation rate: {record['max_violation_difference_points']:.2f} points",
        f"- largest difference of a p99 latency: {record['max_p99_difference_pct']:.1f} %",
        f"- same order of policies: {'yes' if record['same_order'] else 'no: ' + '; '.join(record['swapped'])}",
        "",
        "| load | policy | high live | sim | low live | sim | p50 live | sim | p99 live | sim | busy live | sim |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in record["cells"]:
        pairs = [f"{c['live_' + k]:.2f} % | {c['sim_' + k]:.2f} %" for k in ("high", "low")]
        pairs += [f"{_number(c['live_' + k])} ms | {_number(c['sim_' + k])} ms" for k in ("p50_ms", "p99_ms")]
        pairs.append(f"{c['live_busy']:.0%} | {c['sim_busy']:.0%}")
        lines.append(f"| {c['load']:g} | {c['policy']} | " + " | ".join(pairs) + " |")
    lines += ["", "## What differs, and why", "", "| cause | measured | in the simulator |", "|---|---|---|"]
    for cause, key, where in CAUSES:
        value = record["overheads"][key]
        shown = (
            f"{value:.0%} of a core"
            if key == "host_share"
            else " / ".join(f"{v:.2f}" for v in np.atleast_1d(value)) + " ms"
        )
        lines.append(f"| {cause} | {shown} | {where} |")
    lines += ["", "Listed, not modelled:", "", *(f"- {text}" for text in LISTED), ""]
    lines += ["| truth of the simulator | violations: largest, mean difference | p99: largest, mean |", "|---|---|---|"]
    for name, v in record["explained"].items():
        lines.append(
            f"| {name} | {v['max_violation_difference_points']:.2f}, {v['mean_violation_difference_points']:.2f} points "
            f"| {v['max_p99_difference_pct']:.1f}, {v['mean_p99_difference_pct']:.1f} % |"
        )
    levels = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in record["slower_by_policy"].items())
    lines += [
        "",
        "The speed of the machine over time (median over 51 batches) is taken from the live run itself: it is an input, as the",
        "arrivals are. Batches were slower than the truth has it, by policy, which the given speed makes up for: "
        f"{levels}. What these have in common is the machine's; where they differ, slowdowns side by side are not quite right.",
    ]
    lines += ["", *(f"![{name}]({name})" for name in sizes), ""]
    path = out / "report.md"
    atomic_write_text(path, "\n".join(lines))
    return path


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def draw(record: dict[str, Any], out: Path) -> None:
    """The pictures: violations and p99 of both against each other, and batch sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = record["cells"]
    loads = sorted({c["load"] for c in cells})
    policies = list(dict.fromkeys(c["policy"] for c in cells))
    place = np.arange(len(policies))
    figure, rows = pyplot.subplots(
        2, len(loads), figsize=(3.4 * len(loads), 5), squeeze=False, sharex=True, layout="tight"
    )
    for row, (key, label) in zip(rows, (("high", "high priority"), ("low", "low priority")), strict=True):
        for axes, load in zip(row, loads, strict=True):
            here = {c["policy"]: c for c in cells if c["load"] == load}
            for shift, side, colour in zip((-0.2, 0.2), ("live", "sim"), COLOURS, strict=True):
                axes.bar(place + shift, [here[p][f"{side}_{key}"] for p in policies], 0.38, label=side, color=colour)
            axes.set_xticks(place, policies, rotation=60, ha="right", fontsize=8)
            axes.set_title(f"{label}, load {load:g}", fontsize=9)
    rows[0][0].set_ylabel("violations (%)")
    rows[1][0].set_ylabel("violations (%)")
    rows[0][0].legend(frameon=False, fontsize=8)
    _finish(figure, out / "violations.png")

    figure, axes = pyplot.subplots(figsize=(4.2, 4), layout="tight")
    for load, marker in zip(loads, "osD^v<>" * len(loads), strict=False):
        here = [c for c in cells if c["load"] == load and c["live_p99_ms"] and c["sim_p99_ms"]]
        live, simulated = [c["live_p99_ms"] for c in here], [c["sim_p99_ms"] for c in here]
        axes.plot(live, simulated, marker, color=COLOURS[1], label=f"load {load:g}", alpha=0.8)
    low, high = axes.get_xlim()
    ends = np.array([max(low, 1e-3), high])
    axes.plot(ends, ends, color="#888888", linewidth=0.8)
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, color="#888888", alpha=0.15, linewidth=0)
    axes.set_xlabel("p99 latency live (ms)")
    axes.set_ylabel("p99 latency simulated (ms), band of 15 %")
    axes.legend(frameon=False, fontsize=8)
    _finish(figure, out / "latency.png")

    figure, row = pyplot.subplots(
        1, len(policies), figsize=(1.9 * len(policies), 2.4), squeeze=False, sharey=True, layout="tight"
    )
    for axes, policy in zip(row[0], policies, strict=True):
        cell = next(c for c in cells if c["policy"] == policy and c["load"] == loads[len(loads) // 2])
        for shift, side, colour in zip((-0.2, 0.2), ("live", "sim"), COLOURS, strict=True):
            share = cell[f"{side}_batch_sizes"]
            axes.bar(np.arange(len(share)) + shift, share, 0.38, label=side, color=colour)
        axes.set_xticks(range(len(share)))
        axes.set_xlabel("batch size index", fontsize=8)
        axes.set_title(policy, fontsize=9)
    row[0][0].set_ylabel(f"share of batches, load {loads[len(loads) // 2]:g}", fontsize=8)
    row[0][0].legend(frameon=False, fontsize=8)
    _finish(figure, out / "batches.png")


def _finish(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
