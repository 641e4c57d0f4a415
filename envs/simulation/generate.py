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
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import njit

# Columns of Generator.low and Generator.high.
RATE, BURST, BURST_SHARE, SOJOURN, HIGH_SHARE, FACTOR_HIGH, FACTOR_LOW, DURATION = range(8)
COLUMNS = 8
# Counters of an episode's seed: the first COLUMNS draw the ranges, then the first state, the mix, and all arrivals.
STATE_AT, MIX_AT, ARRIVALS_AT = 50, 100, 1000


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
def generate(world, tables, generator, env, seed):
    """Draw one episode's arrivals into ``w.request[e]`` and set ``w.episode[e].n``; stops early when the room is full."""
    group = env % generator.low.shape[0]
    t_g = env % tables.solo.shape[0]
    value = generator.drawn[env]
    for i in range(COLUMNS):
        low = generator.low[group, i]
        high = generator.high[group, i]
        value[i] = low + (high - low) * rng.uniform(seed, i)
    n_models = generator.share.shape[1]
    cumulative = generator.cumulative[env]
    total = 0.0
    for model in range(n_models):
        weight = generator.share[group, model]
        if generator.spread[group] > 0.0:
            weight *= math.exp(generator.spread[group] * rng.normal(seed, MIX_AT + model))
        total += weight
        cumulative[model] = total
    share = value[BURST_SHARE]
    # A burst cannot hold more than all arrivals.
    burst = min(value[BURST], 1.0 / share) if share > 0.0 else 1.0
    rate_burst = value[RATE] * burst
    rate_calm = value[RATE] * (1.0 - share * burst) / (1.0 - share) if share < 1.0 else value[RATE]
    counter = ARRIVALS_AT
    bursting = rng.uniform(seed, STATE_AT) < share
    t = 0.0
    n = 0
    sojourn = value[SOJOURN]
    calm_sojourn = sojourn * (1.0 - share) / share if share > 0.0 else np.inf
    switch = rng.exponential(seed, counter, sojourn if bursting else min(calm_sojourn, 1e12))
    while n < world.request.shape[1]:
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
        r = world.request[env, n]
        counter += 1
        pick = rng.uniform(seed, counter) * total
        model = 0
        while model < n_models - 1 and cumulative[model] <= pick:
            model += 1
        counter += 1
        r.priority = 0 if rng.uniform(seed, counter) < value[HIGH_SHARE] else 1
        r.model = model
        r.arrival = t
        factor = value[FACTOR_HIGH] if r.priority == 0 else value[FACTOR_LOW]
        r.deadline = t + factor * solo_total(tables, t_g, model, 0)
        n += 1
    world.episode[env].n = n
