"""What a dispatch would do to the deadlines: the predictions that policies and observations are made of.

``look`` predicts the finish of all in flight as things stand; ``consider`` then predicts what one more batch changes.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling.jit import inlined
from envs.scheduling.predictor import FINISH, STREAM, add_candidate, integrate, load_in_flight
from envs.scheduling.state import HIGH


@inlined
def place(st, e, p, m, i):
    """Place in the ring of the i-th request of queue (p, m), counted from the head."""
    at = st.queue[e, p, m].head + i
    places = st.entry.shape[3]
    return at - places if at >= places else at


@inlined
def late_members(st, e, k, finish):
    """How many requests of the batch on stream k have a deadline before ``finish`` (absolute ms)."""
    s = st.stream[e, k]
    if finish <= s.deadline:
        return 0
    n = 0
    for i in range(s.n):
        if st.member[e, k, i].deadline < finish:
            n += 1
    return n


@inlined
def late_heads(st, e, p, m, n, finish):
    """How many of the first n requests of queue (p, m) have a deadline before ``finish`` (absolute ms)."""
    late = 0
    for i in range(n):
        if st.entry[e, p, m, place(st, e, p, m, i)].deadline < finish:
            late += 1
    return late


@inlined
def forget_outlook(st, e):
    """The set in flight or the predictor changed: what was foreseen no longer holds."""
    st.env[e].looked = 0
    st.env[e].seen_model = -1


@inlined
def look(st, tb, e):
    """Predict the finish of each batch in flight into ``stream.finish``. Returns the time to the first, in ms (or inf).

    Time that passes as predicted does not change a predicted finish, so it is worked out again only after a batch ended, or
    when one is overdue.
    """
    now = st.env[e].now
    first = np.inf
    if st.env[e].looked == 1:
        for k in range(st.stream.shape[1]):
            if st.stream[e, k].busy == 1:
                first = min(first, st.stream[e, k].finish - now)
        if first > 0.0:
            return first
    n, _ = load_in_flight(st, tb, e)
    integrate(st, tb, e, n, np.inf, False)
    st.env[e].seen_model = -1
    first = np.inf
    for j in range(n):
        f = st.work[e, FINISH, j]
        st.stream[e, int(st.work[e, STREAM, j])].finish = now + f
        first = min(first, f)
    st.env[e].looked = 1
    return first


@inlined
def in_flight(st, e):
    """Batches in flight. Counted, since streams that an episode does not have are neither free nor busy."""
    n = 0
    for k in range(st.stream.shape[1]):
        n += st.stream[e, k].busy
    return n


@inlined
def foresee(st, tb, e, m, b):
    """Predict all finish times (scratch row FINISH, ms from now) if (m, b) is dispatched now, as scratch column n.

    Returns n, the number of batches in flight. What was foreseen last is not worked out again.
    """
    env = st.env[e]
    if env.seen_model == m and env.seen_b == b and env.seen_at == env.now:
        return in_flight(st, e)
    n, backlog = load_in_flight(st, tb, e)
    env.seen_wait = add_candidate(st, tb, e, n, backlog, m, b)
    integrate(st, tb, e, n + 1, np.inf, False)
    env.seen_model = m
    env.seen_b = b
    env.seen_at = env.now
    return n


@inlined
def consider(st, tb, e, m, b, scale):
    """Predict what dispatching (m, b) now does; call ``look`` first.

    Args:
        st: state. tb: tables. e: scheduler. m: model. b: batch-size index.
        scale: factor on predicted durations (1, or a calibrated quantile).

    Returns:
        (duration, late_high, late_low, delay_high, delay_low): predicted ms from now until the batch finishes, not scaled;
        requests in flight that would meet their deadline as things stand, and would not with it, by priority; added
        delay of the batches in flight in ms, by priority.
    """
    n = foresee(st, tb, e, m, b)
    late_high = 0
    late_low = 0
    delay_high = 0.0
    delay_low = 0.0
    now = st.env[e].now
    for j in range(n):
        k = int(st.work[e, STREAM, j])
        s = st.stream[e, k]
        finish = now + st.work[e, FINISH, j] * scale
        before = now + (s.finish - now) * scale
        flips = 0
        if finish > s.deadline:
            flips = late_members(st, e, k, finish) - late_members(st, e, k, before)
        if s.priority == HIGH:
            late_high += flips
            delay_high += finish - before
        else:
            late_low += flips
            delay_low += finish - before
    return st.work[e, FINISH, n], late_high, late_low, delay_high, delay_low
