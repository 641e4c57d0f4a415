"""An interference model of your own: every co-runner slows a batch by the same amount."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns, demand_features, mean_over_batch
from benchmarks.interference.model import bounded


class OneSlope:
    """Slowdown linear in the number of co-runners, by least squares."""

    slope = 0.0

    def fit(self, data: CoRuns, train: np.ndarray) -> OneSlope:
        """Fit to the batches where ``train`` (N,) is True."""
        x = mean_over_batch(data, demand_features(data))[:, 0]
        self.slope = float(x[train] @ (data.measured[train] - 1.0) / max(x[train] @ x[train], 1e-9))
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown of each piece (S,)."""
        return bounded(1.0 + self.slope * demand_features(data)[:, 0])
