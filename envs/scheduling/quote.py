"""Quotes: how likely a request would be in time if it were offered now, and when it would end. Nothing is offered.

What lies ahead of the request is counted: the batches in flight, the queued requests that the policy serves before it, and
the batch that it would be part of. That gives a time by the predictor. Two things it cannot know are learned from how quoted
requests ended: how a finish compares with that time (quantiles of their ratio, each an online quantile step as in
envs.scheduling.learning), and what the circumstances say of the chance to be in time (logistic regression by recursive Newton
steps with forgetting, then corrected by bins of its probability). Only outcomes that have happened are used.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs.scheduling.forecast import alone_ms, in_flight, solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.learning import LEVELS, N_QUANTILES
from envs.scheduling.predictor import FINISH, MAX_SLOWDOWN, integrate, load_in_flight
from envs.scheduling.rates import offered_rates
from envs.scheduling.state import HIGH, LOW, MET

# Which queued requests a policy serves before another: those of high priority first and within a priority by deadline; by
# deadline alone; or in the order of arrival. The queue of a model and priority itself is first come, first served under all.
BY_PRIORITY, BY_DEADLINE, BY_ARRIVAL = range(3)

# Places of the features of a quote; the last five of its row are not features.
(
    ONE, RATIO, ABOVE_EVEN, ABOVE_DOUBLE, HIGH_AHEAD, LOW_AHEAD, OWN_BATCH, IN_FLIGHT_LEFT, RECENT, OFFERED_HIGH, OFFERED_LOW,
    POSITION,
) = range(12)  # fmt: skip
N_QUOTE_FEATURES = 12
PREDICTED_MS, PRIORITY, MODEL, ASKED_AT, RAW = range(N_QUOTE_FEATURES, N_QUOTE_FEATURES + 5)
ROW = N_QUOTE_FEATURES + 5  # floats that a quote leaves, from which its outcome is learned

BINS = 10
RATIO_BOUND = 2.0  # of the log of slack over predicted time, beyond which it says no more
FORGETTING = 0.9998  # of the regression, for each outcome of a priority
FIRST_WEIGHTS = {RATIO: 3.0, IN_FLIGHT_LEFT: -1.5}  # before any outcome, for both priorities
FIRST_VARIANCE = 0.3  # of each weight
FIRST_MODEL_VARIANCE = 0.3  # of each model's offset
MODEL_FORGETTING = 0.998
RECENT_RATE = 0.05  # of the share that was in time lately
BIN_FORGETTING = 0.9995
BIN_PRIOR = 30.0  # outcomes that a bin's own middle counts for
SCALE_RATE = 0.02
LEAST_MS = 1e-3
LEAST_SCALE = 0.05
MOST_LOGIT = 12.0
LEAST_INFORMATION = 0.01  # of an outcome, so that one near certainty does not throw the weights


class Calibration(NamedTuple):
    """What N schedulers learned from the outcomes of their quotes, by priority.

    Attributes:
        weight: (N, 2, N_QUOTE_FEATURES) of the logistic regression.
        cov: (N, 2, N_QUOTE_FEATURES, N_QUOTE_FEATURES) their covariance.
        offset: (N, 2, M) added for each model.
        known: (N, 2, M) information that each offset was learned from, fading.
        recent: (N, 2) share of the requests that ended lately that was in time.
        surprise: (N, 2, BINS) outcomes (1 in time, else 0) less the regression's probability, summed by bins of that, fading.
        ended: (N, 2, BINS) number of outcomes there, fading.
        scale: (N, 2, len(QUANTILES)) quantiles of actual over predicted time until the end.
        gain: (N, N_QUOTE_FEATURES) scratch.
    """

    weight: np.ndarray
    cov: np.ndarray
    offset: np.ndarray
    known: np.ndarray
    recent: np.ndarray
    surprise: np.ndarray
    ended: np.ndarray
    scale: np.ndarray
    gain: np.ndarray


class Question(NamedTuple):
    """A request that might be offered.

    Attributes:
        now: present time, ms.
        priority: HIGH or LOW.
        model: index.
        deadline: absolute, ms.
        order: of the policy: BY_PRIORITY, BY_DEADLINE or BY_ARRIVAL.
    """

    now: float
    priority: int
    model: int
    deadline: float
    order: int


def make_calibration(n: int, n_models: int) -> Calibration:
    """The calibration of n schedulers that have seen no outcome: slack over what is needed decides, and what is in flight."""
    features = N_QUOTE_FEATURES
    calibration = Calibration(
        np.zeros((n, 2, features)),
        np.tile(FIRST_VARIANCE * np.eye(features), (n, 2, 1, 1)),
        np.zeros((n, 2, n_models)),
        np.full((n, 2, n_models), 1.0 / FIRST_MODEL_VARIANCE),
        np.ones((n, 2)),
        np.zeros((n, 2, BINS)),
        np.full((n, 2, BINS), BIN_PRIOR),
        np.ones((n, 2, N_QUANTILES)),
        np.zeros((n, features)),
    )
    for feature, weight in FIRST_WEIGHTS.items():
        calibration.weight[..., feature] = weight
    return calibration


@inlined
def _ahead(state, env, question, priority, model):
    """Requests of queue (priority, model) that the policy serves before the one in question."""
    length = state.queue[env, priority, model].length
    if length == 0 or (priority == question.priority and model == question.model) or question.order == BY_ARRIVAL:
        return length
    if question.order == BY_PRIORITY and priority != question.priority:
        return length if priority == HIGH else 0
    n = 0
    head = state.queue[env, priority, model].head
    places = state.entry.shape[3]
    for i in range(length):
        at = head + i
        if at >= places:
            at -= places
        if state.entry[env, priority, model, at].deadline <= question.deadline:
            n += 1
    return n


@inlined
def _batches_ms(state, tables, env, model, n):
    """Time alone on the device that n requests of a model take in the largest batches."""
    if n == 0:
        return 0.0
    largest = tables.size.shape[0] - 1
    full = n // tables.size[largest]
    rest = n - full * tables.size[largest]
    total = full * alone_ms(state, tables, env, model, largest) if full > 0 else 0.0
    if rest > 0:
        total += alone_ms(state, tables, env, model, _size_for(tables, rest))
    return total


@inlined
def _size_for(tables, n):
    """Index of the smallest batch size that holds n requests; the largest where none does."""
    for size in range(tables.size.shape[0]):
        if tables.size[size] >= n:
            return size
    return tables.size.shape[0] - 1


@inlined
def left_in_flight(state, tables, env, now):
    """Batches in flight: how many, when the first ends, and their times left in sum, in ms from now."""
    own = state.scheduler[env]
    n = 0
    first = np.inf
    left = 0.0
    if own.forecast_valid == 1:
        for stream in range(state.stream.shape[1]):
            if state.stream[env, stream].busy == 1:
                ends = max(state.stream[env, stream].finish - now, 0.0)
                first = min(first, ends)
                left += ends
                n += 1
        return n, first, left
    n, _ = load_in_flight(state, tables, env)
    integrate(state, tables, env, n, np.inf, False)
    own.cached_model = -1  # its scratch is overwritten
    for j in range(n):
        ends = max(own.now + state.scratch[env, FINISH, j] - now, 0.0)
        first = min(first, ends)
        left += ends
    return n, first, left


@inlined
def _crowding(state, tables, env):
    """How much longer a batch takes when all streams are full, by what the calibrated median says of it."""
    return min(max(state.scale[env, in_flight(state, env), 0], 0.5), MAX_SLOWDOWN)


@njit
def quote(state, tables, calibration, env, question, row):
    """Probability that a request is in time if it is offered now. The scheduling state is not changed.

    Args:
        state, tables, calibration, env: of the scheduler.
        question: the request.
        row: (ROW,) output, to be kept until the request ends if ``learn_quote`` shall learn from it.

    Returns:
        (probability, predicted_ms): the time from now to its end as predicted, to be multiplied by ``calibration.scale``.
    """
    own = state.scheduler[env]
    group = env % tables.solo.shape[0]
    now = question.now
    n_models = state.queue.shape[2]
    largest = tables.size[tables.size.shape[0] - 1]
    position = 0
    high = 0.0
    low = 0.0
    for model in range(n_models):
        n_high = _ahead(state, env, question, HIGH, model)
        n = n_high + _ahead(state, env, question, LOW, model)
        if model == question.model:
            # The last of them are in its own batch.
            position = n
            n -= n % largest
            n_high = min(n_high, n)
        # Both priorities are taken for mixed batches: what low adds to those of high.
        work = _batches_ms(state, tables, env, model, n_high)
        high += work
        low += max(_batches_ms(state, tables, env, model, n) - work, 0.0)
    own_batch = position % largest + 1
    batch_ms = alone_ms(state, tables, env, question.model, _size_for(tables, own_batch))
    busy, first, left = left_in_flight(state, tables, env, now)
    streams = float(busy + own.n_free)
    cores = tables.device[group].cores
    at_once = min(streams, cores) if cores > 0.0 else streams
    wait = first if own.n_free == 0 else 0.0
    if high + low > 0.0:
        wait = max(wait, (left + high + low) / max(at_once, 1.0))
    predicted = max(wait + batch_ms * _crowding(state, tables, env), LEAST_MS)
    slack = max(question.deadline - now, LEAST_MS)
    ratio = min(max(math.log(slack / predicted), -RATIO_BOUND), RATIO_BOUND)
    row[ONE] = 1.0
    row[RATIO] = ratio
    row[ABOVE_EVEN] = max(ratio, 0.0)
    row[ABOVE_DOUBLE] = max(ratio - 0.7, 0.0)
    row[HIGH_AHEAD] = math.log1p(min(high / slack, 20.0))
    row[LOW_AHEAD] = math.log1p(min(low / slack, 20.0))
    row[OWN_BATCH] = math.log1p(min(batch_ms / slack, 20.0))
    row[IN_FLIGHT_LEFT] = math.log1p(min(left / slack, 20.0))
    share = min(max(calibration.recent[env, question.priority], 0.02), 0.98)
    row[RECENT] = 0.5 * math.log(share / (1.0 - share))
    rate_high, rate_low = offered_rates(state, tables, env)
    row[OFFERED_HIGH] = math.log1p(min(rate_high, 50.0))
    row[OFFERED_LOW] = math.log1p(min(rate_low, 50.0))
    row[POSITION] = math.log1p(position)
    row[PREDICTED_MS] = predicted
    row[PRIORITY] = question.priority
    row[MODEL] = question.model
    row[ASKED_AT] = now
    raw = _regression(calibration, env, row)
    row[RAW] = raw
    if slack < solo_total(tables, group, question.model, 0):
        return 0.0, predicted
    return _corrected(calibration, env, question.priority, raw), predicted


@inlined
def _regression(calibration, env, row):
    """Probability by the logistic regression."""
    priority = int(row[PRIORITY])
    z = calibration.offset[env, priority, int(row[MODEL])]
    for f in range(N_QUOTE_FEATURES):
        z += calibration.weight[env, priority, f] * row[f]
    return 1.0 / (1.0 + math.exp(-min(max(z, -MOST_LOGIT), MOST_LOGIT)))


@inlined
def _corrected(calibration, env, priority, raw):
    """The regression's probability as the bins around it turned out, linear between their middles."""
    at = raw * BINS - 0.5
    low = min(max(int(math.floor(at)), 0), BINS - 2)
    part = min(max(at - low, 0.0), 1.0)
    surprise = calibration.surprise[env, priority]
    ended = calibration.ended[env, priority]
    below = surprise[low] / ended[low]
    above = surprise[low + 1] / ended[low + 1]
    return min(max(raw + below * (1.0 - part) + above * part, 0.0), 1.0)


@njit
def learn_quote(calibration, env, row, outcome, ended_at):
    """Learn how a quoted request ended.

    Args:
        calibration, env: of the scheduler.
        row: (ROW,) as ``quote`` left it.
        outcome: MET, or how else it ended; a cancelled request says nothing and is not to be learned from.
        ended_at: absolute time of its end, ms; inf where it was never executed.
    """
    priority = int(row[PRIORITY])
    met = 1.0 if outcome == MET else 0.0
    calibration.recent[env, priority] += RECENT_RATE * (met - calibration.recent[env, priority])
    at = min(int(row[RAW] * BINS), BINS - 1)
    surprise = calibration.surprise[env, priority]
    ended = calibration.ended[env, priority]
    surprise[at] = surprise[at] * BIN_FORGETTING + met - row[RAW]
    ended[at] = (ended[at] - BIN_PRIOR) * BIN_FORGETTING + BIN_PRIOR + 1.0
    if ended_at < np.inf:
        ratio = (ended_at - row[ASKED_AT]) / row[PREDICTED_MS]
        for q in range(N_QUANTILES):
            value = calibration.scale[env, priority, q]
            value *= math.exp(SCALE_RATE * (LEVELS[q] if ratio > value else LEVELS[q] - 1.0))
            calibration.scale[env, priority, q] = min(max(value, LEAST_SCALE), 1.0 / LEAST_SCALE)
    _newton_step(calibration, env, row, met)


@inlined
def _newton_step(calibration, env, row, met):
    """One step of recursive logistic regression: an extended Kalman filter over its weights, with forgetting."""
    priority = int(row[PRIORITY])
    model = int(row[MODEL])
    weight = calibration.weight[env, priority]
    cov = calibration.cov[env, priority]
    gain = calibration.gain[env]
    p = _regression(calibration, env, row)
    information = max(p * (1.0 - p), LEAST_INFORMATION)
    power = 1.0 / information
    trace = 0.0
    for f in range(N_QUOTE_FEATURES):
        acc = 0.0
        for h in range(N_QUOTE_FEATURES):
            acc += cov[f, h] * row[h]
        gain[f] = acc
        power += row[f] * acc
        trace += cov[f, f]
    # Without excitation forgetting alone would blow the covariance up; it stops at where it began.
    keep = 1.0 / FORGETTING if trace < N_QUOTE_FEATURES * FIRST_VARIANCE else 1.0
    for f in range(N_QUOTE_FEATURES):
        weight[f] += gain[f] / power * (met - p) / information
        for h in range(N_QUOTE_FEATURES):
            cov[f, h] = (cov[f, h] - gain[f] * gain[h] / power) * keep
    # An offset has its own information only: a covariance with each of a hundred models would cost more than it says.
    known = calibration.known[env, priority]
    known[model] = known[model] * MODEL_FORGETTING + information
    calibration.offset[env, priority, model] += (met - p) / known[model]
