"""What the live engine does to the scheduling state at each event, compiled: one call from Python an event.

The operations are those of envs.scheduling.operations, in the order in which envs.simulation.events drives them, with the
real clock as `t`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from envs.scheduling.jit import bind
from envs.scheduling.operations import (
    can_dispatch,
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

# As envs.scheduling.jit.njit, but holding Python's lock: each of these takes about 1 us, and a thread that waits for the
# lock (gRPC has one) would take it meanwhile, and keep it for longer.
_compiled: Any = functools.partial(numba.njit, cache=True, nogil=False, error_model="numpy", _nrt=False)


@_compiled
def arrive(st, tb, e, now, t, p, m, id_, deadline):
    """A request that arrived at time t <= now, all in ms; False when its queue is full (it has ended as dropped)."""
    advance(st, tb, e, now)
    st.env[e].deferred = 0
    return enqueue(st, tb, e, t, p, m, id_, deadline)


@_compiled
def finish(st, tb, e, now, k, exec_ms):
    """The batch on stream k ended after `exec_ms` of execution; a negative number says that it failed."""
    st.env[e].deferred = 0
    if exec_ms < 0.0:
        fail(st, tb, e, now, k)
    else:
        complete(st, tb, e, now, k, exec_ms)


@_compiled
def _expire(st, tb, e, drop, grace):
    """Drop what is out of reach (`drop` > 0), and in any case what has been late for `grace` ms."""
    if drop > 0.0:
        drop_unreachable(st, tb, e, drop)
    drop_late(st, e, grace)


@_compiled
def poll(st, tb, e, now, drop, grace):
    """Move to time `now` and drop what has expired. Returns whether the policy should be asked."""
    advance(st, tb, e, now)
    env = st.env[e]
    if env.wake <= now:
        env.wake = np.inf
        env.deferred = 0
    if env.n_queued == 0:
        env.wake = np.inf
        return False
    _expire(st, tb, e, drop, grace)
    return env.deferred == 0 and can_dispatch(st, e, tb)


@_compiled
def launch(st, tb, e, action):
    """Dispatch a candidate; returns the stream that has its batch."""
    return dispatch(st, tb, e, action)


@_compiled
def ahead(st, tb, e, p, deadline):
    """Queued requests of priority p that are due no later: how many, and their work in ms, each a share of a largest batch."""
    g = e % tb.solo.shape[0]
    n, work = 0, 0.0
    for m in range(st.queue.shape[2]):
        before = 0
        for i in range(st.queue[e, p, m].length):
            if st.entry[e, p, m, place(st, e, p, m, i)].deadline <= deadline:
                before += 1
        n += before
        work += before * tb.solo[g, m, -1] / tb.size[-1]
    return n, work


@_compiled
def next_timer(st, tb, e, drop, grace):
    """When to look again if nothing happens before: the policy's timer, or the first request to expire; inf if never."""
    env = st.env[e]
    if env.n_queued == 0:
        return np.inf
    g = e % tb.solo.shape[0]
    first = env.wake if env.wake > env.now else np.inf
    for p in range(2):
        for m in range(st.queue.shape[2]):
            if st.queue[e, p, m].length == 0:
                continue
            deadline = head_deadline(st, e, p, m)
            first = min(first, deadline + grace)
            if drop > 0.0:
                first = min(first, deadline - drop * (tb.h2d[g, m, 0] + tb.solo[g, m, 0] + tb.d2h[g, m, 0]))
    return first


class Core(NamedTuple):
    """The operations, bound: see `envs.scheduling.jit.bind`. Arguments must be exactly int and float as in `compile_core`."""

    arrive: Callable[..., bool]
    finish: Callable[..., None]
    poll: Callable[..., bool]
    next_timer: Callable[..., float]
    ahead: Callable[..., tuple[int, float]]
    cancel: Callable[..., bool]
    defer: Callable[..., None]
    dispatch: Callable[..., int]
    drop_all: Callable[..., int]


def compile_core(st: SchedState, tb: Tables) -> Core:
    """Compile the operations for this state (or load them from the cache); good for any state and tables."""
    state: Any = st
    return Core(
        arrive=bind(arrive, state, tb, 0, 0.0, 0.0, 0, 0, 0, 0.0),
        finish=bind(finish, state, tb, 0, 0.0, 0, 0.0),
        poll=bind(poll, state, tb, 0, 0.0, 0.0, 0.0),
        next_timer=bind(next_timer, state, tb, 0, 0.0, 0.0),
        ahead=bind(ahead, state, tb, 0, 0, 0.0),
        cancel=bind(cancel, state, 0, 0, 0, 0),
        defer=bind(defer, state, 0, 0.0),
        dispatch=bind(launch, state, tb, 0, 0),
        drop_all=bind(drop_all, state, 0),
    )
