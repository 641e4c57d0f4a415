"""A batch is bound by the slower of two paths: the host that launches its kernels, and the device that executes them.

Fitted to co-runs of ranges of layers (envs.profiles.abacus) in two steps. From ranges alone: for each layer a host time and a
device time that is linear in the batch; the layer takes the p-norm of both, a smooth maximum. From co-runs: how much a
co-runner's share of the device stretches the device's part, and its presence the host's part; and for each model a factor on
its host time, for each batch size one on its device time. No term belongs to a pair, so that pairs and triples that were never
seen are predicted by the same few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize

from envs.profiles.abacus import FIRST, MODELS, N_LAYERS, CoRuns

SHARPNESS = 8.0  # p of the norm
HUBER = 0.05  # log error beyond which a row is an outlier
SMOOTH = 3e-4  # penalty on the squared difference of the logs of neighbouring layers
SHRINK = 0.02  # penalty on the logs of the factors
ROWS = 6000  # drawn for the second step: enough for so few parameters
EPS = 1e-9


@dataclass(frozen=True)
class LayerTimes:
    """Times of each layer alone, (N_LAYERS,) ms: of the host, of the device for an empty batch, and for each item more."""

    host: np.ndarray
    device: np.ndarray
    device_per_item: np.ndarray

    def sums(self, runs: CoRuns) -> tuple[np.ndarray, np.ndarray]:
        """Time alone of each range and the device's part of it, (N, K) ms each."""
        items, at = np.unique(runs.items, return_inverse=True)
        device = self.device + self.device_per_item * items[:, None]
        both = [_cumulative(x) for x in (_norm(self.host, device), device)]
        at = at.reshape(runs.items.shape)
        whole, part = (x[at, runs.end] - x[at, runs.first] for x in both)
        return whole, part


def _norm(host: np.ndarray, device: np.ndarray) -> np.ndarray:
    return (host**SHARPNESS + device**SHARPNESS) ** (1.0 / SHARPNESS)


def _cumulative(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1)


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
        executed = device + per_item * values[:, None]
        layer = _norm(host, executed)
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
        whole, part = self.layers.sums(runs)
        # Of sums that are themselves smooth maxima, what the device does not need is the host's.
        host = np.maximum(whole**SHARPNESS - part**SHARPNESS, 0.0) ** (1.0 / SHARPNESS) * self.host_factor[runs.model]
        items = runs.items if factors_of is None else factors_of
        at = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        device = part * self.device_factor[runs.model, at]
        time = np.where(runs.running, _norm(host, device), 0.0)
        return time, np.where(runs.running, np.minimum(device / np.maximum(time, EPS), 1.0), 0.0)

    def slowdown(self, share: np.ndarray, running: np.ndarray, pair: np.ndarray | None) -> np.ndarray:
        """Slowdown (N, K) of each range while those run that do, by their shares of the device (N, K).

        Args:
            share: of the device, alone.
            running: which ranges run now.
            pair: (N, K, K) log of a factor on each range (second axis) for each other that runs; None: there is none.
        """
        mine = share * running
        beside = mine.sum(axis=1, keepdims=True) - mine
        others = running.sum(axis=1, keepdims=True) - running
        slow = np.maximum(1.0 + self.host_slowdown * others, share * (1.0 + self.device_slowdown * beside))
        return slow if pair is None else np.maximum(slow * np.exp((pair * running[:, None, :]).sum(axis=2)), 1.0)

    def end_ms(self, runs: CoRuns, pair: np.ndarray | None = None) -> np.ndarray:
        """Predicted time (N,) until all have ended; ``pair`` as for ``slowdown``."""
        left, share = self.alone(runs)
        several = (left > 0).sum(axis=1) > 1
        now = np.zeros(len(left))
        for _ in range(left.shape[1]):
            running = left > EPS
            slow = self.slowdown(share, running, pair)
            finish = np.where(running, left * slow, np.inf)
            step = finish.min(axis=1)
            step[~np.isfinite(step)] = 0.0
            now += step
            left = np.where(finish > step[:, None] * (1.0 + 1e-9), left - step[:, None] / slow, 0.0)
            left[~running] = 0.0
        return now + self.offset_ms + self.offset_more_ms * several


def fit_two_paths(runs: CoRuns, layers: LayerTimes, rows: int = ROWS, seed: int = 0) -> TwoPaths:
    """The whole from co-runs, ranges that run alone among them; ``rows`` of these are drawn."""
    if len(runs) > rows:
        runs = runs.take(np.random.default_rng(seed).choice(len(runs), rows, replace=False))
    items = np.unique(runs.items)
    n_factors = len(MODELS) * (1 + len(items))

    def model(theta: np.ndarray) -> TwoPaths:
        factors = np.exp(theta[:n_factors])
        host, device = factors[: len(MODELS)], factors[len(MODELS) :].reshape(len(MODELS), len(items))
        return TwoPaths(layers, host, device, items, *theta[n_factors:].tolist())

    def errors(theta: np.ndarray) -> np.ndarray:
        error = np.log(np.maximum(model(theta).end_ms(runs), EPS) / runs.ms) / np.sqrt(len(runs))
        return np.append(error, SHRINK * theta[:n_factors] / np.sqrt(n_factors))

    start = np.append(np.zeros(n_factors), [1.2, 0.05, 0.3, -0.05])
    return model(least_squares(errors, start, loss="soft_l1", f_scale=HUBER / np.sqrt(len(runs)), max_nfev=12).x)
