"""The scheduler's interference predictor: slowdown from co-runners, and finish times.

The slowdown of batch i among the set S that executes now is
``s_i(S) = n_i (1 + bias[model_i, size_i] + w . x(i, S)) exp(speed + pace[core_i])``: n_i batches share its core in turns (1
where every stream is a core of its own); the bracket, held within [1, MAX_SLOWDOWN], is what caches, memory and compute cost
that are shared with the other cores, linear in features of the demands; ``speed`` says how the device fares at present,
whoever runs on it, and ``pace`` how a CPU's core does beside that, for some batches. Progress is integrated through the
predicted changes of S: who begins and who ends first, then the next. Who joins others on a core has the first turn there.

What is learned online, envs.scheduling.learning does after each batch that ends.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling.jit import inlined
from envs.scheduling.state import CORES, DISPATCH, MEMORY, N_FEATURES, N_WORK, TURN_MS

MAX_SLOWDOWN = 20.0
EPS = 1e-9
# A batch that should have ended by now but has not is taken to have this share of its solo time left.
OVERDUE_SHARE = 0.05

# Rows of SchedState.work: one column for each batch that is followed through time, then one for each core.
WAIT, LEFT, FINISH, SLOWDOWN, POST, STREAM, CORE, CPU, MEM, CACHE, BASE, BY_MEM, BY_CPU, BY_CACHE, OWED = range(15)
CORE_N, CORE_CPU, CORE_MEM, CORE_CACHE = range(15, N_WORK)


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
    x[0] = n_core - 1.0
    x[1] = n_other
    x[2] = mem_o
    x[3] = mem_i * mem_o
    x[4] = cpu_i * cpu_o
    x[5] = cache_i * cache_o
    x[6] = cpu_i * mem_o
    x[7] = cache_i * mem_o


@inlined
def feature_column(st):
    """Index of the scratch column that holds one feature vector (columns 0..K are batches)."""
    return st.work.shape[2] - 1


@inlined
def follow(st, tb, e, j, m, b, wait, left, post, stream, core):
    """Put a batch into scratch column j.

    The bracket of the slowdown is linear in the summed demands of the other cores, so its coefficients are worked out once
    here: ``BASE + w0 (n_core - 1) + w1 n_other + mem_o BY_MEM + cpu_o BY_CPU + cache_o BY_CACHE``, the same as
    1 + bias + w . x with x from ``features``.
    """
    g = e % tb.solo.shape[0]
    work = st.work[e]
    w = st.weight[e]
    cpu = tb.demand[g, m, b, 0]
    mem = tb.demand[g, m, b, 1]
    cache = tb.demand[g, m, b, 2]
    work[WAIT, j] = wait
    work[LEFT, j] = left
    work[POST, j] = post
    work[STREAM, j] = stream
    work[CORE, j] = core
    work[CPU, j] = cpu
    work[MEM, j] = mem
    work[CACHE, j] = cache
    work[BASE, j] = 1.0 + st.bias[e, m, b]
    work[BY_MEM, j] = w[2] + w[3] * mem + w[6] * cpu + w[7] * cache
    work[BY_CPU, j] = w[4] * cpu
    work[BY_CACHE, j] = w[5] * cache
    work[OWED, j] = 0.0


@inlined
def _enter(work, j):
    c = int(work[CORE, j])
    work[CORE_N, c] += 1.0
    work[CORE_CPU, c] += work[CPU, j]
    work[CORE_MEM, c] += work[MEM, j]
    work[CORE_CACHE, c] += work[CACHE, j]


@inlined
def _take_first_turn(work, n, j, turn):
    """The batch in scratch column j joins its core: its turn comes first, so that it is ahead by half a turn on average.

    What it gains on an even share, those that it joins lose; it cannot gain more than it has left.
    """
    c = work[CORE, j]
    on = work[CORE_N, int(c)]
    if on < 2.0:
        return
    share = min(0.5 * turn, work[LEFT, j]) / on
    for i in range(n):
        if i != j and work[CORE, i] == c and work[LEFT, i] > 0.0 and work[WAIT, i] <= 0.0:
            work[LEFT, i] += share
            work[OWED, i] += share
    work[LEFT, j] -= share * (on - 1.0)
    work[OWED, j] -= share * (on - 1.0)


@inlined
def _leave(work, j):
    c = int(work[CORE, j])
    work[CORE_N, c] -= 1.0
    work[CORE_CPU, c] -= work[CPU, j]
    work[CORE_MEM, c] -= work[MEM, j]
    work[CORE_CACHE, c] -= work[CACHE, j]


@inlined
def integrate(st, tb, e, n, horizon, learn):
    """Follow the n batches in the scratch columns of scheduler e until all end, or for ``horizon`` ms.

    Counts WAIT and LEFT down and writes FINISH (ms from now, copy back included; inf if not reached). With ``learn``, adds
    the features of each to ``moment`` of its stream.
    """
    g = e % tb.solo.shape[0]
    work = st.work[e]
    cores = int(tb.device[g, CORES])
    n_cores = min(cores, st.stream.shape[1]) if cores > 0 else st.stream.shape[1]
    w0 = st.weight[e, 0]
    w1 = st.weight[e, 1]
    turn = tb.device[g, TURN_MS]
    n_run = 0
    n_wait = 0
    for c in range(n_cores):
        work[CORE_N, c] = 0.0
        work[CORE_CPU, c] = 0.0
        work[CORE_MEM, c] = 0.0
        work[CORE_CACHE, c] = 0.0
    for j in range(n):
        work[FINISH, j] = np.inf
        if work[LEFT, j] <= 0.0:
            work[FINISH, j] = work[POST, j]
        elif work[WAIT, j] > 0.0:
            n_wait += 1
        else:
            n_run += 1
            _enter(work, j)
    t = 0.0
    while n_run + n_wait > 0:
        n_busy = 0
        cpu = 0.0
        mem = 0.0
        cache = 0.0
        if n_run > 1:
            for c in range(n_cores):
                on = work[CORE_N, c]
                if on > 0.0:
                    n_busy += 1
                    cpu += work[CORE_CPU, c] / on
                    mem += work[CORE_MEM, c] / on
                    cache += work[CORE_CACHE, c] / on
        step = horizon - t
        for j in range(n):
            if work[LEFT, j] <= 0.0:
                continue
            if work[WAIT, j] > 0.0:
                step = min(step, work[WAIT, j])
                continue
            s = work[BASE, j]
            on = 1.0
            c = int(work[CORE, j])
            if n_run > 1:
                on = work[CORE_N, c]
                s += w0 * (on - 1.0)
                if n_busy > 1:
                    s += w1 * (n_busy - 1.0) + (mem - work[CORE_MEM, c] / on) * work[BY_MEM, j]
                    s += (cpu - work[CORE_CPU, c] / on) * work[BY_CPU, j]
                    s += (cache - work[CORE_CACHE, c] / on) * work[BY_CACHE, j]
            s = min(max(s, 1.0), MAX_SLOWDOWN) * on * st.stream[e, c].slower
            work[SLOWDOWN, j] = s
            step = min(step, work[LEFT, j] * s)
        t += step
        if learn:
            for j in range(n):
                if work[LEFT, j] > 0.0 and work[WAIT, j] <= 0.0:
                    _note_features(st, e, j, n_busy, cpu, mem, cache, step / work[SLOWDOWN, j])
        for j in range(n):
            if work[LEFT, j] <= 0.0:
                continue
            if work[WAIT, j] > 0.0:
                work[WAIT, j] -= step
                if work[WAIT, j] < EPS:
                    work[WAIT, j] = 0.0
                    n_wait -= 1
                    n_run += 1
                    _enter(work, j)
                    if turn > 0.0:
                        _take_first_turn(work, n, j, turn)
                continue
            work[LEFT, j] -= step / work[SLOWDOWN, j]
            if work[LEFT, j] < EPS:
                work[LEFT, j] = 0.0
                work[FINISH, j] = t + work[POST, j]
                n_run -= 1
                _leave(work, j)
        if t >= horizon:
            break


@inlined
def _note_features(st, e, j, n_busy, cpu, mem, cache, done):
    """Add the features of the batch in scratch column j, weighted by the work done, to the moment of its stream."""
    work = st.work[e]
    k = int(work[STREAM, j])
    c = int(work[CORE, j])
    on = work[CORE_N, c]
    x = work[:, feature_column(st)]
    own = work[:, j]
    if n_busy > 1:
        features(
            on, n_busy - 1.0, own[CPU], own[MEM], own[CACHE], cpu - work[CORE_CPU, c] / on,
            mem - work[CORE_MEM, c] / on, cache - work[CORE_CACHE, c] / on, x,
        )  # fmt: skip
    else:
        features(on, 0.0, own[CPU], own[MEM], own[CACHE], 0.0, 0.0, 0.0, x)
    sliced = done * on
    for f in range(N_FEATURES):
        st.moment[e, k, f] += sliced * x[f]
    st.stream[e, k].work += done
    st.stream[e, k].sliced += sliced


@inlined
def load_in_flight(st, tb, e):
    """Put the batches in flight into the scratch columns; returns their number and the copy backlog in ms."""
    n = 0
    backlog = 0.0
    for k in range(st.stream.shape[1]):
        s = st.stream[e, k]
        if s.busy == 1:
            follow(st, tb, e, n, s.model, s.b, s.wait, s.left, s.post, k, s.core)
            backlog = max(backlog, s.wait)
            n += 1
    return n, backlog


@inlined
def choose_spare(st, e):
    """Note which free stream the next dispatch takes: the first on the core with the fewest batches; -1 when none is free."""
    n_streams = st.stream.shape[1]
    best = -1
    least = n_streams
    for k in range(n_streams):
        if st.stream[e, k].busy == 1:
            continue
        core = st.stream[e, k].core
        on = 0
        for other in range(n_streams):
            on += st.stream[e, other].busy * (st.stream[e, other].core == core)
        if on < least:
            least = on
            best = k
    st.env[e].spare = best


@inlined
def cold_ms(st, tb, e, m):
    """Time to load the weights of model m, in ms; 0 when they are in the device's memory."""
    g = e % tb.solo.shape[0]
    return tb.load[g, m] if tb.device[g, MEMORY] > 0.0 and st.used[e, m] < 0.0 else 0.0


@inlined
def add_candidate(st, tb, e, n, backlog, m, b):
    """Put a batch that might be dispatched now into scratch column n, behind the copy backlog. Returns its wait in ms."""
    g = e % tb.solo.shape[0]
    wait = backlog + tb.device[g, DISPATCH] + tb.h2d[g, m, b] + cold_ms(st, tb, e, m)
    core = st.stream[e, max(st.env[e].spare, 0)].core
    follow(st, tb, e, n, m, b, wait, tb.solo[g, m, b], tb.d2h[g, m, b], -1, core)
    return wait


@inlined
def advance(st, tb, e, t):
    """Move the scheduler's view of the batches in flight on to time t (ms)."""
    env = st.env[e]
    dt = t - env.now
    if dt <= 0.0:
        return
    env.now = t
    n, _ = load_in_flight(st, tb, e)
    if n == 0:
        return
    env.seen_model = -1
    integrate(st, tb, e, n, dt, True)
    work = st.work
    for j in range(n):
        s = st.stream[e, int(work[e, STREAM, j])]
        s.wait = work[e, WAIT, j]
        s.left = max(work[e, LEFT, j], OVERDUE_SHARE * s.solo)
        s.owed += work[e, OWED, j]
