"""Prototype 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import alone_ms, defer_action
from envs.scheduling.forecast import in_flight, place, predict_finishes, refresh_forecast
from envs.scheduling.predictor import FINISH, STREAM
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of, has_room
from envs.scheduling.state import MET


@dataclass(frozen=True)
class PriceParams:
    """x."""

    risk: int = 1
    high_weight: float = 5.0
    price: float = 0.5
    level: float = 2.0
    patience: float = 2.0
    margin: float = 1.0
    loss: float = 0.0
    window: float = 20.0
    form: int = 0
    hold: float = 0.0
    wide: float = 0.0


(RISK, HIGH_WEIGHT, PRICE, LEVEL, PATIENCE, MARGIN, LOSS, WINDOW, FORM, HOLD, WIDE) = places(PriceParams)

SEEN, SINCE, RATE = range(3)


@njit
def _scale(state, env, params):
    level = int(params[RISK])
    if level == 0:
        return 1.0
    return max(state.scale[env, in_flight(state, env), level - 1], 1.0)


@njit
def _chance(ratio, median, spread):
    """Chance that a batch ends within ``ratio`` times what is predicted."""
    z = (math.log(max(ratio, 1e-9)) - median) / spread
    if z > 3.0:
        return 1.0
    if z < -3.0:
        return 0.0
    return 1.0 / (1.0 + math.exp(-2.18 * z))


@njit
def _expected(state, env, priority, model, n, duration, median, spread):
    """Requests among the first n of a queue that are expected to be met by a batch of this predicted duration."""
    now = state.scheduler[env].now
    total = 0.0
    for i in range(n):
        r = state.entry[env, priority, model, place(state, env, priority, model, i)]
        p = _chance((r.deadline - now) / duration, median, spread)
        total += p
        if p == 1.0:
            # FIFO: those behind have later deadlines as a rule
            pass
    return total


@njit
def _going_rate(state, memory, env, high_weight, window):
    """Value earned per ms (exponential average)."""
    own = state.scheduler[env]
    total = high_weight * state.count[env, 0, MET] + state.count[env, 1, MET]
    dt = own.now - memory[env, SINCE]
    if dt > 0.0:
        decay = math.exp(-dt / window)
        memory[env, RATE] = memory[env, RATE] * decay + (total - memory[env, SEEN]) / window
        memory[env, SEEN] = total
        memory[env, SINCE] = own.now
    full = 1.0 - math.exp(-own.now / window)
    return memory[env, RATE] / max(full, 0.05)


@njit
def _next(state, tables, env, group, visited, params, tau, log_price):
    own = state.scheduler[env]
    speed = math.exp(own.log_slowdown)
    unit = tables.device[group].unit_ms
    n_models = state.queue.shape[2]
    best = -1
    best_index = -np.inf
    wake = np.inf
    for priority in range(2):
        log_weight = math.log(params[HIGH_WEIGHT]) if priority == 0 else 0.0
        for model in range(n_models):
            q = state.queue[env, priority, model]
            at = priority * n_models + model
            if q.length == 0 or (visited >> at) & 1:
                continue
            slack = state.entry[env, priority, model, q.head].deadline - own.now
            top = -np.inf
            for size in range(tables.size.shape[0]):
                n = tables.size[size]
                if n > q.length:
                    break
                took = tables.solo[group, model, size] * speed
                if size > 0 and took > slack:
                    break
                value = log_weight + math.log(n / took)
                spare = max(slack - took - params[MARGIN] * unit, 0.0)
                top = max(top, value - spare / tau)
                if value > log_price:
                    due = own.now + spare - tau * (value - log_price)
                    if due > own.now:
                        wake = min(wake, due)
            if top > best_index:
                best_index = top
                best = at
    if best_index < log_price:
        best = -1
    return best, wake


@njit
def choose(state, tables, memory, env, params):
    own = state.scheduler[env]
    unit = tables.device[env % tables.solo.shape[0]].unit_ms
    rate = _going_rate(state, memory, env, params[HIGH_WEIGHT], params[WINDOW] * unit)
    if own.n_queued == 0 or not has_room(state, tables, env):
        return defer_action(state, tables), np.inf
    group = env % tables.solo.shape[0]
    n_models = state.queue.shape[2]
    refresh_forecast(state, tables, env)
    busy = in_flight(state, env)
    streams = busy + own.n_free
    scale = max(state.scale[env, busy, 1], 1.0)
    median = math.log(max(state.scale[env, busy, 0], 0.5))
    spread = max(math.log(max(state.scale[env, busy, 1], 0.5)) - median, 0.01)
    log_price = -np.inf
    if busy > 0:
        wide = params[WIDE] if params[WIDE] > 0.0 else max(streams - 1.0, 1.0)
        log_price = math.log(params[PRICE] * rate / (params[WIDE] if params[WIDE] > 0.0 else streams) + 1e-9) + params[LEVEL] * math.log(busy / wide)
    tau = params[PATIENCE] * unit
    visited = 0
    while True:
        at, wake = _next(state, tables, env, group, visited, params, tau, log_price)
        if at < 0:
            return defer_action(state, tables), wake
        visited |= 1 << at
        priority = at // n_models
        model = at % n_models
        q = state.queue[env, priority, model]
        weight = params[HIGH_WEIGHT] if priority == 0 else 1.0
        slack = state.entry[env, priority, model, q.head].deadline - own.now
        best = -1
        best_index = -np.inf
        for i in range(tables.size.shape[0]):
            size = tables.size.shape[0] - 1 - i
            n = tables.size[size]
            solo = tables.solo[group, model, size]
            if n > q.length or solo > slack or math.log(weight * n / solo) <= best_index:
                continue
            placed = predict_finishes(state, tables, env, model, size)
            duration = state.scratch[env, FINISH, placed]
            delay = 0.0
            harm = 0.0
            for j in range(placed):
                stream = int(state.scratch[env, STREAM, j])
                s = state.stream[env, stream]
                after = state.scratch[env, FINISH, j]
                before = max(s.finish - own.now, 1e-6)
                delay += after - before
                if after - before < 1e-6:
                    continue
                other = params[HIGH_WEIGHT] if s.priority == 0 else 1.0
                for i2 in range(s.n):
                    left = state.member[env, stream, i2].deadline - own.now
                    harm += other * (_chance(left / before, median, spread) - _chance(left / after, median, spread))
            net = weight * _expected(state, env, priority, model, n, duration, median, spread) - harm
            if net <= 1e-6:
                continue
            cost = duration + delay
            spare = max(slack - duration * scale - params[MARGIN] * unit, 0.0)
            index = math.log(net / max(cost, 1e-3))
            if index - spare / tau < log_price:
                continue
            if index > best_index:
                best_index = index
                best = action_of(tables, n_models, priority, model, size)
        if best >= 0:
            return best, np.inf
        if params[HOLD] > 0.0:
            return defer_action(state, tables), wake


KIND = PolicyKind("price", choose, PriceParams, "prototype", adapts=True)
