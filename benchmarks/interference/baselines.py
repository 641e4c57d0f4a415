"""Models to compare with: no interference, a constant by number of co-runners, ridge, GPUlet's linear form, boosted trees."""

from __future__ import annotations

from typing import Any

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


class GpuletLinear:
    """GPUlet's linear form (Choi et al., Serving Heterogeneous Machine Learning Models on Multi-GPU Servers, ATC 2022).

    Slowdown = c0 + a * L2 of its own + b * L2 of the others + c * DRAM of its own + d * DRAM of the others, with solo
    utilisations as fractions and least-squares coefficients for each software stack, since theirs were fitted for one. More
    than one co-runner: their sum.
    """

    @staticmethod
    def _features(data: CoRuns) -> np.ndarray:
        mine, them = data.variants()
        own, others = data.demand[mine], (data.demand[them] * data.there[:, :, None]).sum(axis=1)
        return np.column_stack([own[:, 2], others[:, 2], own[:, 1], others[:, 1]])

    def fit(self, data: CoRuns, train: np.ndarray) -> GpuletLinear:
        """Least squares on overlap-weighted means over each batch; batches that ran alone are left out."""
        x, family = mean_over_batch(data, self._features(data)), data.family[data.variant]
        self.weights = np.zeros((int(data.family.max()) + 1, 1 + x.shape[1]))
        for f in np.unique(family):
            at = train & (family == f) & ~data.alone
            self.weights[f] = solve_ridge(x[at], data.measured[at], 1e-7)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The linear form of each piece (S,); 1 where nothing runs beside it."""
        weights = self.weights[data.family[data.variant[data.batch]]]
        linear = weights[:, 0] + (weights[:, 1:] * self._features(data)).sum(axis=1)
        return bounded(np.where(data.there.any(axis=1), linear, 1.0))


class Boosting:
    """Gradient-boosted trees on demand features and solo times; needs scikit-learn (the extra ``bench``)."""

    def __init__(self) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor

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
