"""A slowdown fitted to the ends of co-runs (envs.profiles.abacus), together with the time alone of every layer.

What a layer needs of the device shows only beside others where the host is slower, so layers must be fitted to co-runs too.
That is done anew for each slowdown, which leaves none at an advantage: all have the same freedom to explain the ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from envs.profiles.abacus import FIRST, N_LAYERS, CoRuns
from envs.profiles.two_paths import EPS, HUBER, SHARPNESS, STEP, LayerTimes, Slowdown, drawn, end_ms

SMOOTH = (
    1.0  # penalty on the squared difference of what neighbouring layers' logs have moved, against that of an outlier
)
SHRINK = 0.5  # the same on the squares of what they have moved
ROUNDS = 5  # of Levenberg and Marquardt's method
TRIES = 6  # of a round, ever closer to where it stands
OFFSETS = (0.3, -0.05)  # to start from, ms


class SlowdownForm(NamedTuple):
    """A slowdown with free coefficients.

    Attributes:
        slowdown: takes coefficients, shares of the device alone and which ranges run, (N, K) each; returns slowdowns (N, K).
        start: coefficients to start from.
    """

    slowdown: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
    start: tuple[float, ...]

    def at(self, theta: np.ndarray) -> Slowdown:
        """The slowdown with these coefficients."""
        return lambda share, running: self.slowdown(theta, share, running)


class Fitted(NamedTuple):
    """A slowdown and times alone that explain the ends.

    Attributes:
        layers: times alone.
        slowdown: of each range.
        offset_ms: of a row in which one model runs: hand-over and the last synchronisation.
        offset_more_ms: what it is more where several run.
    """

    layers: LayerTimes
    slowdown: Slowdown
    offset_ms: float
    offset_more_ms: float

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return self.end_of(runs, *self.layers.sums(runs))

    def end_of(self, runs: CoRuns, time: np.ndarray, device: np.ndarray) -> np.ndarray:
        """The same from each range's time alone and the device's part of it, (N, K) ms each."""
        share = np.minimum(device / np.maximum(time, EPS), 1.0)
        offset = self.offset_ms + self.offset_more_ms * (runs.running.sum(axis=1) > 1)
        return np.maximum(end_ms(time, share, self.slowdown) + offset, EPS)


def fit_ends(runs: CoRuns, layers: LayerTimes, form: SlowdownForm, rows: int) -> Fitted:
    """Times alone and coefficients from the ends of co-runs, ranges that run alone among them.

    Least squares on the log of the ends, each by its weight under a loss that is linear for outliers (soft L1); what layers
    have moved from ``layers`` is shrunk and smoothed.

    Args:
        runs: the co-runs.
        layers: fitted to ranges that run alone.
        form: of the slowdown.
        rows: co-runs drawn for the fit.
    """
    ends = _Ends(drawn(runs, rows), form)
    start = np.concatenate([np.log(np.stack(layers)).ravel(), form.start, OFFSETS])
    penalty = HUBER**2 * _penalty(len(start))

    def loss(x: np.ndarray) -> tuple[np.ndarray, float]:
        error = ends.log_error(x)
        bent = 2.0 * HUBER**2 * float(np.mean(np.sqrt(1.0 + (error / HUBER) ** 2) - 1.0))
        return error, bent + float((x - start) @ penalty @ (x - start))

    x, damping = start, 1e-2
    error, least = loss(x)
    for _ in range(ROUNDS):
        slope = ends.slopes(x, error)
        weighted = slope / np.sqrt(1.0 + (error / HUBER) ** 2)[:, None] / len(error)
        curvature, gradient = weighted.T @ slope + penalty, weighted.T @ error + penalty @ (x - start)
        for _ in range(TRIES):
            damped = curvature + damping * np.diag(np.diag(curvature) + 1e-7)
            tried = x - np.linalg.solve(damped, gradient)
            error_tried, value = loss(tried)
            if value < least:
                x, error, least, damping = tried, error_tried, value, damping / 5.0
                break
            damping *= 5.0
        else:
            break
    return ends.fitted(x)


def _penalty(n: int) -> np.ndarray:
    """Matrix (n, n) of the penalty on what the logs of layers have moved."""
    step = np.eye(N_LAYERS, k=1) - np.eye(N_LAYERS)
    step[[*(first - 1 for first in FIRST.values() if first), N_LAYERS - 1]] = 0.0  # from one model to the next
    out = np.zeros((n, n))
    for i in range(0, 3 * N_LAYERS, N_LAYERS):
        out[i : i + N_LAYERS, i : i + N_LAYERS] = (SMOOTH * step.T @ step + SHRINK * np.eye(N_LAYERS)) / N_LAYERS
    return out


class _Ends:
    """Log errors of ends and their slopes by parameters: logs of the layers' times (3, N_LAYERS), coefficients, offsets."""

    def __init__(self, runs: CoRuns, form: SlowdownForm) -> None:
        self.runs, self.form = runs, form
        layer = np.arange(N_LAYERS)
        self.inside = (layer >= runs.first[:, :, None]) & (layer < runs.end[:, :, None])
        self.items, at = np.unique(runs.items, return_inverse=True)
        self.at = at.reshape(runs.items.shape)

    def fitted(self, x: np.ndarray) -> Fitted:
        """What the parameters say."""
        layers = LayerTimes(*np.exp(x[: 3 * N_LAYERS]).reshape(3, N_LAYERS))
        return Fitted(layers, self.form.at(x[3 * N_LAYERS : -2]), *x[-2:].tolist())

    def log_error(self, x: np.ndarray) -> np.ndarray:
        """Log (N,) of predicted over measured ends."""
        return np.log(self.fitted(x).end_ms(self.runs) / self.runs.ms)

    def slopes(self, x: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Slopes (N, len(x)) of the log errors, which are ``error`` at ``x``.

        A layer moves an end through the time alone of its range and through the device's part of it, so one difference for
        each of both and each place of a row gives the slopes by all layers.
        """
        out, now = np.zeros((len(error), len(x))), self.fitted(x)
        time, device = now.layers.sums(self.runs)
        layer, executed = now.layers.at(self.items)
        by_host = layer * (now.layers.host / layer) ** SHARPNESS
        by_device = (executed / layer) ** (SHARPNESS - 1.0)
        per_item = now.layers.device_per_item * self.items[:, None]
        for place in range(time.shape[1]):
            grown = np.zeros(time.shape)
            grown[:, place] = STEP
            ends = now.end_of(self.runs, time + grown, device), now.end_of(self.runs, time, device + grown)
            of_time, of_device = ((np.log(end / self.runs.ms) - error)[:, None] / STEP for end in ends)
            inside, at = self.inside[:, place], self.at[:, place]
            by_executed = (of_time * by_device[at] + of_device) * inside
            out[:, :N_LAYERS] += of_time * by_host[at] * inside
            out[:, N_LAYERS : 2 * N_LAYERS] += by_executed * now.layers.device
            out[:, 2 * N_LAYERS : 3 * N_LAYERS] += by_executed * per_item[at]
        for j in range(3 * N_LAYERS, len(x)):
            out[:, j] = (self.log_error(x + STEP * (np.arange(len(x)) == j)) - error) / STEP
        return out
