"""Slowdowns of co-runs from the shares of the device that each takes alone: our candidates, and those to compare with.

Each takes its coefficients, the shares and which ranges run, (N, K) each, and returns slowdowns (N, K).
"""

from __future__ import annotations

import numpy as np

from benchmarks.interference.end_fit import SlowdownForm
from envs.profiles.two_paths import EPS, beside, slower_path

LEAST_SHARE = 0.02  # below which shares are not told apart


def _alone(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    return np.ones(share.shape)


def _by_number(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """The same for every batch; each co-runner costs as much as the first, since triples may be unknown."""
    return np.maximum(1.0 + theta[0] * beside(running.astype(float)), 1.0)


def _gpulet(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """GPUlet's form: a constant, and linear in the use of the device by a batch and by the others."""
    linear = theta[0] + theta[1] * share + theta[2] * beside(share * running)
    return np.where(beside(running.astype(float)) > 0, np.maximum(linear, 1.0), 1.0)


def _ridge(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """Linear in the number of the others, the shares of both sides, and their product."""
    n, others = beside(running.astype(float)), beside(share * running)
    columns = (n, share * (n > 0), others, share * others)
    return np.maximum(1.0 + sum(weight * x for weight, x in zip(theta, columns, strict=True)), 1.0)


def _both_paths(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """What the others cost the host's part and the device's part adds up."""
    device, host = theta
    cost = (1.0 - share) * host * beside(running.astype(float)) + share * device * beside(share * running)
    return np.maximum(1.0 + cost, 1.0)


def _device_path(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """Only the device is contended, and only where it is the bottleneck."""
    return np.maximum(share * (1.0 + theta[0] * beside(share * running)), 1.0)


def _filled(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """The device's capacity goes to each by its weight, the more the less it asks for, and to none more than it asks for.

    What asks for little (a model of many short kernels that waits for its host) then gets all of it, and what asks for the
    whole device gets what is left, as on a device that starts whatever kernel is ready.
    """
    capacity, host, lightness = theta
    demand = share * running
    weight = np.maximum(share, LEAST_SHARE) ** -lightness
    given, left, waiting = np.zeros(share.shape), np.full((len(share), 1), capacity), demand > 0
    for _ in range(share.shape[1]):
        mine = waiting * weight
        part = left * mine / np.maximum(mine.sum(axis=1, keepdims=True), EPS)
        enough = waiting & (demand <= part)
        given = np.where(enough, demand, np.where(waiting, part, given))
        left = np.maximum(left - (demand * enough).sum(axis=1, keepdims=True), EPS)
        waiting &= ~enough
    device = np.where(demand > 0, share / np.maximum(given, LEAST_SHARE), 1.0)
    return np.maximum(1.0 + host * beside(running.astype(float)), device)


# The candidates of our model, chosen from as those of benchmarks.interference.forms are.
CANDIDATES = {
    "the slower path": SlowdownForm(slower_path, (1.2, 0.05)),
    "both paths": SlowdownForm(_both_paths, (1.0, 0.05)),
    "the device's path": SlowdownForm(_device_path, (1.2,)),
    "filled by weight": SlowdownForm(_filled, (0.95, 0.05, 2.0)),
}
BASELINES = {
    "solo": SlowdownForm(_alone, ()),
    "constant": SlowdownForm(_by_number, (0.2,)),
    "gpulet": SlowdownForm(_gpulet, (1.0, 0.2, 0.2)),
    "ridge": SlowdownForm(_ridge, (0.05, 0.05, 0.1, 0.3)),
}
