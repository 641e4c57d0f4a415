"""What a batch would be worth: the requests it is expected to meet, and what it takes from those in flight.

Expectations are chances, not yes or no: with 10 % of slack to spare, a request whose prediction errs by 10 % is met by chance.
"""

from __future__ import annotations

import math

from envs.scheduling.candidates import n_high_of
from envs.scheduling.forecast import in_flight, place
from envs.scheduling.jit import inlined
from envs.scheduling.predictor import FINISH, STREAM
from envs.scheduling.state import HIGH, LOW, P50, P90

SPREAD_TO_P90 = 2.18  # a logistic distribution reaches 90 % at ln 9 = 2.2 of its scales, close to this
FARTHEST = 3.0  # of these scales, where a chance is taken for none or all
LEAST = 1e-6  # times (ms) and earnings below this are none


@inlined
def spread_of_prediction(state, env):
    """How actual over predicted time varies with what is in flight now.

    Returns:
        (median, spread, least, most): its log's median, and how far the log's 90 % quantile lies above it; the ratios that are
        hardly ever and nearly always enough.
    """
    busy = in_flight(state, env)
    median = math.log(max(state.scale[env, busy, P50], 0.5))
    spread = max(math.log(max(state.scale[env, busy, P90], 0.5)) - median, 0.01)
    return median, spread, math.exp(median - FARTHEST * spread), math.exp(median + FARTHEST * spread)


@inlined
def chance(left, predicted, spread_of):
    """Chance that a batch ends within ``left`` ms, given its ``predicted`` ms and what ``spread_of_prediction`` returned."""
    median, spread, least, most = spread_of
    # Most deadlines are far away or have passed: a logarithm for each would be half of what a decision takes.
    if left <= least * predicted:
        return 0.0
    if left >= most * predicted:
        return 1.0
    return 1.0 / (1.0 + math.exp(-SPREAD_TO_P90 * (math.log(left / predicted) - median) / spread))


@inlined
def _expected_of(state, env, priority, model, n, duration, spread_of):
    """Requests among the first n of queue (p, m) that a batch of this predicted duration (ms) is expected to meet."""
    now = state.scheduler[env].now
    met = 0.0
    for i in range(n):
        deadline = state.entry[env, priority, model, place(state, env, priority, model, i)].deadline
        met += chance(deadline - now, duration, spread_of)
    return met


@inlined
def expected_met(state, env, priority, model, n, duration, spread_of):
    """Requests (high, low) that a batch of n of candidate (priority, model) is expected to meet in ``duration`` ms."""
    n_high = n_high_of(state, env, priority, model, n)
    high = _expected_of(state, env, HIGH, model, n_high, duration, spread_of)
    return high, _expected_of(state, env, LOW, model, n - n_high, duration, spread_of)


@inlined
def disturbance(state, env, n_placed, spread_of):
    """What the candidate in the scratch (``forecast.predict_finishes``) does to the ``n_placed`` batches in flight.

    Returns:
        (harm_high, harm_low, delay_high, delay_low): requests that they are expected to meet less, and their delays in ms;
        the delay of a mixed batch counts as one of high priority.
    """
    now = state.scheduler[env].now
    harm_high = 0.0
    harm_low = 0.0
    delay_high = 0.0
    delay_low = 0.0
    for j in range(n_placed):
        stream = int(state.scratch[env, STREAM, j])
        batch = state.stream[env, stream]
        after = state.scratch[env, FINISH, j]
        before = max(batch.finish - now, LEAST)
        if after - before < LEAST:
            continue
        for i in range(batch.n):
            left = state.member[env, stream, i].deadline - now
            harm = chance(left, before, spread_of) - chance(left, after, spread_of)
            if i < batch.n_high:
                harm_high += harm
            else:
                harm_low += harm
        if batch.priority == HIGH:
            delay_high += after - before
        else:
            delay_low += after - before
    return harm_high, harm_low, delay_high, delay_low
