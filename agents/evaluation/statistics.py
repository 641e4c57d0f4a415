"""Comparing policies on the same workloads and noise: weighted violations, paired differences, bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from agents.evaluation import metric
from envs.scheduling.state import HIGH, LOW, MET
from traces.workload import HIGH_WEIGHT

PAIR = ["workload", "load", "seed"]  # what two policies share when they are compared


def violations(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Requests that violated and all that ended, (..., 2) by priority each, from counts by outcome (..., 2, 6).

    A request violates when it ended in any way but in time.
    """
    total = count.sum(axis=-1)
    return total - count[..., MET], total


def weighted_rate(violated: np.ndarray, total: np.ndarray, high_weight: float | np.ndarray = HIGH_WEIGHT) -> np.ndarray:
    """Share of violated weight (...): a high-priority request counts ``high_weight``, a low-priority one 1.

    Args:
        violated: (..., 2) requests that violated, by priority.
        total: (..., 2) all requests.
        high_weight: what a high-priority request counts; one value, or (...,).
    """
    value, worth = (counts[..., HIGH] * high_weight + counts[..., LOW] for counts in (violated, total))
    return value / np.maximum(worth, 1e-9)


def bootstrap(values: np.ndarray, rounds: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences with a 95 % percentile interval (Efron, 1979): (low, mean, high)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (rounds, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(values.mean()), float(high)


def difference(frame: pd.DataFrame, policy: str, reference: str, column: str = "weighted") -> np.ndarray:
    """``column`` of a policy minus that of the reference, one value for each workload, load and seed that both ran."""
    by_pair = frame.set_index(PAIR)
    mine = by_pair.loc[by_pair["policy"] == policy, column]
    theirs = by_pair.loc[by_pair["policy"] == reference, column]
    return (mine - theirs).dropna().to_numpy()


def digest(frame: pd.DataFrame, reference: str = "strait") -> dict[str, dict[str, dict[str, Any]]]:
    """Per policy and load, over all workloads and seeds: rates in percent and the paired difference from ``reference``."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    compared = reference in set(frame["policy"])
    for load, at_load in frame.groupby("load", sort=True):
        for policy, rows in at_load.groupby("policy", sort=True):
            cell: dict[str, Any] = {
                "high": round(100 * float(rows[metric.VIOLATION_HIGH].mean()), 3),
                "low": round(100 * float(rows[metric.VIOLATION_LOW].mean()), 3),
                "goodput": round(float(rows[metric.GOODPUT_RPS].mean()), 2),
                "jain": round(float(rows[metric.FAIRNESS_MODELS].mean()), 4),
                "weighted": round(100 * float(rows["weighted"].mean()), 3),
            }
            if compared:
                paired = 100 * difference(at_load, str(policy), reference)
                cell["weighted_minus_strait"] = [round(v, 3) for v in bootstrap(paired)]
            out.setdefault(str(policy), {})[f"{load:g}"] = cell
    return out


def ablations(frame: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Weighted violations of each "KIND:SWITCH" minus those of its KIND, in points, paired: (low, mean, high)."""
    found = [str(p).partition(":") for p in frame["policy"].unique()]
    kinds = {kind for kind, _, switch in found if not switch}
    return {
        f"{kind}:{switch}": bootstrap(100 * difference(frame, f"{kind}:{switch}", kind))
        for kind, _, switch in found
        if switch and kind in kinds
    }
