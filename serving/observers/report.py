"""What became of a replay: a table for people, and one JSON line for scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from agents.evaluation import metric
from agents.evaluation.summary import ENDED, summarise


def result_of(table: pd.DataFrame, facts: dict[str, Any], decision_us: Sequence[float]) -> dict[str, Any]:
    """One flat record of a replay.

    Args:
        table: one row per request, see ``agents.evaluation.summary.summarise``.
        facts: what was run (trace, policy, device, load, ...).
        decision_us: duration of each decision.

    Returns:
        The facts; `offered` and `outcomes` (requests by outcome, which add up to `offered`); then the metrics by the names
        of ``agents.evaluation.metric``, None where there is no value.
    """
    counts = table["outcome"].value_counts()
    metrics = summarise(table, decision_us=decision_us)
    return (
        facts
        | {"offered": len(table), "outcomes": {name: int(counts.get(name, 0)) for name in ENDED}}
        | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    )


def print_replay(result: dict[str, Any], console: Console) -> None:
    """Requests by priority and outcome, and the latencies."""
    title = f"{result['trace']} under {result['policy']} on {result['device']}"
    table = Table(title=title, title_justify="left")
    table.add_column("priority")
    for name in (*ENDED, "violations", "p50", "p99"):
        table.add_column(name, justify="right")
    latency = (
        (metric.LATENCY_HIGH_P50_MS, metric.LATENCY_HIGH_P99_MS),
        (metric.LATENCY_LOW_P50_MS, metric.LATENCY_LOW_P99_MS),
    )
    for number, priority in enumerate(("high", "low")):
        counts = [f"{result[metric.outcome_tag(priority, name)]:.0f}" for name in ENDED]
        times = [_ms(result[tag]) for tag in latency[number]]
        table.add_row(priority, *counts, f"{100 * result[metric.VIOLATION[number]]:.2f} %", *times)
    counts = [str(result["outcomes"][name]) for name in ENDED]
    times = [_ms(result[tag]) for tag in (metric.LATENCY_P50_MS, metric.LATENCY_P99_MS)]
    table.add_row("all", *counts, f"{100 * result[metric.VIOLATION_ALL]:.2f} %", *times)
    console.print(table)
    console.print(
        f"offered {result[metric.OFFERED_RPS]:.1f}/s, in time {result[metric.GOODPUT_RPS]:.1f}/s, "
        f"mean batch {result[metric.BATCH_SIZE_MEAN] or 0:.2f}, decision p99 {result.get(metric.DECISION_P99_US) or 0:.0f} us"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
