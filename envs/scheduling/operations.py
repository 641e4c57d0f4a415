"""Operations on the scheduling state, one per thing that can happen. Simulator and live engine call the same ones.

Each takes the state, the tables and the index e of the scheduler. Requests that end go to ``state.ended``, where the
caller (simulator or engine) collects them; a request enters that list exactly once.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.forecast import foresee, forget_outlook, place
from envs.scheduling.jit import inlined, njit
from envs.scheduling.learning import N_QUANTILES, learn
from envs.scheduling.predictor import FINISH, STREAM, advance, choose_spare, cold_ms
from envs.scheduling.state import CANCELLED, CORES, DROPPED, FAILED, HIGH, LATE, MEMORY, MET, N_FEATURES, TURNS

RATE_WINDOW_MS = 200.0  # time constant of the offered-work averages
KNOWN_BATCHES = 8.0  # a profiled model counts as seen so often, so that first batches do not throw its bias


@njit
def clear(st, tb, e):
    """Empty scheduler e: no queues, no batches, time 0, the predictor back at its prior."""
    g = e % tb.solo.shape[0]
    env = st.env[e]
    env.now = 0.0
    env.wake = np.inf
    env.rate_high = 0.0
    env.rate_low = 0.0
    env.rate_time = 0.0
    env.next_batch = 0
    env.n_free = st.stream.shape[1]
    env.n_queued = 0
    env.n_ended = 0
    env.deferred = 0
    env.speed = 0.0
    forget_outlook(st, e)
    for p in range(2):
        for m in range(st.queue.shape[2]):
            st.queue[e, p, m].head = 0
            st.queue[e, p, m].length = 0
    cores = int(tb.device[g, CORES])
    for k in range(st.stream.shape[1]):
        st.stream[e, k].busy = 0
        st.stream[e, k].pace = 0.0
        st.stream[e, k].slower = 1.0
        st.stream[e, k].core = k % cores if cores > 0 else k
    choose_spare(st, e)
    st.count[e] = 0
    for f in range(N_FEATURES):
        st.weight[e, f] = tb.prior[g, f]
        for h in range(N_FEATURES):
            st.cov[e, f, h] = tb.prior_cov[g, f, h]
    st.bias[e] = 0.0
    st.seen[e] = KNOWN_BATCHES
    st.used[e] = -1.0
    st.judged[e] = 0.0
    for n in range(st.scale.shape[1]):
        for q in range(N_QUANTILES):
            st.scale[e, n, q] = tb.quantile[g, q]


@inlined
def _end(st, e, id_, arrival, priority, model, batch, outcome):
    env = st.env[e]
    r = st.ended[e, env.n_ended]
    r.id = id_
    r.arrival = arrival
    r.outcome = outcome
    r.priority = priority
    r.model = model
    r.batch = batch
    env.n_ended += 1
    st.count[e, priority, outcome] += 1


@inlined
def head_deadline(st, e, p, m):
    """Absolute deadline of the first request of queue (p, m); the queue must not be empty."""
    return st.entry[e, p, m, st.queue[e, p, m].head].deadline


@inlined
def enqueue(st, tb, e, t, p, m, id_, deadline):
    """A request arrives at time t with an absolute deadline. Returns False, and drops it, when its queue is full."""
    g = e % tb.solo.shape[0]
    env = st.env[e]
    decay = math.exp(-(t - env.rate_time) / RATE_WINDOW_MS)
    env.rate_time = t
    env.rate_high *= decay
    env.rate_low *= decay
    offered = tb.solo[g, m, 0] / RATE_WINDOW_MS
    if p == HIGH:
        env.rate_high += offered
    else:
        env.rate_low += offered
    q = st.queue[e, p, m]
    if q.length >= st.entry.shape[3]:
        _end(st, e, id_, t, p, m, -1, DROPPED)
        return False
    r = st.entry[e, p, m, place(st, e, p, m, q.length)]
    r.id = id_
    r.arrival = t
    r.deadline = deadline
    q.length += 1
    env.n_queued += 1
    return True


@inlined
def _pop(st, e, p, m):
    q = st.queue[e, p, m]
    q.length -= 1
    # An empty ring begins at its first place again: short queues stay within a few cache lines.
    q.head = place(st, e, p, m, 1) if q.length > 0 else 0
    st.env[e].n_queued -= 1


@inlined
def turns_on_spare(st, e):
    """Batches that would share the core of the spare stream if one were dispatched there, itself counted."""
    core = st.stream[e, st.env[e].spare].core
    n = 1
    for k in range(st.stream.shape[1]):
        if st.stream[e, k].busy == 1 and st.stream[e, k].core == core:
            n += 1
    return n


@inlined
def has_room(st, tb, e):
    """Whether a batch may be dispatched at all: a stream is free, and its core takes another batch."""
    if st.env[e].n_free == 0:
        return False
    most = tb.device[e % tb.solo.shape[0], TURNS]
    return most <= 0.0 or turns_on_spare(st, e) <= most


@inlined
def can_dispatch(st, e, tb):
    """Whether some candidate is valid: there is room for a batch, and a queue holds a smallest one."""
    env = st.env[e]
    if env.n_queued == 0 or not has_room(st, tb, e):
        return False
    smallest = tb.size[0]
    if smallest == 1:
        return True
    for p in range(2):
        for m in range(st.queue.shape[2]):
            if st.queue[e, p, m].length >= smallest:
                return True
    return False


@inlined
def action_of(tb, n_models, p, m, b):
    """Index of the candidate (priority, model, batch-size index); DEFER is the index after the last candidate."""
    return (p * n_models + m) * tb.size.shape[0] + b


@inlined
def candidate_of(tb, n_models, action):
    """Priority, model and batch-size index of an action that is not DEFER."""
    n_sizes = tb.size.shape[0]
    q = action // n_sizes
    return q // n_models, q % n_models, action % n_sizes


@inlined
def valid(st, tb, e, action):
    """Whether the action is a candidate that can be dispatched now."""
    n_models = st.queue.shape[2]
    if action < 0 or action >= 2 * n_models * tb.size.shape[0] or not has_room(st, tb, e):
        return False
    p, m, b = candidate_of(tb, n_models, action)
    return st.queue[e, p, m].length >= tb.size[b]


@inlined
def mask(st, tb, e, out):
    """Valid actions of scheduler e into ``out`` (A,) bool: what is queued and fits a free stream, and DEFER."""
    n_sizes = tb.size.shape[0]
    free = has_room(st, tb, e)
    i = 0
    for p in range(2):
        for m in range(st.queue.shape[2]):
            length = st.queue[e, p, m].length
            for b in range(n_sizes):
                out[i] = free and length >= tb.size[b]
                i += 1
    out[i] = True


@inlined
def defer(st, e, wake):
    """Dispatch nothing until the next event, or until time ``wake`` (ms; inf for no timer)."""
    st.env[e].wake = wake
    st.env[e].deferred = 1


@njit
def _make_room(st, tb, e, m):
    """Have the weights of model m in the device's memory: the models used least recently give way, unless they run."""
    g = e % tb.solo.shape[0]
    n_models = st.queue.shape[2]
    if st.used[e, m] < 0.0:
        free = tb.device[g, MEMORY] - tb.weights[g, m]
        for other in range(n_models):
            if st.used[e, other] >= 0.0:
                free -= tb.weights[g, other]
        while free < 0.0:
            oldest = -1
            for other in range(n_models):
                if st.used[e, other] < 0.0 or (oldest >= 0 and st.used[e, other] >= st.used[e, oldest]):
                    continue
                runs = False
                for k in range(st.stream.shape[1]):
                    if st.stream[e, k].busy == 1 and st.stream[e, k].model == other:
                        runs = True
                if not runs:
                    oldest = other
            if oldest < 0:
                break
            st.used[e, oldest] = -1.0
            free += tb.weights[g, oldest]
    st.used[e, m] = st.env[e].now


@inlined
def dispatch(st, tb, e, action):
    """Start the candidate on the spare stream, at the time the state stands at. Returns the stream."""
    g = e % tb.solo.shape[0]
    env = st.env[e]
    p, m, b = candidate_of(tb, st.queue.shape[2], action)
    n = foresee(st, tb, e, m, b)
    k = env.spare
    s = st.stream[e, k]
    s.batch = env.next_batch
    s.start = env.now
    s.wait = env.seen_wait
    s.left = tb.solo[g, m, b]
    s.post = tb.d2h[g, m, b]
    s.solo = tb.solo[g, m, b]
    s.predicted = st.work[e, FINISH, n]
    # What was predicted with the candidate is now the outlook.
    st.work[e, STREAM, n] = k
    for j in range(n + 1):
        st.stream[e, int(st.work[e, STREAM, j])].finish = env.now + st.work[e, FINISH, j]
    env.looked = 1
    env.seen_model = -1
    s.work = 0.0
    s.sliced = 0.0
    s.owed = 0.0
    s.speed = env.speed
    s.cold = 1 if cold_ms(st, tb, e, m) > 0.0 else 0
    if tb.device[g, MEMORY] > 0.0:
        _make_room(st, tb, e, m)
    s.busy = 1
    s.model = m
    s.priority = p
    s.b = b
    s.n = tb.size[b]
    s.n_co = n
    s.deadline = np.inf
    for f in range(N_FEATURES):
        st.moment[e, k, f] = 0.0
    for i in range(s.n):
        r = st.entry[e, p, m, st.queue[e, p, m].head]
        to = st.member[e, k, i]
        to.id = r.id
        to.arrival = r.arrival
        to.deadline = r.deadline
        s.deadline = min(s.deadline, r.deadline)
        _pop(st, e, p, m)
    env.next_batch += 1
    env.n_free -= 1
    choose_spare(st, e)
    return k


@inlined
def _release(st, e, k):
    """Stream k is free again."""
    st.stream[e, k].busy = 0
    forget_outlook(st, e)
    choose_spare(st, e)
    st.env[e].n_free += 1


@njit
def complete(st, tb, e, t, k, exec_ms):
    """The batch on stream k ended at time t after ``exec_ms`` of execution: its requests are met or late."""
    advance(st, tb, e, t)
    end_batch(st, tb, e, t, k, exec_ms)


@inlined
def end_batch(st, tb, e, t, k, exec_ms):
    """``complete`` for a caller that has moved the state on to time t."""
    s = st.stream[e, k]
    for i in range(s.n):
        r = st.member[e, k, i]
        _end(st, e, r.id, r.arrival, s.priority, s.model, s.batch, MET if t <= r.deadline else LATE)
    learn(st, tb, e, k, exec_ms, t - s.start)
    _release(st, e, k)


@njit
def fail(st, tb, e, t, k):
    """The batch on stream k failed at time t; nothing is learned from it."""
    advance(st, tb, e, t)
    s = st.stream[e, k]
    for i in range(s.n):
        r = st.member[e, k, i]
        _end(st, e, r.id, r.arrival, s.priority, s.model, s.batch, FAILED)
    _release(st, e, k)


@njit
def cancel(st, e, p, m, id_):
    """Take a queued request out of queue (p, m). Returns whether it was there (it may be in flight or ended)."""
    q = st.queue[e, p, m]
    for i in range(q.length):
        r = st.entry[e, p, m, place(st, e, p, m, i)]
        if r.id == id_:
            _end(st, e, r.id, r.arrival, p, m, -1, CANCELLED)
            for j in range(i, q.length - 1):
                st.entry[e, p, m, place(st, e, p, m, j)] = st.entry[e, p, m, place(st, e, p, m, j + 1)]
            q.length -= 1
            st.env[e].n_queued -= 1
            return True
    return False


@inlined
def _drop_heads(st, e, p, m, earliest):
    """Drop requests from the head of a queue as long as their deadline is before ``earliest``, ms; returns how many."""
    n = 0
    while st.queue[e, p, m].length > 0 and head_deadline(st, e, p, m) < earliest:
        r = st.entry[e, p, m, st.queue[e, p, m].head]
        _end(st, e, r.id, r.arrival, p, m, -1, DROPPED)
        _pop(st, e, p, m)
        n += 1
    return n


@inlined
def drop_unreachable(st, tb, e, scale):
    """Drop queued requests that cannot meet their deadline: even alone on the device, now, ``scale`` times solo.

    Only heads are looked at, in FIFO order, so the cost is that of what is dropped. Returns the number dropped.
    """
    g = e % tb.solo.shape[0]
    now = st.env[e].now
    n = 0
    for p in range(2):
        for m in range(st.queue.shape[2]):
            need = scale * (tb.h2d[g, m, 0] + tb.solo[g, m, 0] + tb.d2h[g, m, 0])
            n += _drop_heads(st, e, p, m, now + need)
    return n


@njit
def drop_late(st, e, grace):
    """Drop queued requests whose deadline passed more than ``grace`` ms ago; otherwise as ``drop_unreachable``."""
    n = 0
    for p in range(2):
        for m in range(st.queue.shape[2]):
            n += _drop_heads(st, e, p, m, st.env[e].now - grace)
    return n


@njit
def drop_all(st, e):
    """Drop everything queued (end of an episode, or a server that stops). Returns the number dropped."""
    n = 0
    for p in range(2):
        for m in range(st.queue.shape[2]):
            while st.queue[e, p, m].length > 0:
                r = st.entry[e, p, m, st.queue[e, p, m].head]
                _end(st, e, r.id, r.arrival, p, m, -1, DROPPED)
                _pop(st, e, p, m)
                n += 1
    return n
