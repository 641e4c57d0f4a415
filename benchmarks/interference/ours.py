"""Our own offline model: log slowdown linear in a designed form, with effects for each model shrunk by a ridge.

The fit is that of the simulator's truth (envs.profiles.fit): over the pieces of a batch ``sum dt / slowdown`` must equal its
solo time. The columns depend on how a device shares its parts, see benchmarks.interference.forms.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks.interference.coruns import CoRuns
from benchmarks.interference.forms import Form
from benchmarks.interference.model import bounded
from envs.profiles.fit import fit_log_slowdown

# Below 1: a batch can beat the median solo run, on a thread that kept its memory or in a fast minute.
LEAST = 0.3


class Ours:
    """Ridge on the log slowdown through the work equation.

    Args:
        forms: functions that give columns (S, C) and the penalty (C,) of each; the log slowdowns are averaged.
    """

    def __init__(self, forms: tuple[Form, ...]) -> None:
        self.forms = forms
        self.thetas: list[np.ndarray] = []
        self.data: CoRuns | None = None

    def columns(self, data: CoRuns) -> list[tuple[csr_matrix, np.ndarray]]:
        """What each form gives for the data; kept, since a fit is often repeated on other batches of the same data."""
        if self.data is not data:
            self.data, self.kept = data, [form(data) for form in self.forms]
        return self.kept

    def fit(self, data: CoRuns, train: np.ndarray) -> Ours:
        """Fit each form to the training batches."""
        self.thetas = []
        for x, penalty in self.columns(data):
            start, log_solo = np.zeros(x.shape[1]), np.log(data.batch_solo_ms)
            self.thetas.append(fit_log_slowdown(data, x, log_solo, penalty, start, train=train))
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown of each piece (S,)."""
        logs = [x @ theta for (x, _), theta in zip(self.columns(data), self.thetas, strict=True)]
        return bounded(np.exp(np.mean(logs, axis=0)), LEAST)
