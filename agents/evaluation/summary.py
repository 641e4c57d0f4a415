"""What a run amounts to: one row a request in, one flat record of metrics out; the same for simulated and live runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from agents.evaluation import metric
from envs.scheduling.state import OUTCOMES, PRIORITIES

ENDED = OUTCOMES[1:]
VIOLATIONS = ("late", "dropped", "failed")


def summarise(
    table: pd.DataFrame, duration_ms: float | None = None, decision_us: Sequence[float] | np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of a run.

    Args:
        table: one row a request, columns arrival_ms, finish_ms (both on one clock), model, priority (0 high, 1 low),
            outcome (one of `ENDED`), latency_ms (arrival to answer), queue_ms (arrival to dispatch, NaN if never),
            batch_id (-1 if never dispatched).
        duration_ms: time over which rates are taken; by default from the first arrival to the last end.
        decision_us: duration of each decision in microseconds.

    Returns:
        Values by the names of `agents.evaluation.metric`. A rate over nothing is 0; a latency over nothing is NaN. Cancelled
        requests are left out of violation rates: the client gave them up.
    """
    outcome = table["outcome"].to_numpy().astype(str)
    priority = table["priority"].to_numpy()
    if duration_ms is None:
        duration_ms = float(table["finish_ms"].max() - table["arrival_ms"].min()) if len(table) else 0.0
    seconds = max(duration_ms / 1e3, 1e-9)
    met = outcome == "met"
    answered = met | (outcome == "late")
    kept = outcome != "cancelled"
    violated = np.isin(outcome, VIOLATIONS)
    latency = table["latency_ms"].to_numpy(float)
    queue = table["queue_ms"].to_numpy(float)
    batch = table["batch_id"].to_numpy()
    sizes = np.unique(batch[batch >= 0], return_counts=True)[1]
    result = {
        metric.OFFERED_RPS: len(table) / seconds,
        metric.THROUGHPUT_RPS: float(answered.sum()) / seconds,
        metric.GOODPUT_RPS: float(met.sum()) / seconds,
        metric.VIOLATION_ALL: _share(violated, kept),
        metric.DROP_RATE: _share(outcome == "dropped", np.ones(len(table), bool)),
        metric.LATENCY_P50_MS: _quantile(latency[answered], 0.5),
        metric.LATENCY_P99_MS: _quantile(latency[answered], 0.99),
        metric.QUEUE_P50_MS: _quantile(queue[answered], 0.5),
        metric.QUEUE_P99_MS: _quantile(queue[answered], 0.99),
        metric.BATCH_SIZE_MEAN: float(sizes.mean()) if len(sizes) else float("nan"),
        metric.FAIRNESS_MODELS: _jain(table["model"].to_numpy().astype(str), met, kept),
    }
    for number, name in enumerate(PRIORITIES):
        mine = priority == number
        result[metric.VIOLATION[number]] = _share(violated & mine, kept & mine)
        for tag, level in zip(metric.LATENCY_MS[number], (0.5, 0.99)):
            result[tag] = _quantile(latency[answered & mine], level)
        for ended in ENDED:
            result[metric.outcome_tag(name, ended)] = float(np.sum((outcome == ended) & mine))
    if decision_us is not None and len(decision_us):
        result[metric.DECISION_P50_US] = _quantile(np.asarray(decision_us, float), 0.5)
        result[metric.DECISION_P99_US] = _quantile(np.asarray(decision_us, float), 0.99)
    return result


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum()) / float(whole.sum()) if whole.any() else 0.0


def _quantile(values: np.ndarray, level: float) -> float:
    return float(np.quantile(values, level)) if len(values) else float("nan")


def _jain(model: np.ndarray, met: np.ndarray, kept: np.ndarray) -> float:
    """Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2), x the share of each model's requests that were met."""
    shares = np.array([met[model == name].sum() / max(kept[model == name].sum(), 1) for name in np.unique(model)])
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else 0.0
