"""Strait: dispatch what earns most per ms of the device, at once if that is more than the device earns otherwise.

After Zhao and Georgantas, "Perceiving Priority and Interference in ML Inference Serving" (arXiv 2604.28175): the finish of
each candidate is predicted with the copies before it and the interference of what is in flight, and priority, slack and the
harm done to others decide. The rule is our own:

- A batch *earns* the requests that it is expected to meet, a high-priority one counting ``high_weight``, less what those in
  flight lose in their chance to be met. It *costs* its predicted duration and the delay of all others in flight, in ms of a
  stream.
- Batches are ranked by earnings over costs, discounted by e for every ``patience`` mean solo latencies of slack to spare: what
  can wait, waits (the apparent tardiness cost rule; Vepsalainen and Morton, Management Science 33, 1987).
- Among those that can wait, earnings count times how long the oldest request has waited (as broadcast schedulers rank requests
  times wait; Aksoy and Franklin, IEEE/ACM Transactions on Networking 7, 1999). Otherwise short models would be served one by
  one as they arrive, never in the larger batches that are more efficient.
- The best is dispatched if its rank is at least the *price* of room on the device: what a stream has been earning per ms
  lately, times how full the device is. Of the discount at most ``MOST_PATIENCE`` counts here: whatever the slack, a device is
  not left half empty. An idle one has no price. Where nothing is worth the price, the time at which the slack of a queue has
  shrunk enough ends the deferral, if no event does so before.

How full a device is, is measured in what it can do at once: two batches fill a GPU on which each then takes twice as long, and
four leave room where overlap is nearly free (``forecast.parallelism``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import traces.workload
from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action
from envs.scheduling.candidates import action_of, available, has_room, n_high_of
from envs.scheduling.forecast import in_flight, parallelism, predict_finishes, refresh_forecast
from envs.scheduling.jit import inlined, njit
from envs.scheduling.predictor import FINISH
from envs.scheduling.rates import earned_per_ms
from envs.scheduling.state import P90
from envs.scheduling.worth import LEAST, disturbance, expected_met, spread_of_prediction

MOST_DISCOUNT = 5.0  # log of the largest
# Of that, what counts against the price: what can wait for a minute still takes the room of a device that is half empty.
MOST_PATIENCE = 2.0


@dataclass(frozen=True)
class StraitParams:
    """Parameters.

    Attributes:
        high_weight: what a high-priority request counts, a low-priority one being 1, where users ask for 5; scales with
            what they ask for (``scheduler.high_weight``).
        price: price of room on a device that is just full, over what a stream has been earning lately; 0 never defers.
        level: how fast the price falls below that as the device empties, and rises above it as more batches are in flight.
        patience: slack, in mean solo latencies, at which the worth of a batch has fallen by e.
    """

    high_weight: float = traces.workload.HIGH_WEIGHT
    price: float = 0.8
    level: float = 3.6
    patience: float = 6.0


HIGH_WEIGHT, PRICE, LEVEL, PATIENCE = places(StraitParams)


@inlined
def _weight_of_high(state, env, params):
    return params[HIGH_WEIGHT] * state.scheduler[env].high_weight / traces.workload.HIGH_WEIGHT


@njit
def _discount(spare_ms, params, unit_ms):
    """Log of what slack to spare takes from the worth of a batch."""
    return min(max(spare_ms, 0.0) / (params[PATIENCE] * unit_ms), MOST_DISCOUNT)


@njit
def _prospect(state, tables, env, priority, model, params, log_price):
    """The rank of queue (priority, model) by solo times, and the time at which its slack will have shrunk to the price.

    Returns:
        (rank, offers, due): the rank, and what counts of it against the price, -inf for an empty queue; the absolute ms at
        which it will be worth the price, inf where it is already or never will be.
    """
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    slowdown = math.exp(own.log_slowdown)
    unit_ms = tables.device[group].unit_ms
    more_for_high = _weight_of_high(state, env, params) - 1.0
    queue = state.queue[env, priority, model]
    rank = -np.inf
    offers = -np.inf
    first = np.inf
    if queue.length == 0:
        return rank, offers, first
    oldest = state.entry[env, priority, model, queue.head]
    slack = oldest.deadline - own.now
    log_waited = math.log(1.0 + max(own.now - oldest.arrival, 0.0) / unit_ms)
    held = available(state, tables, env, priority, model)
    for size in range(tables.size.shape[0]):
        took = tables.solo[group, model, size] * slowdown
        n = tables.size[size]
        if n > held or (size > 0 and took > slack):
            break
        worth = math.log((n + more_for_high * n_high_of(state, env, priority, model, n)) / took)
        discount = _discount(slack - took, params, unit_ms)
        rank = max(rank, worth - discount + discount / MOST_DISCOUNT * log_waited)
        offers = max(offers, worth - min(discount, MOST_PATIENCE))
        due = own.now + slack - took - params[PATIENCE] * unit_ms * (worth - log_price)
        if worth > log_price and due > own.now:
            first = min(first, due)
    return rank, offers, first


@njit
def _next_queue(state, tables, env, params, log_price, after):
    """The queue of the highest rank behind ``after``, the (rank, place) of the last one; its place is priority * M + model.

    Returns:
        ((rank, place), wake): place -1 where none is left that reaches the price; and the absolute time at which the first of
        those that do not will (inf: none).
    """
    n_models = state.queue.shape[2]
    last_rank, last_place = after
    best = -1
    best_rank = -np.inf
    wake = np.inf
    for at in range(2 * n_models):
        rank, offers, due = _prospect(state, tables, env, at // n_models, at % n_models, params, log_price)
        if rank > last_rank or (rank == last_rank and at <= last_place):
            continue  # was tried
        wake = min(wake, due)
        if rank > best_rank and offers >= log_price:
            best_rank = rank
            best = at
    return (best_rank, best), wake


@njit
def _best_size(state, tables, env, priority, model, params, log_price):
    """Batch-size index of queue (priority, model) that earns most for its cost; -1 where none is worth the price."""
    group = env % tables.solo.shape[0]
    queue = state.queue[env, priority, model]
    busy = in_flight(state, env)
    p90 = max(state.scale[env, busy, P90], 1.0)
    spread_of = spread_of_prediction(state, env)
    high_weight = _weight_of_high(state, env, params)
    slack = state.entry[env, priority, model, queue.head].deadline - state.scheduler[env].now
    held = available(state, tables, env, priority, model)
    best = -1
    best_rate = -np.inf
    for i in range(tables.size.shape[0]):
        size = tables.size.shape[0] - 1 - i
        n = tables.size[size]
        solo = tables.solo[group, model, size]
        # Even alone on the device it would end too late, or earn too little: no need to predict.
        weight = n + (high_weight - 1.0) * n_high_of(state, env, priority, model, n)
        if n > held or solo > slack or math.log(weight / solo) <= best_rate:
            continue
        n_placed = predict_finishes(state, tables, env, model, size)
        duration = state.scratch[env, FINISH, n_placed]
        harm_high, harm_low, delay_high, delay_low = disturbance(state, env, n_placed, spread_of)
        high, low = expected_met(state, env, priority, model, n, duration, spread_of)
        earned = high_weight * (high - harm_high) + low - harm_low
        if busy == 0:
            earned = max(earned, LEAST)  # nobody is harmed, and idling until the deadline gains nothing
        if earned < LEAST:
            continue
        rate = math.log(earned / max(duration + delay_high + delay_low, LEAST))
        discount = _discount(slack - duration * p90, params, tables.device[group].unit_ms)
        if rate > best_rate and rate - min(discount, MOST_PATIENCE) >= log_price:
            best_rate = rate
            best = size
    return best


@njit
def choose(state, tables, memory, env, params):
    """One decision, see the module's text."""
    if state.scheduler[env].n_queued == 0 or not has_room(state, tables, env):
        return defer_action(state, tables), np.inf
    refresh_forecast(state, tables, env)
    n_models = state.queue.shape[2]
    busy = in_flight(state, env)
    log_price = -np.inf
    if busy > 0:
        at_once = parallelism(state, tables, env)
        earned = earned_per_ms(state, tables, env, _weight_of_high(state, env, params))
        price = params[PRICE] * earned / at_once * (busy / at_once) ** params[LEVEL]
        log_price = math.log(price) if price > 0.0 else -np.inf
    after = (np.inf, -1)
    while True:
        after, wake = _next_queue(state, tables, env, params, log_price, after)
        at = after[1]
        if at < 0:
            return defer_action(state, tables), wake
        size = _best_size(state, tables, env, at // n_models, at % n_models, params, log_price)
        if size >= 0:
            return action_of(tables, n_models, at // n_models, at % n_models, size), np.inf


KIND = PolicyKind("strait", choose, StraitParams, "after Zhao and Georgantas, arXiv 2604.28175", adapts=True)
