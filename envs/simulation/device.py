"""What the simulated device does: copies, execution that co-runners slow down, drift, turns on a core, suspension.

Copies go through one FIFO engine a direction. Executing batches progress at rate ``1 / (slowdown * noise)``; the slowdown
of a batch depends on how many share its core and on who executes on the others (``count`` and ``pair``, fitted offline to
measurements), and changes whenever the set of executing batches changes; the device as a whole drifts.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling import rng
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import HIGH
from envs.simulation.records import (
    COMPLETION_MS,
    COPY_IN,
    COPY_OUT,
    DISPATCH_MS,
    DRIFT_KNOT_MS,
    DRIFT_SPREAD,
    EXECUTE,
    HANDOVER,
    IDLE,
    SEEN,
    SHARED_TURN_MS,
    STRAGGLER_FACTOR,
    STRAGGLER_P,
    SUSPENDED,
)

# Counters of the derived seeds that noise, drift and waits on shared cores are drawn from.
NOISE, DRIFT, CROWD = 1, 2, 3


@inlined
def _drift(w, tr, e, g, core):
    """Factor on execution times on a core now: between knots that were measured or are hashed from the episode's seed."""
    spread = tr.device[g, DRIFT_SPREAD]
    n_knots = tr.speed.shape[2]
    if spread == 0.0 and n_knots == 0:
        return 1.0
    x = w.env[e]
    at = x.time / tr.device[g, DRIFT_KNOT_MS]
    knot = int(at)
    if n_knots > 0:
        here = tr.speed[0, core, (x.speed_at + knot) % n_knots]
        return math.exp(here + (at - knot) * (tr.speed[0, core, (x.speed_at + knot + 1) % n_knots] - here))
    if knot != x.knot:
        seed = rng.mix(x.seed, DRIFT)
        x.drift_a = rng.normal(seed, knot)
        x.drift_b = rng.normal(seed, knot + 1)
        x.knot = knot
    share = at - knot
    return math.exp(spread * ((1.0 - share) * x.drift_a + share * x.drift_b))


@inlined
def _set_slowdowns(w, tr, e, g):
    """Slowdown of each executing batch, from how many share its core and who executes on the others."""
    n_streams = w.run.shape[1]
    n = 0
    for k in range(n_streams):
        r = w.run[e, k]
        if r.phase != EXECUTE:
            continue
        n += 1
        r.sharing = 0
        for j in range(n_streams):
            if w.run[e, j].phase == EXECUTE and w.run[e, j].core == r.core:
                r.sharing += 1
    for k in range(n_streams):
        r = w.run[e, k]
        if r.phase != EXECUTE:
            continue
        log_slow = 0.0
        if n > r.sharing:
            for j in range(n_streams):
                other = w.run[e, j]
                if other.phase == EXECUTE and other.core != r.core:
                    log_slow += tr.pair[g, r.mb, other.mb] / other.sharing
        r.slow = max(math.exp(log_slow), 1.0) * tr.count[g, r.sharing] * r.noise * _drift(w, tr, e, g, r.core)


@njit
def _suspend(w, e, t):
    """Suspend or resume low priority after the set of executing batches changed at time t; for worlds that preempt."""
    x = w.env[e]
    high = False
    for k in range(w.run.shape[1]):
        if w.run[e, k].phase == EXECUTE and w.run[e, k].priority == HIGH:
            high = True
    if not high:
        x.suspend = np.inf
        x.suspending = 0
    elif x.suspending == 0:
        x.suspend = min(x.suspend, t + w.preempt[e, 1])
        if x.suspend <= t:
            x.suspend = np.inf
            x.suspending = 1
    for k in range(w.run.shape[1]):
        r = w.run[e, k]
        if x.suspending == 1 and r.phase == EXECUTE and r.priority != HIGH:
            r.phase = SUSPENDED
        elif x.suspending == 0 and r.phase == SUSPENDED:
            r.phase = EXECUTE
            r.work += w.preempt[e, 3]


@inlined
def progress(w, e, t):
    """Account the execution done until time t."""
    x = w.env[e]
    dt = t - x.time
    x.time = t
    if dt <= 0.0:
        return
    for k in range(w.run.shape[1]):
        r = w.run[e, k]
        if r.phase == EXECUTE:
            r.work = max(r.work - dt / r.slow, 0.0)


@njit
def _crowd_ms(st, w, tr, e, k, event):
    """What a batch on stream k waits at an event (HANDOVER, SEEN) because batches share cores.

    Threads on one core take turns, and one that waits for its turn may hold what threads on other cores want.
    """
    g = e % tr.solo.shape[0]
    mean = 0.0
    for i in range(w.run.shape[1]):
        if i == k or w.run[e, i].phase == IDLE:
            continue
        if w.run[e, i].core == w.run[e, k].core:
            mean = tr.crowded[g, event, 1]
            break
        for j in range(i):
            if j != k and w.run[e, j].phase != IDLE and w.run[e, j].core == w.run[e, i].core:
                mean = tr.crowded[g, event, 0]
    if mean == 0.0:
        return 0.0
    return rng.exponential(rng.mix(w.env[e].seed, CROWD), 2 * st.member[e, k, 0].id + event, mean)


@inlined
def launch(st, w, tr, e, k):
    """The scheduler dispatched a batch on stream k: start its copy and draw its noise."""
    g = e % tr.solo.shape[0]
    s = st.stream[e, k]
    r = w.run[e, k]
    x = w.env[e]
    n_sizes = tr.solo.shape[2]
    first = st.member[e, k, 0].id
    # The noise belongs to the batch's first request, so that compared policies meet the same noise.
    # It is drawn from a seed of its own: arrivals may be hashed from the episode's.
    seed = rng.mix(x.seed, NOISE)
    r.noise = tr.residual[g, int(rng.uniform(seed, 2 * first) * tr.residual.shape[1])]
    if rng.uniform(seed, 2 * first + 1) < tr.device[g, STRAGGLER_P]:
        r.noise *= tr.device[g, STRAGGLER_FACTOR]
    r.mb = s.model * n_sizes + s.b
    r.work = tr.solo[g, s.model, s.b]
    r.core = s.core
    r.h2d_start = max(st.env[e].now + tr.device[g, DISPATCH_MS] + _crowd_ms(st, w, tr, e, k, HANDOVER), x.h2d_free)
    r.h2d_end = r.h2d_start + tr.h2d[g, s.model, s.b]
    if s.cold == 1:
        r.h2d_end += tr.load[g, s.model]
    x.h2d_free = r.h2d_end
    r.until = r.h2d_end
    r.phase = COPY_IN
    r.priority = s.priority
    if w.preempt[e, 0] > 0.0:
        r.work *= 1.0 + w.preempt[e, 2]
    for i in range(s.n):
        q = w.request[e, st.member[e, k, i].id]
        q.start = st.env[e].now
        q.batch = s.batch


@njit
def _take_first_turn(runs, k, turn):
    """The batch on stream k begins: on a shared core its turn comes first, which puts it half a turn ahead on average.

    Args:
        runs: (K,) records of one world. k: stream. turn: ms.
    """
    r = runs[k]
    n = 0
    for i in range(runs.shape[0]):
        n += runs[i].phase == EXECUTE and runs[i].core == r.core
    share = min(0.5 * turn, r.work) / n
    for i in range(runs.shape[0]):
        if i != k and runs[i].phase == EXECUTE and runs[i].core == r.core:
            runs[i].work += share
            r.work -= share


@inlined
def device_event(st, w, tr, e, g, t, kind):
    """What the scheduler does not see: a suspension, or the batch on stream ``kind`` is copied in or executed."""
    if kind >= 0:
        r = w.run[e, kind]
        if r.phase == COPY_IN:
            r.phase = EXECUTE
            if tr.device[g, SHARED_TURN_MS] > 0.0:
                _take_first_turn(w.run[e], kind, tr.device[g, SHARED_TURN_MS])
        else:
            x = w.env[e]
            r.exec_end = t
            r.phase = COPY_OUT
            r.until = max(t, x.d2h_free) + tr.d2h[g, r.mb // tr.solo.shape[2], r.mb % tr.solo.shape[2]]
            x.d2h_free = r.until
            r.until += tr.device[g, COMPLETION_MS] + _crowd_ms(st, w, tr, e, kind, SEEN)
    if w.preempt[e, 0] > 0.0:
        _suspend(w, e, t)
    _set_slowdowns(w, tr, e, g)
