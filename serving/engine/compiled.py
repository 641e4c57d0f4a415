"""What the live engine does to the scheduling state at each event, compiled: one call from Python per event.

The operations are those of envs.scheduling.operations, in the order in which envs.simulation.events drives them, with the
real clock as `t`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from envs.scheduling.candidates import can_dispatch, valid
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import bind
from envs.scheduling.operations import (
    cancel,
    complete,
    defer,
    dispatch,
    drop_all,
    drop_late,
    drop_unreachable,
    enqueue,
    fail,
    head_deadline,
    place,
)
from envs.scheduling.predictor import advance
from envs.scheduling.state import SchedState, Tables

ENV = 0  # a live engine is a batch of one scheduler

# As envs.scheduling.jit.njit, but holding Python's lock: each of these takes about 1 us, and a thread that waits for the
# lock (gRPC has one) would take it meanwhile, and keep it for longer.
_compiled: Any = functools.partial(numba.njit, cache=True, nogil=False, error_model="numpy", _nrt=False)


@_compiled
def arrive(state, tables, now, t, priority, model, id_, deadline):
    """A request that arrived at time t <= now, all in ms; False when its queue is full (it has ended as dropped)."""
    advance(state, tables, ENV, now)
    state.scheduler[ENV].deferred = 0
    return enqueue(state, tables, ENV, t, priority, model, id_, deadline)


@_compiled
def finish(state, tables, now, stream, exec_ms):
    """The batch on a stream ended after `exec_ms` of execution; a negative number says that it failed."""
    state.scheduler[ENV].deferred = 0
    if exec_ms < 0.0:
        fail(state, tables, ENV, now, stream)
    else:
        complete(state, tables, ENV, now, stream, exec_ms)


@_compiled
def _expire(state, tables, drop, grace):
    """Drop what is out of reach (`drop` > 0), and in any case what has been late for `grace` ms."""
    if drop > 0.0:
        drop_unreachable(state, tables, ENV, drop)
    drop_late(state, ENV, grace)


@_compiled
def poll(state, tables, now, drop, grace):
    """Move to time `now` and drop what has expired. Returns whether the policy should be asked."""
    advance(state, tables, ENV, now)
    own = state.scheduler[ENV]
    if own.wake <= now:
        own.wake = np.inf
        own.deferred = 0
    if own.n_queued == 0:
        own.wake = np.inf
        return False
    _expire(state, tables, drop, grace)
    return own.deferred == 0 and can_dispatch(state, ENV, tables)


@_compiled
def can_dispatch_candidate(state, tables, action):
    """Whether a policy's answer is a candidate that can be dispatched now."""
    return valid(state, tables, ENV, action)


@_compiled
def dispatch_candidate(state, tables, action):
    """Dispatch a candidate; returns the stream that has its batch."""
    return dispatch(state, tables, ENV, action)


@_compiled
def defer_until(state, tables, wake):
    """Defer; returns the candidate to dispatch all the same, or -1."""
    return defer(state, tables, ENV, wake)


@_compiled
def ahead(state, tables, priority, deadline):
    """Queued requests of a priority that are due no later: how many, and their work in ms, each a share of a largest batch."""
    n, work = 0, 0.0
    for model in range(state.queue.shape[2]):
        before = 0
        for i in range(state.queue[ENV, priority, model].length):
            if state.entry[ENV, priority, model, place(state, ENV, priority, model, i)].deadline <= deadline:
                before += 1
        n += before
        work += before * tables.solo[ENV, model, -1] / tables.size[-1]
    return n, work


@_compiled
def next_timer(state, tables, drop, grace):
    """When to look again if nothing happens before: the policy's timer, or the first request to expire; inf if never."""
    own = state.scheduler[ENV]
    if own.n_queued == 0:
        return np.inf
    first = own.wake if own.wake > own.now else np.inf
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            if state.queue[ENV, priority, model].length == 0:
                continue
            deadline = head_deadline(state, ENV, priority, model)
            first = min(first, deadline + grace)
            if drop > 0.0:
                first = min(first, deadline - drop * solo_total(tables, ENV, model, 0))
    return first


class Core(NamedTuple):
    """The operations as `envs.scheduling.jit.bind` binds them: arguments must be exactly int and float, as in `compile_core`.

    `cancel` and `drop_all` are those of envs.scheduling.operations, the others those above.
    """

    arrive: Callable[..., bool]
    finish: Callable[..., None]
    poll: Callable[..., bool]
    next_timer: Callable[..., float]
    ahead: Callable[..., tuple[int, float]]
    cancel: Callable[..., bool]
    defer: Callable[..., int]
    valid: Callable[..., bool]
    dispatch: Callable[..., int]
    drop_all: Callable[..., int]


def compile_core(st: SchedState, tables: Tables) -> Core:
    """Compile the operations for this state (or load them from the cache); good for any state and tables."""
    state: Any = st
    return Core(
        arrive=bind(arrive, state, tables, 0.0, 0.0, 0, 0, 0, 0.0),
        finish=bind(finish, state, tables, 0.0, 0, 0.0),
        poll=bind(poll, state, tables, 0.0, 0.0, 0.0),
        next_timer=bind(next_timer, state, tables, 0.0, 0.0),
        ahead=bind(ahead, state, tables, 0, 0.0),
        cancel=bind(cancel, state, ENV, 0, 0, 0),
        defer=bind(defer_until, state, tables, 0.0),
        valid=bind(can_dispatch_candidate, state, tables, 0),
        dispatch=bind(dispatch_candidate, state, tables, 0),
        drop_all=bind(drop_all, state, ENV),
    )
