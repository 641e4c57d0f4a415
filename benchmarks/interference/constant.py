"""One slowdown for each number of co-runners, whoever they are."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns, mean_over_batch
from benchmarks.interference.model import bounded


class Constant:
    """Mean measured slowdown by number of co-runners (rounded mean over the batch)."""

    name = "constant"

    def __init__(self) -> None:
        self.by_count = np.ones(1)

    def fit(self, data: CoRuns, train: np.ndarray) -> Constant:
        """Means over the training batches; a count that was not seen takes that of the next lower one."""
        count = np.rint(mean_over_batch(data, (data.others >= 0).sum(axis=1, keepdims=True).astype(float))[:, 0])
        self.by_count = np.ones(data.others.shape[1] + 1)
        for n in range(1, len(self.by_count)):
            at = train & (count == n)
            self.by_count[n] = data.measured[at].mean() if at.any() else self.by_count[n - 1]
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """The constant of each piece's count (S,)."""
        return bounded(self.by_count[(data.others >= 0).sum(axis=1)])
