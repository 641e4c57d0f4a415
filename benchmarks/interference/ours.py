"""Our own offline model: log slowdown linear in a designed form, with effects for each model shrunk by a ridge.

The fit is that of the simulator's truth (envs.profiles.fit): over the pieces of a batch ``sum dt / slowdown`` must equal its
solo time. The columns depend on how a device shares its parts, see benchmarks.interference.forms.
"""

from __future__ import annotations

import numpy as np

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

    def fit(self, data: CoRuns, train: np.ndarray) -> Ours:
        """Fit each form to the training batches."""
        self.thetas = []
        for form in self.forms:
            x, penalty = form(data)
            start, log_solo = np.zeros(x.shape[1]), np.log(data.batch_solo_ms)
            self.thetas.append(fit_log_slowdown(data, x, log_solo, penalty, start, train=train))
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown of each piece (S,)."""
        logs = [form(data)[0] @ theta for form, theta in zip(self.forms, self.thetas)]
        return bounded(np.exp(np.mean(logs, axis=0)), LEAST)
