"""Strait: priority, then slack; dispatch only what the prediction keeps within deadline, and keeps others within theirs.

After Zhao and Georgantas, "Perceiving Priority and Interference in ML Inference Serving" (arXiv 2604.28175), from its
published description; the rules below are our own. Each candidate's finish is predicted with the transfers before it and
the interference of what is in flight, integrated through the predicted changes of the co-running set
(envs.scheduling.predictor). A batch starts beside others only where the time lost to interference, its own and theirs, is
worth not waiting for the first of them to end. A high-priority batch must not make another one in flight late; it shares a
core only if it would be late after waiting for the first batch to end, and is in time if it does not wait. A low-priority
batch must not make anything late, defers while a high-priority request waits or the streams that it may hold are full, and
is the shorter the more high-priority work has been arriving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import alone_ms, defer_action, held_by_low
from envs.scheduling.forecast import evaluate_candidate, in_flight, late_in_queue, refresh_forecast
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of, batches_on_next_core, has_room

NEGLIGIBLE = 0.1  # share of a batch's own time that it may always lose to those beside it


@dataclass(frozen=True)
class StraitParams:
    """Parameters.

    Attributes:
        risk: calibrated quantile that a finish time is judged by: 0 the prediction itself, 1 the median, 2 the 90 %
            quantile, 3 the 95 % quantile.
        low_streams: streams that low priority may hold at once.
        low_max: longest low-priority batch, as a multiple of the device's time scale (mean solo latency).
        starve: share of its relative deadline after which a low-priority request may be dispatched although it makes
            other low-priority requests late, and whatever ``guard`` says; at most so long can it be held back for these.
        gamble: how far past its deadline, as a share of the relative deadline, a high-priority request may be predicted
            to end (by the prediction itself, whatever ``risk`` says) and still be tried.
        may_share: whether a high-priority batch may share a core with another one that is in flight.
        by_priority: False treats both priorities as one (ablation).
        may_defer: False dispatches low priority whatever it does to others (ablation).
        patience: slack, in mean solo latencies, at which the worth of serving a queue now has fallen by e; 0: the least
            slack goes first.
        thrift: how far a batch size is chosen for requests met per ms (1) rather than for requests met (0).
        guard: how much shorter low-priority batches get for each core's worth of high-priority work that arrives; those that
            starve do not.
        high_haste: time that a high-priority batch and those beside it may lose to interference, over the time until the
            first of these ends and makes room.
        low_haste: the same for a low-priority batch.
    """

    risk: int = 2
    low_streams: int = 2
    low_max: float = 2.5
    starve: float = 0.6
    gamble: float = 0.0
    may_share: bool = True
    by_priority: bool = True
    may_defer: bool = True
    patience: float = 6.0
    thrift: float = 1.0
    guard: float = 0.0
    high_haste: float = 1.0
    low_haste: float = 0.5


(
    RISK, LOW_STREAMS, LOW_MAX, STARVE, GAMBLE, MAY_SHARE, BY_PRIORITY, MAY_DEFER, PATIENCE, THRIFT, GUARD, HIGH_HASTE,
    LOW_HASTE,
) = places(StraitParams)  # fmt: skip


@njit
def _scale(state, env, params):
    level = int(params[RISK])
    if level == 0:
        return 1.0
    return max(state.scale[env, in_flight(state, env), level - 1], 1.0)


@njit
def _next_queue(state, tables, env, priority, group, visited, patience):
    """Queue of priority pr that is most worth serving among those not visited (a bit mask), -1 if none; and its worth.

    Worth is requests served per ms, discounted by the slack that is left: work that can wait, waits. After the apparent
    tardiness cost rule of Vepsalainen and Morton (Management Science 33, 1987); with ``patience`` 0 the least slack goes
    first.
    """
    now = state.scheduler[env].now
    unit = tables.device[group].unit_ms
    speed = math.exp(state.scheduler[env].log_slowdown)
    best = -1
    best_worth = -np.inf
    for model in range(state.queue.shape[2]):
        q = state.queue[env, priority, model]
        if q.length == 0 or (visited >> model) & 1:
            continue
        slack = state.entry[env, priority, model, q.head].deadline - now
        if patience <= 0.0:
            worth = tables.solo[group, model, 0] - slack
            if worth > best_worth:
                best_worth = worth
                best = model
            continue
        for size in range(tables.size.shape[0]):
            if tables.size[size] > q.length:
                break
            took = tables.solo[group, model, size] * speed
            # In logs: the discount of much slack would underflow.
            worth = tables.log_rate[group, model, size] - max(slack - took, 0.0) / (patience * unit)
            if worth > best_worth and (size == 0 or took < slack):
                best_worth = worth
                best = model
    return best, best_worth


@njit
def _best_size(state, tables, env, priority, model, scale, longest, haste, spare_low, tolerance, thrift):
    """Batch-size index that serves the most requests for its time and makes nothing else late; -1 if none.

    Args:
        st: state. tb: tables. e: scheduler. pr: priority. m: model. scale: factor on predicted durations.
        longest: longest execution alone, in ms.
        haste: most time that the batch and those beside it may lose to interference, in ms.
        spare_low: whether low-priority batches in flight must stay on time too.
        tolerance: how late the head may be, as a share of its relative deadline.
        thrift: power of the predicted duration that requests predicted to be met are divided by.
    """
    group = env % tables.solo.shape[0]
    q = state.queue[env, priority, model]
    now = state.scheduler[env].now
    head = state.entry[env, priority, model, q.head]
    slack = head.deadline - now + tolerance * (head.deadline - head.arrival)
    best = -1
    best_worth = -1.0
    for i in range(tables.size.shape[0]):
        size = tables.size.shape[0] - 1 - i
        n = tables.size[size]
        solo = tables.solo[group, model, size]
        # Even alone on the device it would end too late, or serve too few: no need to predict.
        if n > q.length or solo > slack or solo > longest or n / solo**thrift <= best_worth:
            continue
        duration, late_high, late_low, delay_high, delay_low = evaluate_candidate(
            state, tables, env, model, size, scale
        )
        lost = delay_high + priority * delay_low + duration - alone_ms(state, tables, env, model, size)
        if lost > haste + NEGLIGIBLE * solo:
            continue
        if duration * scale > slack or late_high > 0 or (spare_low and late_low > 0):
            continue
        met = max(n - late_in_queue(state, env, priority, model, n, now + duration * scale), 1)
        worth = met / duration**thrift
        if worth > best_worth:
            best_worth = worth
            best = size
    return best


@njit
def _can_wait(state, tables, env, model, wait_ms, scale):
    """Whether the head of the high-priority queue of m is predicted to be met if it starts alone in ``wait_ms``."""
    head = state.entry[env, 0, model, state.queue[env, 0, model].head]
    return state.scheduler[env].now + scale * (wait_ms + alone_ms(state, tables, env, model, 0)) <= head.deadline


@njit
def choose(state, tables, memory, env, params):
    """One decision, see the module's text."""
    own = state.scheduler[env]
    if own.n_queued == 0 or not has_room(state, tables, env):
        return defer_action(state, tables), np.inf
    group = env % tables.solo.shape[0]
    n_models = state.queue.shape[2]
    first = refresh_forecast(state, tables, env)
    turns = batches_on_next_core(state, env)
    shares = turns > 1
    if turns > 2 or (shares and params[MAY_SHARE] == 0.0):
        return defer_action(state, tables), np.inf
    scale = _scale(state, env, params)
    by_priority = params[BY_PRIORITY] > 0.0
    # Who shares has no time to lose by waiting.
    high_haste = np.inf if shares else params[HIGH_HASTE] * first
    low_haste = params[LOW_HASTE] * first
    waiting_high = 0
    visited = 0
    while True:
        model, worth = _next_queue(state, tables, env, 0, group, visited, params[PATIENCE])
        if model < 0:
            break
        if not by_priority and not shares:
            low, low_worth = _next_queue(state, tables, env, 1, group, 0, params[PATIENCE])
            if low_worth > worth:
                size = _best_size(state, tables, env, 1, low, scale, np.inf, low_haste, True, 0.0, params[THRIFT])
                if size >= 0:
                    return action_of(tables, n_models, 1, low, size), np.inf
        visited |= 1 << model
        if shares and _can_wait(state, tables, env, model, first, scale):
            continue
        size = _best_size(state, tables, env, 0, model, scale, np.inf, high_haste, not by_priority, 0.0, params[THRIFT])
        # Alone on its core, what may be late is better tried than given up.
        if size < 0 and not shares and (scale > 1.0 or params[GAMBLE] > 0.0):
            size = _best_size(
                state, tables, env, 0, model, 1.0, np.inf, high_haste, not by_priority, params[GAMBLE], params[THRIFT]
            )
        if size >= 0:
            return action_of(tables, n_models, 0, model, size), np.inf
        waiting_high += 1
    may_defer = params[MAY_DEFER] > 0.0
    if shares or (may_defer and by_priority and (held_by_low(state, env) >= params[LOW_STREAMS] or waiting_high > 0)):
        return defer_action(state, tables), np.inf
    room = 1.0 - params[GUARD] * own.rate_high / max(tables.device[group].cores, 1.0)
    visited = 0
    while True:
        model, _ = _next_queue(state, tables, env, 1, group, visited, params[PATIENCE])
        if model < 0:
            break
        visited |= 1 << model
        head = state.entry[env, 1, model, state.queue[env, 1, model].head]
        starving = own.now - head.arrival > params[STARVE] * (head.deadline - head.arrival)
        longest = max(params[LOW_MAX] * tables.device[group].unit_ms, tables.solo[group, model, 0]) * (
            1.0 if starving else room
        )
        size = _best_size(state, tables, env, 1, model, scale, longest, low_haste, not starving, 0.0, params[THRIFT])
        if size < 0 and not may_defer:
            size = 0
        if size >= 0:
            return action_of(tables, n_models, 1, model, size), np.inf
    return defer_action(state, tables), np.inf


@dataclass(frozen=True)
class StraitGuardParams(StraitParams):
    """Parameters, see ``StraitParams``; room is kept for high priority while it arrives fast, at a price to low priority.

    Of a grid over ``guard`` and ``low_max`` (of Strait before it shared cores), the setting with the fewest high-priority
    violations on the tuner's bursty workloads (loads 0.8 to 1.2) that keeps low-priority goodput at 90 % of tuned Clockwork's
    or more, at each load.
    """

    guard: float = 1.25
    low_max: float = 4.0
    starve: float = 0.95


KIND = PolicyKind("strait", choose, StraitParams, "after Zhao and Georgantas, arXiv 2604.28175", adapts=True)
GUARD_KIND = PolicyKind(
    "strait-guard", choose, StraitGuardParams, "Strait that keeps room for high priority", adapts=True
)
