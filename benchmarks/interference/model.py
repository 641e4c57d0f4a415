"""An offline model is fitted to the batches of some sets and gives the slowdown of any piece."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from benchmarks.interference.coruns import CoRuns

LARGEST = 50.0  # slowdowns are held within [least, LARGEST]


class OfflineModel(Protocol):
    """A slowdown model."""

    def fit(self, data: CoRuns, train: np.ndarray) -> OfflineModel:
        """Fit to the batches of ``train`` (N,) bool. Returns itself."""
        ...

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown (S,) in each piece, at most LARGEST."""
        ...


def bounded(slowdown: np.ndarray, least: float = 1.0) -> np.ndarray:
    """Slowdowns held within [least, LARGEST]."""
    return np.clip(slowdown, least, LARGEST)


def solve_ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regression on columns scaled to unit variance, the constant not penalised.

    Args:
        x: (N, F) columns.
        y: (N,) target.
        penalty: weight of the squared coefficients for each row.

    Returns:
        (F + 1,) coefficients of the unscaled columns, the constant first.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = (x - mean) / scale
    gram = z.T @ z + penalty * len(x) * np.eye(x.shape[1])
    slope = np.linalg.solve(gram, z.T @ (y - y.mean())) / scale
    return np.concatenate(([y.mean() - mean @ slope], slope))
