"""Tables of live results, and the picture of benchmarks.sim_to_live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pictures
from benchmarks.common.tables import interval, table

SIDES, COLOURS = ("live", "sim"), ("#d6603a", "#467ab2")


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
    heads = (
        "what the simulator knows",
        "violations: largest difference, points",
        "mean, points",
        "p99: largest",
        "mean",
    )
    return table((*heads, "same order"), rows)


def sim_to_live_table(record: dict[str, Any]) -> str:
    """Of benchmarks.sim_to_live: what explains how much, and one row per load and policy, live and simulated."""
    config = record["config"]
    caption = f"{config['repetitions']} repetitions of {config['duration']:g} s, arrivals {config['trace']}."
    return f"{explained_table(record)}\n\n{cells_table(record)}\n\n{caption}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def draw(record: dict[str, Any], path: Path) -> None:
    """Violations of both sides next to each other: one row of panels per priority, one column per load."""
    cells = record["cells"]
    loads = sorted({c["load"] for c in cells})
    policies = list(dict.fromkeys(c["policy"] for c in cells))
    figure, rows = pictures.panels(2, len(loads), (3.4 * len(loads), 5), sharex=True)
    for row, (key, label) in zip(rows, (("high", "high priority"), ("low", "low priority")), strict=True):
        for axes, load in zip(row, loads, strict=True):
            by_policy = {c["policy"]: c for c in cells if c["load"] == load}
            for shift, side, colour in zip((-0.2, 0.2), SIDES, COLOURS, strict=True):
                heights = [by_policy[policy][f"{side}_{key}"] for policy in policies]
                axes.bar(np.arange(len(policies)) + shift, heights, 0.38, label=side, color=colour)
            axes.set_xticks(range(len(policies)), policies, rotation=60, ha="right", fontsize=8)
            axes.set_title(f"{label}, load {load:g}", fontsize=9)
        row[0].set_ylabel("violations (%)")
    rows[0][0].legend(frameon=False, fontsize=8)
    pictures.save(figure, path)
