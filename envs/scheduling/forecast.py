"""What a dispatch would do: the predicted finish times that policies and observations are made of.

``refresh_forecast`` predicts the finish of all in flight as things stand; ``predict_finishes`` then predicts what one more
batch changes.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.jit import inlined
from envs.scheduling.predictor import (
    BASE,
    BY_CACHE,
    BY_COMPUTE,
    BY_MEMORY,
    FINISH,
    HOST,
    HOST_OTHERS,
    MAX_SLOWDOWN,
    OTHERS,
    SHARE,
    STREAM,
    add_candidate,
    follow,
    integrate,
    load_in_flight,
    rewind_in_flight,
)  # fmt: skip
from envs.scheduling.state import CACHE, COMPUTE, MEMORY


@inlined
def place(state, env, priority, model, i):
    """Place in the ring of the i-th request of queue (p, m), counted from the head."""
    at = state.queue[env, priority, model].head + i
    places = state.entry.shape[3]
    return at - places if at >= places else at


@inlined
def solo_total(tables, group, model, size):
    """Copies and execution of a batch alone on the device as it was profiled, in ms."""
    return tables.h2d[group, model, size] + tables.solo[group, model, size] + tables.d2h[group, model, size]


@inlined
def alone_ms(state, tables, env, model, size):
    """Predicted time of a batch on an idle device, dispatch included, by what was learned of it and of the device."""
    group = env % tables.solo.shape[0]
    slowdown = max(1.0 + state.bias[env, model, size], 1.0) * math.exp(state.scheduler[env].log_slowdown)
    copies = tables.h2d[group, model, size] + tables.d2h[group, model, size]
    return tables.device[group].dispatch_ms + copies + tables.solo[group, model, size] * slowdown


@inlined
def invalidate_forecast(state, env):
    """The set in flight or the predictor changed: what was foreseen no longer holds."""
    state.scheduler[env].forecast_valid = 0
    state.scheduler[env].cached_model = -1
    state.scheduler[env].parallelism = 0.0


@inlined
def refresh_forecast(state, tables, env):
    """Predict the finish of each batch in flight into ``stream.finish``. Returns the time to the first, in ms (or inf).

    Time that passes as predicted does not change a predicted finish, so it is worked out again only after a batch ended, or
    when one is overdue.
    """
    now = state.scheduler[env].now
    first = np.inf
    if state.scheduler[env].forecast_valid == 1:
        for stream in range(state.stream.shape[1]):
            if state.stream[env, stream].busy == 1:
                first = min(first, state.stream[env, stream].finish - now)
        if first > 0.0:
            return first
    n, _ = load_in_flight(state, tables, env)
    integrate(state, tables, env, n, np.inf, False)
    state.scheduler[env].cached_model = -1
    first = np.inf
    for j in range(n):
        f = state.scratch[env, FINISH, j]
        state.stream[env, int(state.scratch[env, STREAM, j])].finish = now + f
        first = min(first, f)
    state.scheduler[env].forecast_valid = 1
    return first


@inlined
def in_flight(state, env):
    """Batches in flight. Counted, since streams that an episode does not have are neither free nor busy."""
    n = 0
    for stream in range(state.stream.shape[1]):
        n += state.stream[env, stream].busy
    return n


@inlined
def parallelism(state, tables, env):
    """How many batches alone the device does in the time of one, with all its streams full: at least 1.

    By the predictor as it stands, each model beside average ones: n over the mean slowdown of n batches, n the streams, or the
    cores where streams share them. Worked out once until the predictor learns.
    """
    if state.scheduler[env].parallelism > 0.0:
        return state.scheduler[env].parallelism
    group = env % tables.solo.shape[0]
    cores = tables.device[group].cores
    n = float(in_flight(state, env) + state.scheduler[env].n_free)
    if 0.0 < cores < n:
        n = cores
    n_models = tables.solo.shape[1]
    weight = state.weight[env]
    compute = 0.0
    memory = 0.0
    cache = 0.0
    for model in range(n_models):
        compute += tables.demand[group, model, 0, COMPUTE] / n_models
        memory += tables.demand[group, model, 0, MEMORY] / n_models
        cache += tables.demand[group, model, 0, CACHE] / n_models
    slowdown = 0.0
    for model in range(n_models):
        follow(state, tables, env, 0, model, 0)
        batch = state.scratch[env, :, 0]
        device = batch[BASE] + (n - 1.0) * (
            weight[OTHERS] + memory * batch[BY_MEMORY] + compute * batch[BY_COMPUTE] + cache * batch[BY_CACHE]
        )
        host = batch[HOST] + weight[HOST_OTHERS] * (n - 1.0) if batch[SHARE] < 1.0 else 0.0
        slowdown += min(max(device, host, 1.0), MAX_SLOWDOWN) / n_models
    state.scheduler[env].cached_model = -1
    state.scheduler[env].parallelism = max(n / slowdown, 1.0)
    return state.scheduler[env].parallelism


@inlined
def predict_finishes(state, tables, env, model, size):
    """Predict all finish times (scratch row FINISH, ms from now) if (m, b) is dispatched now, as scratch column n.

    Returns n, the number of batches in flight. What was foreseen last is not worked out again.
    """
    own = state.scheduler[env]
    # The scratch holds the batches in flight, with another candidate, so that they need not be worked out again.
    loaded = own.cached_model >= 0 and own.cached_at == own.now
    if loaded and own.cached_model == model and own.cached_size == size:
        return in_flight(state, env)
    n, backlog = rewind_in_flight(state, env) if loaded else load_in_flight(state, tables, env)
    own.cached_wait = add_candidate(state, tables, env, n, backlog, model, size)
    integrate(state, tables, env, n + 1, np.inf, False)
    own.cached_model = model
    own.cached_size = size
    own.cached_at = own.now
    return n
