"""A batch is bound by the slower of two paths: the host that launches its kernels, and the device that executes them.

Fitted to co-runs of ranges of layers (envs.profiles.abacus) in two steps. From ranges alone: for each layer a host time and a
device time that is linear in the batch; the layer takes the p-norm of both, a smooth maximum. From co-runs: how much a
co-runner's share of the device stretches the device's part, and its presence the host's part; and for each model a factor on
its host time, for each batch size one on its device time. No term belongs to a pair, so that pairs and triples that were never
seen are predicted by the same few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares, minimize

from envs.profiles.abacus import FIRST, MODELS, N_LAYERS, CoRuns

SHARPNESS = 8.0  # p of the norm
HUBER = 0.05  # log error beyond which a row is an outlier
SMOOTH = 3e-4  # penalty on the squared difference of the logs of neighbouring layers
SHRINK = 0.02  # penalty on the logs of the factors
ROWS = 6000  # drawn for the second step: enough for so few parameters
EPS = 1e-9
STEP = 1e-6  # of a finite difference
START = (1.2, 0.05, 0.3, -0.05)  # of the slowdown of the device and of the host, and of both offsets, ms

# Takes shares of the device alone and which ranges run now, (N, K) each; returns the slowdown (N, K) of each.
Slowdown = Callable[[np.ndarray, np.ndarray], np.ndarray]


class LayerTimes(NamedTuple):
    """Times of each layer alone, (N_LAYERS,) ms: of the host, of the device for an empty batch, and for each item more."""

    host: np.ndarray
    device: np.ndarray
    device_per_item: np.ndarray

    def at(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Time of each layer and the device's part of it, (V, N_LAYERS) ms each, at these numbers of items (V,)."""
        device = self.device + self.device_per_item * items[:, None]
        return norm(self.host, device), device

    def sums(self, runs: CoRuns) -> tuple[np.ndarray, np.ndarray]:
        """Time alone of each range and the device's part of it, (N, K) ms each."""
        items, at = np.unique(runs.items, return_inverse=True)
        at = at.reshape(runs.items.shape)
        both = [np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1) for x in self.at(items)]
        whole, part = (x[at, runs.end] - x[at, runs.first] for x in both)
        return whole, part

    def paths(self, runs: CoRuns) -> tuple[np.ndarray, np.ndarray]:
        """Time of the host and of the device for each range, (N, K) ms each; their p-norm is its time alone."""
        whole, part = self.sums(runs)
        # Of sums that are themselves smooth maxima, what the device does not need is the host's.
        return np.maximum(whole**SHARPNESS - part**SHARPNESS, 0.0) ** (1.0 / SHARPNESS), part


def norm(host: np.ndarray, device: np.ndarray) -> np.ndarray:
    """Smooth maximum of the times of both paths."""
    return (host**SHARPNESS + device**SHARPNESS) ** (1.0 / SHARPNESS)


def fit_layers(runs: CoRuns, iterations: int = 400) -> LayerTimes:
    """Layer times from the rows in which one model runs alone."""
    alone = runs.running.sum(axis=1) == 1
    rows, which = np.arange(int(alone.sum())), runs.running[alone].argmax(axis=1)
    first, end, items = (x[alone][rows, which] for x in (runs.first, runs.end, runs.items))
    ms = runs.ms[alone]
    values, at = np.unique(items, return_inverse=True)
    inside = (np.arange(N_LAYERS) >= first[:, None]) & (np.arange(N_LAYERS) < end[:, None])
    same = np.array([i for i in range(N_LAYERS - 1) if i + 1 not in FIRST.values()])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        host, device, per_item = np.exp(theta[:-1]).reshape(3, N_LAYERS)
        offset = np.exp(theta[-1])
        layer, executed = LayerTimes(host, device, per_item).at(values)
        predicted = (inside * layer[at]).sum(axis=1) + offset
        error = np.log(predicted / ms)
        held = np.clip(error, -HUBER, HUBER)
        slope = held / predicted / len(ms)
        by_value = np.zeros(layer.shape)
        np.add.at(by_value, at, slope[:, None] * inside)
        by_host = by_value * (host / layer) ** (SHARPNESS - 1.0)
        by_device = by_value * (executed / layer) ** (SHARPNESS - 1.0)
        gradient = np.stack([by_host.sum(axis=0) * host, by_device.sum(axis=0) * device, np.zeros(N_LAYERS)])
        gradient[2] = (by_device * values[:, None]).sum(axis=0) * per_item
        logs = theta[:-1].reshape(3, N_LAYERS)
        jump = logs[:, same + 1] - logs[:, same]
        gradient[:, same + 1] += 2.0 * SMOOTH * jump / len(same)
        gradient[:, same] -= 2.0 * SMOOTH * jump / len(same)
        value = float(np.mean(held * (error - held / 2.0)) + SMOOTH * np.sum(jump**2) / len(same))
        return value, np.append(gradient.ravel(), slope.sum() * offset)

    start = np.log(np.repeat([0.4, 0.05, 0.02], N_LAYERS))
    found = minimize(
        loss, np.append(start, np.log(0.3)), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
    ).x
    return LayerTimes(*np.exp(found[:-1]).reshape(3, N_LAYERS))


def end_ms(alone_ms: np.ndarray, share: np.ndarray, slowdown: Slowdown) -> np.ndarray:
    """Time (N,) until all of each co-run have ended that began together.

    Args:
        alone_ms: (N, K) time alone of each range, 0 where a model does nothing.
        share: (N, K) the device's share of it.
        slowdown: what each is slowed by while some run.
    """
    left, now = alone_ms, np.zeros(len(alone_ms))
    for _ in range(left.shape[1]):
        running = left > EPS
        slow = slowdown(share, running)
        finish = np.where(running, left * slow, np.inf)
        step = finish.min(axis=1)
        step[~np.isfinite(step)] = 0.0
        now += step
        left = np.where(finish > step[:, None] * (1.0 + 1e-9), left - step[:, None] / slow, 0.0)
        left[~running] = 0.0
    return now


def time_and_share(host: np.ndarray, device: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time alone and the device's share of it, from the times of both paths, which are 0 where nothing runs."""
    time = norm(host, device)
    return time, np.minimum(device / np.maximum(time, EPS), 1.0)


@dataclass(frozen=True)
class TwoPaths:
    """What is known of a device.

    Attributes:
        layers: times alone.
        host_factor: (M,) on each model's host time.
        device_factor: (M, V) on each model's device time, by ``items``.
        items: (V,) values of CoRuns.items, ascending.
        device_slowdown: stretch of the device's part for each unit of the co-runners' shares.
        host_slowdown: stretch of the host's part for each co-runner.
        offset_ms: of a row in which one model runs: hand-over and the last synchronisation.
        offset_more_ms: what it is more where several run.
    """

    layers: LayerTimes
    host_factor: np.ndarray
    device_factor: np.ndarray
    items: np.ndarray
    device_slowdown: float
    host_slowdown: float
    offset_ms: float
    offset_more_ms: float

    def alone(self, runs: CoRuns, factors_of: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Time alone of each range in ms and the device's share of it, (N, K) each; 0 where a model does nothing.

        Args:
            runs: the ranges.
            factors_of: (N, K) items whose factors are taken where their own were not measured.
        """
        host, device = self.layers.paths(runs)
        items = runs.items if factors_of is None else factors_of
        at = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        return time_and_share(host * self.host_factor[runs.model], device * self.device_factor[runs.model, at])

    def end_ms(self, runs: CoRuns, pair: np.ndarray | None = None) -> np.ndarray:
        """Predicted time (N,) until all have ended.

        Args:
            runs: the co-runs.
            pair: (N, K, K) log of a factor on each range (second axis) for each other that runs; None: there is none.
        """

        def slowdown(share: np.ndarray, running: np.ndarray) -> np.ndarray:
            slow = slower_path((self.device_slowdown, self.host_slowdown), share, running)
            if pair is None:
                return slow
            return np.maximum(slow * np.exp((pair * running[:, None, :]).sum(axis=2)), 1.0)

        offset = self.offset_ms + self.offset_more_ms * (runs.running.sum(axis=1) > 1)
        return end_ms(*self.alone(runs), slowdown) + offset


def beside(x: np.ndarray) -> np.ndarray:
    """Sum (N, K) over the others of each row."""
    return x.sum(axis=1, keepdims=True) - x


def slower_path(theta: Sequence[float], share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """Slowdown (N, K) where the slower of both paths counts; ``theta`` is that of the device, then that of the host."""
    device, host = theta
    slow = np.maximum(1.0 + host * beside(running.astype(float)), share * (1.0 + device * beside(share * running)))
    return np.maximum(slow, 1.0)


def fit_two_paths(runs: CoRuns, layers: LayerTimes, rows: int = ROWS, seed: int = 0) -> TwoPaths:
    """The whole from co-runs, ranges that run alone among them; ``rows`` of these are drawn."""
    runs = drawn(runs, rows, seed)
    items, n_models = np.unique(runs.items), len(MODELS)
    n_factors = n_models * (1 + len(items))
    paths = np.stack(layers.paths(runs))
    # Which factor each path of each range has: (2, N, K).
    factor = np.stack([runs.model, n_models + runs.model * len(items) + np.searchsorted(items, runs.items)])
    several, root = runs.running.sum(axis=1) > 1, np.sqrt(len(runs))

    def log_error(theta: np.ndarray, moved: np.ndarray | float = 0.0) -> np.ndarray:
        time, share = time_and_share(*(paths * np.exp(theta[factor] + moved)))
        *slopes, offset, more = theta[n_factors:]
        end = end_ms(time, share, partial(slower_path, slopes)) + offset + more * several
        return np.log(np.maximum(end, EPS) / runs.ms) / root

    def errors(theta: np.ndarray) -> np.ndarray:
        return np.append(log_error(theta), SHRINK * theta[:n_factors] / np.sqrt(n_factors))

    def slopes(theta: np.ndarray) -> np.ndarray:
        # A factor moves only the rows with its model, so one difference for each place of a row gives the slopes of all.
        out = np.zeros((len(runs) + n_factors, len(theta)))
        out[len(runs) + np.arange(n_factors), np.arange(n_factors)] = SHRINK / np.sqrt(n_factors)
        now, row = log_error(theta), np.arange(len(runs))
        for path, place in np.ndindex(len(factor), runs.model.shape[1]):
            moved = np.zeros(factor.shape)
            moved[path, :, place] = STEP
            out[row, factor[path, :, place]] += (log_error(theta, moved) - now) / STEP
        for j in range(n_factors, len(theta)):
            out[: len(runs), j] = (log_error(theta + STEP * (np.arange(len(theta)) == j)) - now) / STEP
        return out

    start = np.concatenate([np.zeros(n_factors), START])
    found = least_squares(errors, start, jac=slopes, loss="soft_l1", f_scale=HUBER / root, max_nfev=12).x
    host, device = np.split(np.exp(found[:n_factors]), [n_models])
    return TwoPaths(layers, host, device.reshape(n_models, -1), items, *found[n_factors:].tolist())


def drawn(runs: CoRuns, rows: int, seed: int = 0) -> CoRuns:
    """So many of the rows, at random."""
    if len(runs) <= rows:
        return runs
    return runs.take(np.random.default_rng(seed).choice(len(runs), rows, replace=False))
