"""Small compiled pieces that several policies share."""

from __future__ import annotations

import numpy as np

from envs.scheduling.candidates import action_of, available
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined, njit


@njit
def defer_action(state, tables):
    """Index of the action DEFER."""
    return 2 * state.queue.shape[2] * tables.size.shape[0]


@inlined
def room(state, tables, env, priority, model, mixed):
    """Requests that a batch of queue (p, m) could hold, 0 if that is empty; with low priority if ``mixed`` is above 0."""
    return available(state, tables, env, priority, model) if mixed > 0.0 else state.queue[env, priority, model].length


@njit
def largest_fit(state, tables, env, priority, model, limit, mixed):
    """Index of the largest batch size that ``room`` can fill, not above ``limit`` requests; -1 if none."""
    length = room(state, tables, env, priority, model, mixed)
    best = -1
    for size in range(tables.size.shape[0]):
        if tables.size[size] <= length and tables.size[size] <= limit:
            best = size
    return best


@njit
def largest_batch(state, tables, env, priority, model, limit, mixed):
    """Action and wake time of a policy that dispatches the largest batch of ``largest_fit``, or else defers."""
    size = largest_fit(state, tables, env, priority, model, limit, mixed)
    if size < 0:
        return defer_action(state, tables), np.inf
    return action_of(tables, state.queue.shape[2], priority, model, size), np.inf


@njit
def largest_in_time(state, tables, env, priority, model, margin, mixed):
    """Index of the largest batch that ``room`` can fill and whose head is in time alone on the device; 0 if none."""
    group = env % tables.solo.shape[0]
    q = state.queue[env, priority, model]
    deadline = state.entry[env, priority, model, q.head].deadline
    length = room(state, tables, env, priority, model, mixed)
    best = 0
    for size in range(tables.size.shape[0]):
        finish = state.scheduler[env].now + margin * solo_total(tables, group, model, size)
        if tables.size[size] <= length and finish <= deadline:
            best = size
    return best


@njit
def earliest_deadline_queue(state, env, priority):
    """Model whose queue of priority p has the head with the earliest deadline, and that deadline; -1 if all are empty."""
    best = -1
    best_deadline = np.inf
    for model in range(state.queue.shape[2]):
        q = state.queue[env, priority, model]
        if q.length > 0:
            deadline = state.entry[env, priority, model, q.head].deadline
            if deadline < best_deadline:
                best_deadline = deadline
                best = model
    return best, best_deadline


# Layout of a policy's memory mem[e] where it follows endings: 16 floats of its own, then one for each stream.
OWN_MEM = 16
TRACKED = 16
STREAM_MEM = 8
EXACT = 31


@njit
def observed_ms(state, memory, env, stream):
    """Time from dispatch to end of the batch that ended on stream k since the last call; -1 if none, or if not known.

    A policy is asked at the very time of an ending only while requests are queued; ``note_left`` says whether they were.
    The stream's record still tells model, priority and size. Streams beyond ``STREAM_MEM`` are not followed.
    """
    if stream >= STREAM_MEM:
        return -1.0
    s = state.stream[env, stream]
    tracked = memory[env, TRACKED + stream]
    if s.busy == 1:
        memory[env, TRACKED + stream] = s.batch + 1.0
        return -1.0
    memory[env, TRACKED + stream] = 0.0
    if tracked != s.batch + 1.0 or memory[env, EXACT] == 0.0:
        return -1.0
    return state.scheduler[env].now - s.start


@njit
def note_left(state, memory, env, taken):
    """Remember whether requests stay queued after a decision that takes ``taken`` of them."""
    memory[env, EXACT] = 1.0 if state.scheduler[env].n_queued > taken else 0.0


@njit
def in_flight_of(state, env, model):
    """Number of batches of model m in flight."""
    n = 0
    for stream in range(state.stream.shape[1]):
        if state.stream[env, stream].busy == 1 and state.stream[env, stream].model == model:
            n += 1
    return n


@njit
def held_by_low(state, env):
    """Number of streams that low-priority batches hold."""
    held = 0
    for stream in range(state.stream.shape[1]):
        held += state.stream[env, stream].busy * state.stream[env, stream].priority
    return held
