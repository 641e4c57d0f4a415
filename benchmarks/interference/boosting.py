"""Gradient-boosted trees (scikit-learn) on the demand features and solo times. Needs the extra ``bench``."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.interference.coruns import CoRuns, demand_features, mean_over_batch
from benchmarks.interference.model import bounded
from traces.errors import InputError


class Boosting:
    """Histogram gradient boosting on overlap-weighted features.

    Raises:
        InputError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError:
            raise InputError("model 'boosting' needs scikit-learn; pip install strait-rl[bench]") from None
        self.tree: Any = HistGradientBoostingRegressor(
            max_iter=80, learning_rate=0.12, max_leaf_nodes=15, min_samples_leaf=10, random_state=0
        )

    @staticmethod
    def _features(data: CoRuns) -> np.ndarray:
        own, _ = data.variants()
        extra = (np.log(data.solo_ms[own]), data.size[own], data.device_share[own])
        return np.column_stack([demand_features(data), *extra])

    def fit(self, data: CoRuns, train: np.ndarray) -> Boosting:
        """Trees for the log slowdown on overlap-weighted means over each batch."""
        x = mean_over_batch(data, self._features(data))
        self.tree.fit(x[train], np.log(data.measured[train]))
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """What the trees give for each piece (S,)."""
        return bounded(np.exp(self.tree.predict(self._features(data))))
