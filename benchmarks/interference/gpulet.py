"""GPUlet's linear form (Choi et al., Serving Heterogeneous Machine Learning Models on Multi-GPU Servers, ATC 2022).

Slowdown = c0 + a * L2 of its own + b * L2 of the others + c * DRAM of its own + d * DRAM of the others, with solo
utilisations as fractions; the coefficients are fitted by least squares. More than one co-runner: their sum. Each software
stack gets its own coefficients, since theirs were fitted for one.
"""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns, mean_over_batch
from benchmarks.interference.model import bounded, solve_ridge


def _features(data: CoRuns) -> np.ndarray:
    mine, them = data.variants()
    own, others = data.demand[mine], (data.demand[them] * data.there[:, :, None]).sum(axis=1)
    return np.column_stack([own[:, 2], others[:, 2], own[:, 1], others[:, 1]])


class GpuletLinear:
    """Linear in the cache (L2) and memory (DRAM) demands of the batch and of its co-runners."""

    def __init__(self) -> None:
        self.weights: dict[int, np.ndarray] = {}

    def fit(self, data: CoRuns, train: np.ndarray) -> GpuletLinear:
        """Least squares on overlap-weighted means over each batch; batches that ran alone are left out."""
        x = mean_over_batch(data, _features(data))
        family = data.family[data.variant]
        for f in np.unique(family):
            at = train & (family == f) & ~data.alone
            self.weights[int(f)] = solve_ridge(x[at], data.measured[at], 1e-7)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The linear form of each piece (S,); 1 where nothing runs beside it."""
        x = _features(data)
        family = data.family[data.variant[data.batch]]
        out = np.ones(len(x))
        for f, w in self.weights.items():
            at = (family == f) & data.there.any(axis=1)
            out[at] = w[0] + x[at] @ w[1:]
        return bounded(out)
