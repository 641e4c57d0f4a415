"""The scheduler's interference predictor: slowdown from co-runners, finish times, and what is learned online.

The slowdown of batch i among the set S that executes now is linear in features of the demands,
``s_i(S) = 1 + bias[model_i] + w . x(i, S)``, held within [1, MAX_SLOWDOWN]. Progress is integrated through the predicted
changes of S: who begins and who ends first, then the next. After a batch ends, its measured slowdown and the
work-weighted mean of its features update ``w`` by recursive least squares with forgetting (Haykin, Adaptive Filter
Theory, ch. 10) and the bias of its model; the ratio of its actual to its predicted time moves the calibrated quantiles
(adaptive conformal inference, Gibbs and Candes 2021, as an online quantile step).
"""

from __future__ import annotations

import numpy as np

from envs.jit import njit
from envs.state import N_FEATURES, N_WORK, QUANTILES

MAX_SLOWDOWN = 20.0
EPS = 1e-9
# A batch that should have ended by now but has not is taken to have this share of its solo time left.
OVERDUE_SHARE = 0.05
BIAS_RATE = 0.05
N_QUANTILES = len(QUANTILES)
LEVELS = np.array(QUANTILES)

# Rows of SchedState.work, one column for each batch that is followed through time.
WAIT, LEFT, FINISH, SLOWDOWN, POST, STREAM, CPU, MEM, CACHE, BASE, BY_MEM, BY_CPU, BY_CACHE = range(N_WORK)


@njit
def features(n, cores, cpu_i, mem_i, cache_i, cpu_o, mem_o, cache_o, x):
    """Features of one batch among n that execute, itself counted.

    Args:
        n: number of executing batches.
        cores: how many run side by side without time slicing; 0 means no limit.
        cpu_i: its demand for compute. mem_i: for memory bandwidth. cache_i: for cache. Fractions of the device.
        cpu_o: summed compute demand of the others. mem_o: memory. cache_o: cache.
        x: (F,) output.
    """
    others = n - 1.0
    over = 0.0
    if cores > 0.0 and n > cores:
        over = n / cores - 1.0
    x[0] = over
    x[1] = others
    x[2] = mem_o
    x[3] = mem_i * mem_o
    x[4] = cpu_i * cpu_o
    x[5] = cache_i * cache_o
    x[6] = over * mem_o
    x[7] = cache_i * mem_o


@njit
def feature_column(st):
    """Index of the scratch column that holds one feature vector (columns 0..K are batches)."""
    return st.work.shape[2] - 1


@njit
def follow(st, tb, e, j, m, b, wait, left, post, stream):
    """Put a batch into scratch column j.

    The slowdown is linear in the summed demands of the others, so its coefficients are worked out once here:
    ``s = BASE + c(n) + mem_o * (BY_MEM + w6 * over) + cpu_o * BY_CPU + cache_o * BY_CACHE``, the same as 1 + bias + w . x
    with x from ``features``.
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
    work[CPU, j] = cpu
    work[MEM, j] = mem
    work[CACHE, j] = cache
    work[BASE, j] = 1.0 + st.bias[e, m]
    work[BY_MEM, j] = w[2] + w[3] * mem + w[7] * cache
    work[BY_CPU, j] = w[4] * cpu
    work[BY_CACHE, j] = w[5] * cache


@njit
def integrate(st, tb, e, n, horizon, learn):
    """Follow the n batches in the scratch columns of scheduler e until all end, or for ``horizon`` ms.

    Counts WAIT and LEFT down and writes FINISH (ms from now, copy back included; inf if not reached). With ``learn``, adds
    the work-weighted features of each to ``moment`` of its stream.
    """
    g = e % tb.solo.shape[0]
    work = st.work[e]
    cores = tb.device[g, 0]
    w0 = st.weight[e, 0]
    w1 = st.weight[e, 1]
    w6 = st.weight[e, 6]
    n_run = 0
    n_wait = 0
    cpu = 0.0
    mem = 0.0
    cache = 0.0
    for j in range(n):
        work[FINISH, j] = np.inf
        if work[LEFT, j] <= 0.0:
            work[FINISH, j] = work[POST, j]
        elif work[WAIT, j] > 0.0:
            n_wait += 1
        else:
            n_run += 1
            cpu += work[CPU, j]
            mem += work[MEM, j]
            cache += work[CACHE, j]
    t = 0.0
    while n_run + n_wait > 0:
        over = 0.0
        if cores > 0.0 and n_run > cores:
            over = n_run / cores - 1.0
        common = w0 * over + w1 * (n_run - 1.0)
        by_over = w6 * over
        step = horizon - t
        for j in range(n):
            if work[LEFT, j] <= 0.0:
                continue
            if work[WAIT, j] > 0.0:
                step = min(step, work[WAIT, j])
                continue
            s = work[BASE, j] + common
            if n_run > 1:
                s += (mem - work[MEM, j]) * (work[BY_MEM, j] + by_over)
                s += (cpu - work[CPU, j]) * work[BY_CPU, j] + (cache - work[CACHE, j]) * work[BY_CACHE, j]
            s = min(max(s, 1.0), MAX_SLOWDOWN)
            work[SLOWDOWN, j] = s
            step = min(step, work[LEFT, j] * s)
        t += step
        n_now = n_run
        cpu_now = cpu
        mem_now = mem
        cache_now = cache
        for j in range(n):
            if work[LEFT, j] <= 0.0:
                continue
            if work[WAIT, j] > 0.0:
                work[WAIT, j] -= step
                if work[WAIT, j] < EPS:
                    work[WAIT, j] = 0.0
                    n_wait -= 1
                    n_run += 1
                    cpu += work[CPU, j]
                    mem += work[MEM, j]
                    cache += work[CACHE, j]
                continue
            done = step / work[SLOWDOWN, j]
            if learn:
                _note_features(st, e, j, n_now, cores, cpu_now, mem_now, cache_now, done)
            work[LEFT, j] -= done
            if work[LEFT, j] < EPS:
                work[LEFT, j] = 0.0
                work[FINISH, j] = t + work[POST, j]
                n_run -= 1
                cpu -= work[CPU, j]
                mem -= work[MEM, j]
                cache -= work[CACHE, j]
        if t >= horizon:
            break


@njit
def _note_features(st, e, j, n_run, cores, cpu, mem, cache, done):
    """Add the features of the batch in scratch column j, weighted by the work done, to the moment of its stream."""
    work = st.work[e]
    k = int(work[STREAM, j])
    c = work[CPU, j]
    b = work[MEM, j]
    h = work[CACHE, j]
    x = work[:, feature_column(st)]
    features(n_run, cores, c, b, h, cpu - c, mem - b, cache - h, x)
    for f in range(N_FEATURES):
        st.moment[e, k, f] += done * x[f]
    st.stream[e, k].work += done


@njit
def load_in_flight(st, tb, e):
    """Put the batches in flight into the scratch columns; returns their number and the copy backlog in ms."""
    n = 0
    backlog = 0.0
    for k in range(st.stream.shape[1]):
        s = st.stream[e, k]
        if s.busy == 1:
            follow(st, tb, e, n, s.model, s.b, s.wait, s.left, s.post, k)
            backlog = max(backlog, s.wait)
            n += 1
    return n, backlog


@njit
def add_candidate(st, tb, e, n, backlog, m, b):
    """Put a batch that might be dispatched now into scratch column n, behind the copy backlog. Returns its wait in ms."""
    g = e % tb.solo.shape[0]
    wait = backlog + tb.device[g, 1] + tb.h2d[g, m, b]
    follow(st, tb, e, n, m, b, wait, tb.solo[g, m, b], tb.d2h[g, m, b], -1)
    return wait


@njit
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


@njit
def learn(st, tb, e, k, exec_ms, total_ms):
    """Update the predictor from the batch that ended on stream k.

    Args:
        st: state. tb: tables. e: scheduler. k: stream.
        exec_ms: measured execution time. total_ms: measured time from dispatch to finish.
    """
    g = e % tb.solo.shape[0]
    s = st.stream[e, k]
    forget = tb.device[g, 2]
    w = st.weight
    cov = st.cov
    if s.work > 0.0 and s.solo > 0.0 and forget > 0.0:
        y = min(exec_ms / s.solo, MAX_SLOWDOWN) - 1.0
        x = st.moment[e, k]
        gain = st.work[e, :, feature_column(st)]
        guess = st.bias[e, s.model]
        power = forget
        for f in range(N_FEATURES):
            x[f] /= s.work
        for f in range(N_FEATURES):
            acc = 0.0
            for h in range(N_FEATURES):
                acc += cov[e, f, h] * x[h]
            gain[f] = acc
            guess += w[e, f] * x[f]
            power += x[f] * acc
        # A straggler must not throw the weights: the innovation is bounded (Huber).
        error = min(max(y - guess, -1.0), 1.0)
        trace = 0.0
        for f in range(N_FEATURES):
            w[e, f] += gain[f] / power * error
            trace += cov[e, f, f]
        # Without excitation forgetting alone would blow the covariance up; it stops at a bound.
        keep = 1.0 / forget if trace < 1e3 else 1.0
        for f in range(N_FEATURES):
            for h in range(N_FEATURES):
                cov[e, f, h] = (cov[e, f, h] - gain[f] * gain[h] / power) * keep
        st.bias[e, s.model] += BIAS_RATE * error
    rate = tb.device[g, 3]
    if s.predicted > 0.0 and rate > 0.0:
        ratio = total_ms / s.predicted
        for q in range(N_QUANTILES):
            level = LEVELS[q]
            value = st.scale[e, s.n_co, q]
            value += rate * (level if ratio > value else level - 1.0)
            st.scale[e, s.n_co, q] = max(value, 0.2)
