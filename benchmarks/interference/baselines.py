"""The simplest models: no interference, a constant for each number of co-runners, and a ridge regression on demands."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns, demand_features, mean_over_batch
from benchmarks.interference.model import bounded, solve_ridge


class Solo:
    """Slowdown 1 in every set: the assumption of a scheduler that only profiled models alone."""

    def fit(self, data: CoRuns, train: np.ndarray) -> Solo:
        """Nothing to fit."""
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Ones (S,)."""
        return np.ones(len(data.batch))


class Constant:
    """Mean measured slowdown by number of co-runners (rounded mean over the batch)."""

    def __init__(self) -> None:
        self.by_count = np.ones(1)

    def fit(self, data: CoRuns, train: np.ndarray) -> Constant:
        """Means over the training batches; a count that was not seen takes that of the next lower one."""
        count = np.rint(mean_over_batch(data, data.there.sum(axis=1, keepdims=True).astype(float))[:, 0])
        self.by_count = np.ones(data.others.shape[1] + 1)
        for n in range(1, len(self.by_count)):
            at = train & (count == n)
            self.by_count[n] = data.measured[at].mean() if at.any() else self.by_count[n - 1]
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The constant of each piece's count (S,)."""
        return bounded(self.by_count[data.there.sum(axis=1)])


class Ridge:
    """Slowdown linear in counts, demands and their products: the form of the scheduler's predictor, fitted offline."""

    def __init__(self) -> None:
        self.weights = np.zeros(0)

    def fit(self, data: CoRuns, train: np.ndarray) -> Ridge:
        """Ridge on overlap-weighted means over each batch."""
        x = mean_over_batch(data, demand_features(data))
        self.weights = solve_ridge(x[train], data.measured[train], 1e-3)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The linear form of each piece (S,)."""
        return bounded(self.weights[0] + demand_features(data) @ self.weights[1:])
