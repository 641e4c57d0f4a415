"""Our own offline model: log slowdown linear in a designed form, with effects for each model shrunk by a ridge.

The fit is to work, not to mean overlaps: over the pieces of a batch ``sum dt / slowdown`` must equal its solo time. What
the columns are depends on how a device shares its parts, see benchmarks.interference.forms. Several forms may be averaged. With
``drift`` the speed of the machine at the time is fitted along and taken out, so that a slow minute is not
mistaken for interference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from benchmarks.interference.coruns import CoRuns, finish
from benchmarks.interference.model import bounded

Form = Callable[[CoRuns], tuple[csr_matrix, np.ndarray]]
# Below 1: a batch can beat the median solo run, on a thread that kept its memory or in a fast minute.
LEAST = 0.3
HUBER = 0.15  # log error beyond which a batch is a straggler


class Ours:
    """Ridge on the log slowdown through the work equation.

    Args:
        forms: functions that give columns (S, C) and the penalty (C,) of each; the log slowdowns are averaged.
        drift: whether to estimate the speed of the machine by a running median of the residuals of batches near in time.
        name: row in the tables.
    """

    def __init__(self, forms: tuple[Form, ...], drift: bool = False, name: str = "ours") -> None:
        self.name = name
        self.forms = forms
        self.drift = drift
        self.thetas: list[np.ndarray] = []

    def fit(self, data: CoRuns, train: np.ndarray) -> Ours:
        """Fit each form to the training batches."""
        self.thetas = []
        for form in self.forms:
            x, penalty = form(data)
            log_speed = np.zeros(len(data.variant))
            theta = np.zeros(x.shape[1])
            for _ in range(3 if self.drift else 1):
                theta = _solve(data, x, penalty, train, log_speed, theta)
                if self.drift:
                    residual = np.log(data.exec_ms / finish(data, bounded(np.exp(x @ theta), LEAST)))
                    log_speed = near_in_time(data, residual, train)
            self.thetas.append(theta)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown of each piece (S,)."""
        logs = [form(data)[0] @ theta for form, theta in zip(self.forms, self.thetas)]
        return bounded(np.exp(np.mean(logs, axis=0)), LEAST)


def _solve(
    data: CoRuns, x: csr_matrix, penalty: np.ndarray, train: np.ndarray, log_speed: np.ndarray, start: np.ndarray
) -> np.ndarray:
    at = np.flatnonzero(train[data.batch])
    row = np.cumsum(train) - 1
    n = int(train.sum())
    x = x[at]
    dt = data.dt_ms[at]
    gather = csr_matrix((np.ones(len(at)), (row[data.batch[at]], np.arange(len(at)))), shape=(n, len(at)))
    target = np.log(data.solo[train]) + log_speed[train]

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        piece = dt * np.exp(-(x @ theta))
        work = np.maximum(gather @ piece, 1e-12)
        error = np.log(work) - target
        held = np.clip(error, -HUBER, HUBER)
        value = float(np.sum(held * (error - held / 2)))
        slope = -(x.T @ (piece * (gather.T @ (held / work))))
        return (value + float(penalty @ theta**2) / 2 * n) / n, (slope + n * penalty * theta) / n

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150, "ftol": 1e-8}).x


def near_in_time(data: CoRuns, residual: np.ndarray, known: np.ndarray, width: int = 15) -> np.ndarray:
    """Log speed (N,) at the time of each batch: median residual of the ``width`` known batches nearest in start time.

    For fitting only: it looks into the future. See ``speed_so_far`` for what a scheduler can know.
    """
    order = np.flatnonzero(known)[np.argsort(data.start_ms[known], kind="stable")]
    padded = np.pad(residual[order], width // 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    return np.interp(data.start_ms, data.start_ms[order], smooth)


def speed_so_far(data: CoRuns, residual: np.ndarray, width: int = 9, within_ms: float = 2000.0) -> np.ndarray:
    """Factor (N,) on the time of each batch from the residuals of batches that had ended when it started.

    Args:
        data: the co-runs. residual: (N,) log of measured over predicted time.
        width: how many of the latest batches. within_ms: how far back they may lie.
    """
    order = np.argsort(data.end_ms, kind="stable")
    ends = data.end_ms[order]
    upto = np.searchsorted(ends, data.start_ms, side="right")
    since = np.maximum(np.searchsorted(ends, data.start_ms - within_ms), upto - width)
    out = np.ones(len(residual))
    for i in range(len(residual)):
        if upto[i] > since[i]:
            seen = residual[order[since[i] : upto[i]]]
            # Shrunk by a prior of two batches at no drift: few batches say little.
            out[i] = np.exp(np.median(seen) * len(seen) / (len(seen) + 2.0))
    return out
