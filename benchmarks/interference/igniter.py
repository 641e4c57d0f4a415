"""An analytic form after iGniter (Xu et al., IEEE TPDS 2023, arXiv 2211.01713), fitted to co-runs.

iGniter splits a latency into scheduling of kernels, active time and the clock. Beside others each kernel waits longer to be
scheduled (a delay that grows with their number), the active time grows with the cache utilisation of the others, and the
clock falls when the summed power passes the board's limit. Here, in solo time T and with U the summed utilisation,

    time = (T + (d0 + d1 * others) * k + T * a[model] * cache of the others) * (1 + f * max(0, U - limit))

with k the model's kernel work, taken as its shortest solo time among all batch sizes and shares (its launch-bound
end, in the lack of kernel counts), and compute demand in the place of power, which is not in the tables.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from benchmarks.interference.coruns import CoRuns, mean_over_batch
from benchmarks.interference.model import bounded

MOST_BATCHES = 1000


class IgniterAnalytic:
    """Scheduling delay, cache contention with a sensitivity for each model, and a clock that falls under load."""

    def __init__(self) -> None:
        self.theta = np.zeros(0)

    @staticmethod
    def _inputs(data: CoRuns) -> np.ndarray:
        own, other = data.variants()
        shortest = np.array([data.solo_ms[data.model == m].min() for m in range(int(data.model.max()) + 1)])
        cache = (data.demand[other, 2] * data.there).sum(axis=1)
        total = data.demand[own, 0] + (data.demand[other, 0] * data.there).sum(axis=1)
        return np.column_stack([shortest[data.model[own]] / data.solo_ms[own], data.there.sum(axis=1), cache, total])

    @staticmethod
    def _form(theta: np.ndarray, x: np.ndarray, model: np.ndarray) -> np.ndarray:
        delay, each, fall, limit = theta[:4]
        active = 1.0 + np.where(x[:, 1] > 0, delay + each * x[:, 1], 0.0) * x[:, 0] + theta[4 + model] * x[:, 2]
        return active * (1.0 + fall * np.maximum(x[:, 3] - limit, 0.0))

    def fit(self, data: CoRuns, train: np.ndarray) -> IgniterAnalytic:
        """Bounded non-linear least squares on overlap-weighted means over each batch; sensitivities pulled to their mean."""
        n_models = int(data.model.max()) + 1
        # Four coefficients and one for each model need no more than some hundred batches.
        rows = np.flatnonzero(train)
        rows = rows[:: max(len(rows) // MOST_BATCHES, 1)]
        x = mean_over_batch(data, self._inputs(data))[rows]
        model = data.model[data.variant[rows]]
        y = data.measured[rows]
        pull = 0.03 * np.sqrt(len(y))

        def residual(theta: np.ndarray) -> np.ndarray:
            sensitivity = theta[4:]
            return np.concatenate([self._form(theta, x, model) / y - 1.0, pull * (sensitivity - sensitivity.mean())])

        start = np.concatenate(([0.01, 0.05, 0.1, 1.0], np.full(n_models, 0.1)))
        low, high = np.zeros(len(start)), np.concatenate(([2.0, 5.0, 5.0, 4.0], np.full(n_models, 20.0)))
        self.theta = least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.2, max_nfev=30).x
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The analytic form of each piece (S,)."""
        return bounded(self._form(self.theta, self._inputs(data), data.model[data.variant[data.batch]]))
