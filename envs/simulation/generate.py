"""Compiled synthetic arrivals, so that a batch of training worlds can begin new episodes without Python.

Arrivals are a two-state Markov-modulated Poisson process (Fischer and Meier-Hellstern, 1993): a calm and a burst state with
exponential sojourns; a burst factor of 1 is a Poisson process. At ``begin`` each world draws its load, burstiness, priority
share and deadline factors from ranges (domain randomisation; a range of zero width fixes the value).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs.scheduling import rng
from envs.scheduling.jit import njit

# Columns of Generator.low and Generator.high.
RATE, BURST, BURST_SHARE, SOJOURN, HIGH_SHARE, FACTOR_HIGH, FACTOR_LOW, DURATION = range(8)
COLUMNS = 8


class Generator(NamedTuple):
    """Ranges that each episode draws its workload from; leading axis G is 1 or N.

    Attributes:
        low: (G, 8) lower ends: arrivals per ms, burst factor (rate in a burst over the mean rate, at least 1), share of time
            in bursts, mean burst length in ms, share of high priority, deadline over solo latency for high and for low
            priority, duration in ms. high: (G, 8) upper ends.
        share: (G, M) share of each model, adding up to 1. spread: (G,) how far an episode's shares are drawn away from
            ``share`` (0 = not at all; else the standard deviation of the log).
        drawn: (N, 8) what each world's episode drew. cumulative: (N, M) its cumulative model shares. Both are output.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    spread: np.ndarray
    drawn: np.ndarray
    cumulative: np.ndarray


def make_generator(low: np.ndarray, high: np.ndarray, share: np.ndarray, spread: np.ndarray, n: int) -> Generator:
    """A generator for n worlds: ``low`` and ``high`` (G, 8), ``share`` (G, M), ``spread`` (G,), see ``Generator``."""
    share = np.asarray(share, float)
    return Generator(low, high, share, spread, np.zeros((n, COLUMNS)), np.zeros((n, share.shape[1])))


@njit
def generate(w, tb, gen, e, seed):
    """Draw one episode's arrivals into ``w.request[e]`` and set ``w.env[e].n``; stops early when the room is full."""
    g = e % gen.low.shape[0]
    t_g = e % tb.solo.shape[0]
    value = gen.drawn[e]
    for i in range(COLUMNS):
        low = gen.low[g, i]
        high = gen.high[g, i]
        value[i] = low + (high - low) * rng.uniform(seed, i)
    n_models = gen.share.shape[1]
    cumulative = gen.cumulative[e]
    total = 0.0
    for m in range(n_models):
        weight = gen.share[g, m]
        if gen.spread[g] > 0.0:
            weight *= math.exp(gen.spread[g] * rng.normal(seed, 100 + m))
        total += weight
        cumulative[m] = total
    share = value[BURST_SHARE]
    # A burst cannot hold more than all arrivals.
    burst = min(value[BURST], 1.0 / share) if share > 0.0 else 1.0
    rate_burst = value[RATE] * burst
    rate_calm = value[RATE] * (1.0 - share * burst) / (1.0 - share) if share < 1.0 else value[RATE]
    counter = 1000
    bursting = rng.uniform(seed, 50) < share
    t = 0.0
    n = 0
    sojourn = value[SOJOURN]
    calm_sojourn = sojourn * (1.0 - share) / share if share > 0.0 else np.inf
    switch = rng.exponential(seed, counter, sojourn if bursting else min(calm_sojourn, 1e12))
    while n < w.request.shape[1]:
        counter += 1
        rate = rate_burst if bursting else rate_calm
        ahead = rng.exponential(seed, counter, 1.0 / rate) if rate > 0.0 else np.inf
        if t + ahead > switch:
            # The exponential has no memory: draw afresh from the switch on.
            t = switch
            bursting = not bursting
            counter += 1
            switch = t + rng.exponential(seed, counter, sojourn if bursting else min(calm_sojourn, 1e12))
            if t > value[DURATION]:
                break
            continue
        t += ahead
        if t > value[DURATION]:
            break
        r = w.request[e, n]
        counter += 1
        pick = rng.uniform(seed, counter) * total
        m = 0
        while m < n_models - 1 and cumulative[m] <= pick:
            m += 1
        counter += 1
        r.priority = 0 if rng.uniform(seed, counter) < value[HIGH_SHARE] else 1
        r.model = m
        r.arrival = t
        factor = value[FACTOR_HIGH] if r.priority == 0 else value[FACTOR_LOW]
        r.deadline = t + factor * (tb.h2d[t_g, m, 0] + tb.solo[t_g, m, 0] + tb.d2h[t_g, m, 0])
        n += 1
    w.env[e].n = n
