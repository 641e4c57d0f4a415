"""No interference: what a scheduler believes that only profiled models alone."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns


class Solo:
    """Slowdown 1 in every set."""

    name = "solo"

    def fit(self, data: CoRuns, train: np.ndarray) -> Solo:
        """Nothing to fit."""
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Ones (S,)."""
        return np.ones(len(data.batch))
