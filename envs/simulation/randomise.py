"""What each episode draws beside its arrivals: how its device strays from what the scheduler is told, the weight of high."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs.profiles.truth import Truth
from envs.scheduling import rng
from envs.scheduling.jit import njit
from envs.simulation.config import EnvConfig

# Places of Randomiser.spread.
SOLO_ERROR, DEVICE_ERROR, SLOWDOWN_ERROR, MIN_STREAMS, LEAST_LOG_WEIGHT, MOST_LOG_WEIGHT = range(6)


class Randomiser(NamedTuple):
    """The device as profiled, and how far episodes stray from it.

    Attributes:
        solo: (M, B) execution time as profiled; (0, 0) when the device does not change.
        pair: (M * B, M * B) logs of slowdown factors as profiled.
        spread: (6,) settings of RandomiseConfig, by SOLO_ERROR, DEVICE_ERROR, SLOWDOWN_ERROR and MIN_STREAMS; and the logs of
            the ends of ``EnvConfig.high_weight``.
    """

    solo: np.ndarray
    pair: np.ndarray
    spread: np.ndarray


def make_randomiser(truth: Truth, config: EnvConfig, n: int) -> tuple[Randomiser, Truth]:
    """The randomiser, and the truth it writes to: one device for each of n worlds if devices change."""
    strays = config.randomise
    least = config.streams if strays.min_streams is None else strays.min_streams
    device = (strays.solo_error, strays.device_error, strays.slowdown_error)
    spread = np.array([*device, float(least), *np.log(config.high_weight)])
    if not strays.changes_device:
        return Randomiser(np.zeros((0, 0)), np.zeros((0, 0)), spread), truth
    own = truth._replace(solo=np.repeat(truth.solo, n, axis=0), pair=np.repeat(truth.pair, n, axis=0))
    # World code finds the row of every array but the drift by the first axis of ``solo``: all must have one for each world.
    rest = {
        f: np.repeat(getattr(truth, f), n, axis=0) for f in Truth._fields if f not in ("solo", "pair", "log_slowdown")
    }
    return Randomiser(truth.solo[0].copy(), truth.pair[0].copy(), spread), own._replace(**rest)


@njit
def draw_device(truth, randomiser, env, seed):
    """Draw world e's device for the episode of ``seed``: execution times and pair slowdowns."""
    own = rng.mix(seed, rng.DEVICE)
    device = randomiser.spread[DEVICE_ERROR] * rng.normal(own, 0)
    stretch = math.exp(randomiser.spread[SLOWDOWN_ERROR] * rng.normal(own, 1))
    for model in range(randomiser.solo.shape[0]):
        factor = math.exp(device + randomiser.spread[SOLO_ERROR] * rng.normal(own, 2 + model))
        for size in range(randomiser.solo.shape[1]):
            truth.solo[env, model, size] = randomiser.solo[model, size] * factor
    if randomiser.spread[SLOWDOWN_ERROR] > 0.0:
        for i in range(randomiser.pair.shape[0]):
            for j in range(randomiser.pair.shape[1]):
                truth.pair[env, i, j] = randomiser.pair[i, j] * stretch


@njit
def draw_streams(randomiser, n_streams, seed):
    """Number of streams in the episode of ``seed``."""
    least = int(randomiser.spread[MIN_STREAMS])
    return least + int(rng.uniform(rng.mix(seed, rng.STREAMS), 0) * (n_streams - least + 1))


@njit
def draw_high_weight(randomiser, seed):
    """What a high-priority request counts in the episode of ``seed``, a low-priority one being 1; even in its log."""
    low = randomiser.spread[LEAST_LOG_WEIGHT]
    high = randomiser.spread[MOST_LOG_WEIGHT]
    return math.exp(low + (high - low) * rng.uniform(rng.mix(seed, rng.HIGH_WEIGHT), 0))
