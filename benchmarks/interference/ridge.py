"""Ridge regression on overlap-weighted demand features: the form of the scheduler's online predictor, fitted offline."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns, demand_features, mean_over_batch
from benchmarks.interference.model import bounded, solve_ridge


class Ridge:
    """Slowdown linear in counts, demands and their products.

    Args:
        penalty: weight of the squared coefficients.
    """

    name = "ridge"

    def __init__(self, penalty: float = 1e-3) -> None:
        self.penalty = penalty
        self.weights = np.zeros(0)

    def fit(self, data: CoRuns, train: np.ndarray) -> Ridge:
        """Ridge on overlap-weighted means over each batch."""
        x = mean_over_batch(data, demand_features(data))
        self.weights, _ = solve_ridge(x[train], data.measured[train], self.penalty)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The linear form of each piece (S,)."""
        return bounded(self.weights[0] + demand_features(data) @ self.weights[1:])
