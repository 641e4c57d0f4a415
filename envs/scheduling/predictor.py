"""The scheduler's interference predictor: slowdown from co-runners, and finish times.

The slowdown of batch i among the set S that executes now is ``s_i(S) = n_i path_i(S) exp(log_slowdown + core_log_slowdown)``.
n_i batches share its core in time slices (1 where every stream is a core of its own). A batch is bound by the slower of two
paths, ``path_i = max(host_i, device_i)``, held within [1, MAX_SLOWDOWN]:

- host: what launches its work, ``1 + bias + w_host n``, n other cores or streams that execute something;
- device: ``share_i + bias + w . x(i, S)``, the share of the solo time that the device itself needs, and what it costs to share
  compute, memory and caches with the others, linear in products of demands.

On a GPU that waits for its host (share_i < 1) overlap is free until the device becomes the bottleneck; on a CPU share_i is 1
and the device path alone counts. ``bias`` is learned for each model and size; ``log_slowdown`` says how slow the device is at
present, whoever runs on it, and ``core_log_slowdown`` how slow a CPU's core is beside that, for some batches. Progress is
integrated through the predicted changes of S: who begins and who ends first, then the next. A batch that joins others on a core
has the first slice there.

What is learned online, envs.scheduling.learning does after each batch that ends.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling.jit import inlined
from envs.scheduling.state import CACHE, COMPUTE, MEMORY, N_FEATURES, N_SCRATCH

MAX_SLOWDOWN = 20.0
EPS = 1e-9
# A batch that should have ended by now but has not is taken to have this share of its solo time left.
OVERDUE_SHARE = 0.05

# Rows of SchedState.scratch: one column for each batch that is followed through time, then one for each core.
(
    WAIT, LEFT, FINISH, RATE, POST, STREAM, CORE, OWN_COMPUTE, OWN_MEMORY, OWN_CACHE, HOST, SHARE, BASE, BY_MEMORY,
    BY_COMPUTE, BY_CACHE, JOIN_COST,
) = range(17)  # fmt: skip
CORE_N, CORE_COMPUTE, CORE_MEMORY, CORE_CACHE = range(17, N_SCRATCH)
# Features of one batch among those that execute, see ``features``. The last two tell the paths apart: co-runners while the host
# is the bottleneck, and what the device's share lacks to 1 while the device is.
(
    SAME_CORE, OTHERS, MEMORY_OTHERS, MEMORY_BOTH, COMPUTE_BOTH, CACHE_BOTH, COMPUTE_MEMORY, CACHE_MEMORY, HOST_OTHERS,
    HOST_SLACK,
) = range(N_FEATURES)  # fmt: skip
N_DEVICE_FEATURES = HOST_OTHERS  # those of the device path come first


@inlined
def features(n_core, n_other, cpu_i, mem_i, cache_i, cpu_o, mem_o, cache_o, x):
    """Features of one batch among those that execute.

    Args:
        n_core: batches on its core, itself counted.
        n_other: other cores that execute something.
        cpu_i: its demand for compute. mem_i: for memory bandwidth. cache_i: for cache. Fractions of the device.
        cpu_o: compute demand of the other cores, each the mean over the batches that it runs in turns, summed over them.
        mem_o: memory. cache_o: cache.
        x: (F,) output.
    """
    x[SAME_CORE] = n_core - 1.0
    x[OTHERS] = n_other
    x[MEMORY_OTHERS] = mem_o
    x[MEMORY_BOTH] = mem_i * mem_o
    x[COMPUTE_BOTH] = cpu_i * cpu_o
    x[CACHE_BOTH] = cache_i * cache_o
    x[COMPUTE_MEMORY] = cpu_i * mem_o
    x[CACHE_MEMORY] = cache_i * mem_o
    x[HOST_OTHERS] = 0.0
    x[HOST_SLACK] = 0.0


@inlined
def feature_column(state):
    """Index of the scratch column that holds one feature vector (columns 0..K are batches)."""
    return state.scratch.shape[2] - 1


@inlined
def follow(state, tables, env, j, model, size):
    """Put a batch's coefficients into scratch column j; where it runs and what is left of it, the caller adds.

    The device path is linear in the summed demands of the other cores, so its coefficients are worked out once here:
    ``BASE + w0 (n_core - 1) + w1 n_other + mem_o BY_MEMORY + cpu_o BY_COMPUTE + cache_o BY_CACHE``, the same as
    1 + bias + w . x with x from ``features``.
    """
    group = env % tables.solo.shape[0]
    scratch = state.scratch[env]
    w = state.weight[env]
    cpu = tables.demand[group, model, size, COMPUTE]
    mem = tables.demand[group, model, size, MEMORY]
    cache = tables.demand[group, model, size, CACHE]
    scratch[OWN_COMPUTE, j] = cpu
    scratch[OWN_MEMORY, j] = mem
    scratch[OWN_CACHE, j] = cache
    share = tables.share[group, model, size]
    scratch[SHARE, j] = share
    scratch[HOST, j] = 1.0 + state.bias[env, model, size]
    scratch[BASE, j] = scratch[HOST, j] + w[HOST_SLACK] * (1.0 - share)
    scratch[BY_MEMORY, j] = w[MEMORY_OTHERS] + w[MEMORY_BOTH] * mem + w[COMPUTE_MEMORY] * cpu + w[CACHE_MEMORY] * cache
    scratch[BY_COMPUTE, j] = w[COMPUTE_BOTH] * cpu
    scratch[BY_CACHE, j] = w[CACHE_BOTH] * cache
    scratch[JOIN_COST, j] = 0.0


@inlined
def _enter(scratch, j):
    c = int(scratch[CORE, j])
    scratch[CORE_N, c] += 1.0
    scratch[CORE_COMPUTE, c] += scratch[OWN_COMPUTE, j]
    scratch[CORE_MEMORY, c] += scratch[OWN_MEMORY, j]
    scratch[CORE_CACHE, c] += scratch[OWN_CACHE, j]


@inlined
def _take_first_turn(scratch, n, j, turn):
    """The batch in scratch column j joins its core: its turn comes first, so that it is ahead by half a turn on average.

    What it gains on an even share, those that it joins lose; it cannot gain more than it has left.
    """
    c = scratch[CORE, j]
    on = scratch[CORE_N, int(c)]
    if on < 2.0:
        return
    share = min(0.5 * turn, scratch[LEFT, j]) / on
    for i in range(n):
        if i != j and scratch[CORE, i] == c and scratch[LEFT, i] > 0.0 and scratch[WAIT, i] <= 0.0:
            scratch[LEFT, i] += share
            scratch[JOIN_COST, i] += share
    scratch[LEFT, j] -= share * (on - 1.0)
    scratch[JOIN_COST, j] -= share * (on - 1.0)


@inlined
def _leave(scratch, j):
    c = int(scratch[CORE, j])
    scratch[CORE_N, c] -= 1.0
    scratch[CORE_COMPUTE, c] -= scratch[OWN_COMPUTE, j]
    scratch[CORE_MEMORY, c] -= scratch[OWN_MEMORY, j]
    scratch[CORE_CACHE, c] -= scratch[OWN_CACHE, j]


@inlined
def _mean_demand(scratch, row, c):
    """Mean over the batches that core c runs in turns, of the demand whose sum is in this row."""
    on = scratch[CORE_N, c]
    # Most cores run one batch, and a division takes as long as four products.
    return scratch[row, c] if on == 1.0 else scratch[row, c] / on


@inlined
def integrate(state, tables, env, n, horizon, learn):
    """Follow the n batches in the scratch columns of scheduler e until all end, or for ``horizon`` ms.

    Counts WAIT and LEFT down and writes FINISH (ms from now, copy back included; inf if not reached). With ``learn``, adds
    the features of each to ``moment`` of its stream.
    """
    group = env % tables.solo.shape[0]
    scratch = state.scratch[env]
    cores = int(tables.device[group].cores)
    n_cores = min(cores, state.stream.shape[1]) if cores > 0 else state.stream.shape[1]
    w0 = state.weight[env, SAME_CORE]
    w1 = state.weight[env, OTHERS]
    w_host = state.weight[env, HOST_OTHERS]
    turn = tables.device[group].time_slice_ms
    n_run = 0
    n_wait = 0
    for c in range(n_cores):
        scratch[CORE_N, c] = 0.0
        scratch[CORE_COMPUTE, c] = 0.0
        scratch[CORE_MEMORY, c] = 0.0
        scratch[CORE_CACHE, c] = 0.0
    for j in range(n):
        scratch[FINISH, j] = np.inf
        if scratch[LEFT, j] <= 0.0:
            scratch[FINISH, j] = scratch[POST, j]
        elif scratch[WAIT, j] > 0.0:
            n_wait += 1
        else:
            n_run += 1
            _enter(scratch, j)
    t = 0.0
    while n_run + n_wait > 0:
        n_busy = 0
        cpu = 0.0
        mem = 0.0
        cache = 0.0
        if n_run > 1:
            for c in range(n_cores):
                if scratch[CORE_N, c] > 0.0:
                    n_busy += 1
                    cpu += _mean_demand(scratch, CORE_COMPUTE, c)
                    mem += _mean_demand(scratch, CORE_MEMORY, c)
                    cache += _mean_demand(scratch, CORE_CACHE, c)
        step = horizon - t
        for j in range(n):
            if scratch[LEFT, j] <= 0.0:
                continue
            if scratch[WAIT, j] > 0.0:
                step = min(step, scratch[WAIT, j])
                continue
            s = scratch[BASE, j]
            on = 1.0
            c = int(scratch[CORE, j])
            if n_run > 1:
                on = scratch[CORE_N, c]
                s += w0 * (on - 1.0)
                if n_busy > 1:
                    s += w1 * (n_busy - 1.0) + (mem - _mean_demand(scratch, CORE_MEMORY, c)) * scratch[BY_MEMORY, j]
                    s += (cpu - _mean_demand(scratch, CORE_COMPUTE, c)) * scratch[BY_COMPUTE, j]
                    s += (cache - _mean_demand(scratch, CORE_CACHE, c)) * scratch[BY_CACHE, j]
            if scratch[SHARE, j] < 1.0:
                s = max(s, scratch[HOST, j] + w_host * max(n_busy - 1.0, 0.0))
            s = min(max(s, 1.0), MAX_SLOWDOWN) * on * state.stream[env, c].core_slowdown
            scratch[RATE, j] = 1.0 / s
            step = min(step, scratch[LEFT, j] * s)
        t += step
        if learn:
            for j in range(n):
                if scratch[LEFT, j] > 0.0 and scratch[WAIT, j] <= 0.0:
                    _note_features(state, env, j, n_busy, cpu, mem, cache, step * scratch[RATE, j])
        for j in range(n):
            if scratch[LEFT, j] <= 0.0:
                continue
            if scratch[WAIT, j] > 0.0:
                scratch[WAIT, j] -= step
                if scratch[WAIT, j] < EPS:
                    scratch[WAIT, j] = 0.0
                    n_wait -= 1
                    n_run += 1
                    _enter(scratch, j)
                    if turn > 0.0:
                        _take_first_turn(scratch, n, j, turn)
                continue
            scratch[LEFT, j] -= step * scratch[RATE, j]
            if scratch[LEFT, j] < EPS:
                scratch[LEFT, j] = 0.0
                scratch[FINISH, j] = t + scratch[POST, j]
                n_run -= 1
                _leave(scratch, j)
        if t >= horizon:
            break


@inlined
def _note_features(state, env, j, n_busy, cpu, memory, cache, done):
    """Add the features of the batch in scratch column j, weighted by the work done, to the moment of its stream."""
    scratch = state.scratch[env]
    stream = int(scratch[STREAM, j])
    c = int(scratch[CORE, j])
    on = scratch[CORE_N, c]
    x = scratch[:, feature_column(state)]
    own = scratch[:, j]
    if n_busy > 1:
        features(
            on, n_busy - 1.0, own[OWN_COMPUTE], own[OWN_MEMORY], own[OWN_CACHE],
            cpu - _mean_demand(scratch, CORE_COMPUTE, c), memory - _mean_demand(scratch, CORE_MEMORY, c),
            cache - _mean_demand(scratch, CORE_CACHE, c), x,
        )  # fmt: skip
    else:
        features(on, 0.0, own[OWN_COMPUTE], own[OWN_MEMORY], own[OWN_CACHE], 0.0, 0.0, 0.0, x)
    if own[SHARE] < 1.0:
        _choose_path(state, env, own[SHARE], max(n_busy - 1.0, 0.0), x)
    sliced = done * on
    for f in range(N_FEATURES):
        state.feature_sum[env, stream, f] += sliced * x[f]
    state.stream[env, stream].work += done
    state.stream[env, stream].shared_work += sliced


@inlined
def _choose_path(state, env, share, n_other, x):
    """Keep the features of the path that bounds the batch, and say which it is."""
    device = state.weight[env, HOST_SLACK] * (1.0 - share)
    for f in range(HOST_OTHERS):
        device += state.weight[env, f] * x[f]
    if device > state.weight[env, HOST_OTHERS] * n_other:
        x[HOST_SLACK] = 1.0 - share
        return
    for f in range(HOST_OTHERS):
        x[f] = 0.0
    x[HOST_OTHERS] = n_other


@inlined
def load_in_flight(state, tables, env):
    """Put the batches in flight into the scratch columns; returns their number and the copy backlog in ms."""
    scratch = state.scratch[env]
    n = 0
    for stream in range(state.stream.shape[1]):
        s = state.stream[env, stream]
        if s.busy == 1:
            follow(state, tables, env, n, s.model, s.size_index)
            scratch[POST, n] = s.post
            scratch[STREAM, n] = stream
            scratch[CORE, n] = s.core
            n += 1
    return rewind_in_flight(state, env)


@inlined
def rewind_in_flight(state, env):
    """Back to now with the batches in flight that ``integrate`` followed; returns what ``load_in_flight`` does."""
    scratch = state.scratch[env]
    n = 0
    backlog = 0.0
    for stream in range(state.stream.shape[1]):
        s = state.stream[env, stream]
        if s.busy == 1:
            scratch[WAIT, n] = s.wait
            scratch[LEFT, n] = s.left
            backlog = max(backlog, s.wait)
            n += 1
    return n, backlog


@inlined
def choose_next_stream(state, env):
    """Note which free stream the next dispatch takes: the first on the core with the fewest batches; -1 when none is free."""
    n_streams = state.stream.shape[1]
    best = -1
    least = n_streams
    for stream in range(n_streams):
        if state.stream[env, stream].busy == 1:
            continue
        core = state.stream[env, stream].core
        on = 0
        for other in range(n_streams):
            on += state.stream[env, other].busy * (state.stream[env, other].core == core)
        if on < least:
            least = on
            best = stream
    state.scheduler[env].next_stream = best


@inlined
def add_candidate(state, tables, env, n, backlog, model, size):
    """Put a batch that might be dispatched now into scratch column n, behind the copy backlog. Returns its wait in ms."""
    group = env % tables.solo.shape[0]
    wait = backlog + tables.device[group].dispatch_ms + tables.h2d[group, model, size]
    follow(state, tables, env, n, model, size)
    scratch = state.scratch[env]
    scratch[WAIT, n] = wait
    scratch[LEFT, n] = tables.solo[group, model, size]
    scratch[POST, n] = tables.d2h[group, model, size]
    scratch[STREAM, n] = -1
    scratch[CORE, n] = state.stream[env, max(state.scheduler[env].next_stream, 0)].core
    return wait


@inlined
def advance(state, tables, env, t):
    """Move the scheduler's view of the batches in flight on to time t (ms)."""
    own = state.scheduler[env]
    dt = t - own.now
    if dt <= 0.0:
        return
    own.now = t
    n, _ = load_in_flight(state, tables, env)
    if n == 0:
        return
    own.cached_model = -1
    integrate(state, tables, env, n, dt, True)
    scratch = state.scratch
    for j in range(n):
        s = state.stream[env, int(scratch[env, STREAM, j])]
        s.wait = scratch[env, WAIT, j]
        s.left = max(scratch[env, LEFT, j], OVERDUE_SHARE * s.solo)
        s.join_cost += scratch[env, JOIN_COST, j]
