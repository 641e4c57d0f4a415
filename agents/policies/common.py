"""Small compiled pieces that several policies share."""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.jit import njit


@njit
def defer_action(st, tb):
    """Index of the action DEFER."""
    return 2 * st.queue.shape[2] * tb.size.shape[0]


@njit
def largest_fit(st, tb, e, p, m, limit):
    """Index of the largest batch size that queue (p, m) can fill, not above ``limit`` requests; -1 if none."""
    length = st.queue[e, p, m].length
    best = -1
    for b in range(tb.size.shape[0]):
        if tb.size[b] <= length and tb.size[b] <= limit:
            best = b
    return best


@njit
def earliest_deadline_queue(st, e, p):
    """Model whose queue of priority p has the head with the earliest deadline, and that deadline; -1 if all are empty."""
    best = -1
    best_deadline = np.inf
    for m in range(st.queue.shape[2]):
        q = st.queue[e, p, m]
        if q.length > 0:
            deadline = st.entry[e, p, m, q.head].deadline
            if deadline < best_deadline:
                best_deadline = deadline
                best = m
    return best, best_deadline


# Layout of a policy's memory mem[e] where it follows endings: 16 floats of its own, then one for each stream.
OWN_MEM = 16
TRACKED = 16
STREAM_MEM = 8
EXACT = 31


@njit
def observed_ms(st, mem, e, k):
    """Time from dispatch to end of the batch that ended on stream k since the last call; -1 if none, or if not known.

    A policy is asked at the very time of an ending only while requests are queued; ``note_left`` says whether they were.
    The stream's record still tells model, priority and size. Streams beyond ``STREAM_MEM`` are not followed.
    """
    if k >= STREAM_MEM:
        return -1.0
    s = st.stream[e, k]
    tracked = mem[e, TRACKED + k]
    if s.busy == 1:
        mem[e, TRACKED + k] = s.batch + 1.0
        return -1.0
    mem[e, TRACKED + k] = 0.0
    if tracked != s.batch + 1.0 or mem[e, EXACT] == 0.0:
        return -1.0
    return st.env[e].now - s.start


@njit
def note_left(st, mem, e, taken):
    """Remember whether requests stay queued after a decision that takes ``taken`` of them."""
    mem[e, EXACT] = 1.0 if st.env[e].n_queued > taken else 0.0


@njit
def solo_total(tb, g, m, b):
    """Copies and execution of a batch alone on the device, in ms."""
    return tb.h2d[g, m, b] + tb.solo[g, m, b] + tb.d2h[g, m, b]


@njit
def alone_ms(st, tb, e, m, b):
    """The same as it is predicted: with what was learned of this model and size, and with the device's present speed.

    A device that is slower than it is told to be is no loss to those that run side by side.
    """
    g = e % tb.solo.shape[0]
    slower = max(1.0 + st.bias[e, m, b], 1.0) * math.exp(st.env[e].speed)
    return solo_total(tb, g, m, b) + tb.solo[g, m, b] * (slower - 1.0)


@njit
def in_flight_of(st, e, m):
    """Number of batches of model m in flight."""
    n = 0
    for k in range(st.stream.shape[1]):
        if st.stream[e, k].busy == 1 and st.stream[e, k].model == m:
            n += 1
    return n


@njit
def held_by_low(st, e):
    """Number of streams that low-priority batches hold."""
    held = 0
    for k in range(st.stream.shape[1]):
        held += st.stream[e, k].busy * st.stream[e, k].priority
    return held
