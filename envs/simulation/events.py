"""The simulated truth: what the device really does with the batches that the scheduler dispatches, event by event.

One call moves one world on by one event (a device's own in envs.simulation.device); ``run_to_decision`` repeats that until the
scheduler has something to decide. What a world is made of is in envs.simulation.records.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling import rng
from envs.scheduling.jit import inlined, njit
from envs.scheduling.operations import (
    can_dispatch,
    clear,
    defer,
    dispatch,
    drop_all,
    drop_late,
    drop_unreachable,
    end_batch,
    enqueue,
    valid,
)
from envs.scheduling.predictor import advance
from envs.scheduling.state import MET, WAITING
from envs.simulation.device import DRIFT, device_event, launch, progress
from envs.simulation.records import ANYWHERE, COPY_OUT, EXECUTE, IDLE, SUSPENDED, TIMER_MS, WEIGHT


@njit
def begin(st, w, tb, tr, e, seed):
    """Start an episode of world e on the arrivals already in ``w.request[e, :w.env[e].n]``."""
    clear(st, tb, e)
    x = w.env[e]
    x.seed = seed
    x.episode += 1
    x.time = 0.0
    x.h2d_free = 0.0
    x.d2h_free = 0.0
    x.next = 0
    x.done = 0
    x.reward = 0.0
    x.ret = 0.0
    x.steps = 0
    x.suspend = np.inf
    x.suspending = 0
    x.knot = -1
    n_knots = tr.speed.shape[2]
    anywhere = n_knots > 0 and tr.device[e % tr.device.shape[0], ANYWHERE] > 0.0
    x.speed_at = int(rng.uniform(rng.mix(seed, DRIFT), 0) * n_knots) if anywhere else 0
    x.end = w.options[e, 2]
    if x.n > 0:
        x.end += w.request[e, x.n - 1].arrival
    for i in range(x.n):
        r = w.request[e, i]
        r.outcome = WAITING
        r.start = np.nan
        r.finish = np.nan
        r.batch = -1
        r.baseline = 0
    for k in range(w.run.shape[1]):
        w.run[e, k].phase = IDLE


@inlined
def collect(st, w, tr, e):
    """Read the requests that ended: note their outcome and add their reward.

    That is minus the weight of each violation; less those of a baseline (``baseline`` of the request), which is the outcome
    under another policy, or 0.
    """
    g = e % tr.solo.shape[0]
    env = st.env[e]
    x = w.env[e]
    for i in range(env.n_ended):
        d = st.ended[e, i]
        r = w.request[e, d.id]
        r.outcome = d.outcome
        r.finish = max(env.now, r.arrival)
        violated = 0 if d.outcome == MET else 1
        x.reward -= tr.device[g, WEIGHT + d.priority] * (violated - r.baseline)
    env.n_ended = 0


@inlined
def _next_event(st, w, e):
    """Time and kind of the next event: stream index, -1 arrival, -2 timer, -3 end of dispatch, -4 none, -5 suspension."""
    x = w.env[e]
    t = np.inf
    kind = -4
    for k in range(w.run.shape[1]):
        r = w.run[e, k]
        if r.phase == IDLE or r.phase == SUSPENDED:
            continue
        at = x.time + r.work * r.slow if r.phase == EXECUTE else r.until
        if at < t:
            t = at
            kind = k
    if x.suspend < t:
        t = x.suspend
        kind = -5
    if x.next < x.n:
        at = w.request[e, x.next].arrival
        if at < t:
            t = at
            kind = -1
    if st.env[e].n_queued > 0:
        if st.env[e].wake < t:
            t = st.env[e].wake
            kind = -2
        if x.end < t:
            t = x.end
            kind = -3
    return max(t, x.time), kind


@inlined
def run_event(st, w, tb, tr, e):
    """Process the next event. Returns whether the scheduler saw it (an arrival, a completion, a timer, the end)."""
    g = e % tr.solo.shape[0]
    x = w.env[e]
    t, kind = _next_event(st, w, e)
    if kind == -4:
        x.done = 1
        return True
    if kind == -5 or (kind >= 0 and w.run[e, kind].phase != COPY_OUT):
        progress(w, e, t)
        device_event(st, w, tr, e, g, t, kind)
        return False
    if kind != -1 or st.env[e].n_free > 0:
        advance(st, tb, e, t)
    if kind == -1:
        r = w.request[e, x.next]
        st.env[e].deferred = 0
        enqueue(st, tb, e, t, r.priority, r.model, x.next, r.deadline)
        x.next += 1
        return True
    if kind == -2:
        st.env[e].wake = np.inf
        st.env[e].deferred = 0
        return True
    if kind == -3:
        drop_all(st, e)
        return True
    progress(w, e, t)
    r = w.run[e, kind]
    r.phase = IDLE
    st.env[e].deferred = 0
    end_batch(st, tb, e, t, kind, r.exec_end - r.h2d_end)
    return True


@inlined
def run_to_decision(st, w, tb, tr, e):
    """Run events until the scheduler can decide something, or the episode is done."""
    x = w.env[e]
    env = st.env[e]
    while x.done == 0:
        if env.deferred == 0 and can_dispatch(st, e, tb):
            if w.options[e, 0] > 0.0 and drop_unreachable(st, tb, e, w.options[e, 0]) > 0:
                continue
            if w.options[e, 3] < np.inf and drop_late(st, e, w.options[e, 3]) > 0:
                continue
            break
        run_event(st, w, tb, tr, e)
        if env.n_ended > 0:
            collect(st, w, tr, e)
    if env.n_ended > 0:
        collect(st, w, tr, e)


@inlined
def act(st, w, tb, tr, e, action, wake):
    """Carry out one decision of world e, without running on; arguments as of ``step``."""
    g = e % tr.solo.shape[0]
    x = w.env[e]
    x.reward = 0.0
    x.steps += 1
    if valid(st, tb, e, action):
        k = dispatch(st, tb, e, action)
        launch(st, w, tr, e, k)
    else:
        defer(st, e, wake + tr.device[g, TIMER_MS])


@inlined
def step(st, w, tb, tr, e, action, wake):
    """Carry out one decision of world e and run to the next.

    Args:
        st: state. w: worlds. tb: tables. tr: truth. e: which world.
        action: candidate index, or the number of candidates for DEFER. A candidate that is not valid defers.
        wake: absolute time (ms) to wake at when deferring; inf for no timer.
    """
    act(st, w, tb, tr, e, action, wake)
    run_to_decision(st, w, tb, tr, e)
    w.env[e].ret += w.env[e].reward
