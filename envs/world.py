"""The simulated truth: what the device really does with the batches that the scheduler dispatches.

Copies go through one FIFO engine a direction. Executing batches progress at rate ``1 / (slowdown * noise)``; the slowdown
of a batch depends on how many share its core and on who executes on the others (``count`` and ``pair``, fitted offline to
measurements), and changes whenever the set of executing batches changes; the device as a whole drifts. The scheduler's
predictor (envs.predictor) never reads any of this.

One call moves one world on by one event; ``run_to_decision`` repeats that until the scheduler has something to decide.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs import rng
from envs.jit import inlined, njit
from envs.predictor import advance
from envs.scheduler import can_dispatch, clear, defer, dispatch, drop_all, drop_unreachable, end_batch, enqueue, valid
from envs.state import HIGH, MET, WAITING, records

IDLE, COPY_IN, EXECUTE, COPY_OUT, SUSPENDED = range(5)
NOISE, DRIFT, CROWD = (
    1,
    2,
    3,
)  # counters of the derived seeds that noise, drift and waits on shared cores are drawn from
HANDOVER, SEEN = range(2)  # what waits: a dispatched batch for its thread, the end of a batch for the scheduler

world_t = np.dtype(
    [
        ("seed", "u8"),  # of this episode
        ("episode", "i8"),  # episodes begun
        ("time", "f8"),  # time up to which progress is accounted
        ("h2d_free", "f8"),  # when the copy engine to the device is free
        ("d2h_free", "f8"),
        ("end", "f8"),  # no dispatch after this time: what is queued then is dropped
        ("next", "i4"),  # next arrival
        ("n", "i4"),  # arrivals in this episode
        ("done", "i4"),
        ("reward", "f8"),  # collected since the last decision
        ("ret", "f8"),  # undiscounted return of the episode
        ("steps", "i8"),  # decisions in this episode
        ("suspend", "f8"),  # when low priority will be suspended; inf when nothing is under way
        ("knot", "i8"),  # knots of the drift between which the present lies, -1 for none yet; and its values there
        ("drift_a", "f8"),
        ("drift_b", "f8"),
        ("suspending", "i4"),  # 1 while low priority may not execute
    ],
    align=True,
)
run_t = np.dtype(
    [
        ("until", "f8"),  # end of the copy under way
        ("work", "f8"),  # execution left, ms alone on the device
        ("noise", "f8"),  # factor on this batch's execution time
        ("slow", "f8"),  # slowdown in force
        ("h2d_start", "f8"),
        ("h2d_end", "f8"),
        ("exec_end", "f8"),
        ("phase", "i4"),
        ("mb", "i4"),  # model * B + size index
        ("priority", "i4"),
        ("core", "i4"),
        ("sharing", "i4"),  # batches that execute on this core
    ],
    align=True,
)
request_t = np.dtype(
    [
        ("arrival", "f8"),
        ("deadline", "f8"),  # absolute
        ("start", "f8"),  # dispatch; nan if never
        ("finish", "f8"),  # when it ended, however it ended
        ("model", "i4"),
        ("priority", "i4"),
        ("outcome", "i4"),
        ("batch", "i4"),  # -1 if never dispatched
        ("baseline", "i4"),  # 1 where its violation is taken for granted: the reward then counts it as nothing
    ],
    align=True,
)


class Truth(NamedTuple):
    """What the device really does, the same for all worlds of a batch or one per world (leading axis G is 1 or N).

    Attributes:
        solo: (G, M, B) mean execution time alone. h2d: (G, M, B) copy in. d2h: (G, M, B) copy back. In ms.
        load: (G, M) time to load a model's weights, ms.
        count: (G, K + 1) slowdown by number of batches that execute on one core (index 0 unused, index 1 is 1).
        pair: (G, M * B, M * B) log of the factor by which a co-runner on another core (column) slows a batch (row); a
            co-runner that has its core for a share of the time counts with that share.
        residual: (G, R) measured over fitted execution time; each batch draws one.
        device: (G, 10): dispatch cost ms, straggler probability, straggler factor, standard deviation of the drift (of the
            log of execution times), time between its knots in ms, weight of high priority in the reward, weight of low
            priority, time from a batch's end until the scheduler sees it in ms, by how much a timer rings late in ms, and the
            length of a turn on a shared core in ms (0: it is shared evenly).
        crowded: (G, 2, 2) mean of what the hand-over of a batch and the sight of its end (rows HANDOVER and SEEN) take longer
            while batches share another core, and while they share its own (columns), ms.
        speed: (G, S) log of the factor on execution times at the knots of the drift, as it was measured: it takes the place
            of the drift that is drawn, and stays at its last value; S = 0: there is none.
    """

    solo: np.ndarray
    h2d: np.ndarray
    d2h: np.ndarray
    load: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    pair: np.ndarray
    residual: np.ndarray
    device: np.ndarray
    crowded: np.ndarray
    speed: np.ndarray


class World(NamedTuple):
    """State of N simulated worlds beside their ``SchedState``.

    Attributes:
        env: (N,) records. run: (N, K) records, the true state of each stream. request: (N, R) records.
        options: (N, 3): drop scale (a queued request is dropped when even this many times its solo latency is too late; 0
            never drops), deferral timer ms, time after the last arrival until what is queued is dropped, ms.
        preempt: (N, 4) software preemption: 1 where low-priority batches are suspended while a high-priority one executes
            (else 0), ms until a suspension takes effect, share by which it lengthens every execution, and execution that
            a resumed batch does again, ms.
    """

    env: np.ndarray
    run: np.ndarray
    request: np.ndarray
    options: np.ndarray
    preempt: np.ndarray


def make_world(n: int, n_streams: int, n_requests: int) -> World:
    """Allocate n worlds with room for ``n_requests`` arrivals an episode each."""
    options = np.zeros((n, 3))
    options[:, 1] = 2.0
    options[:, 2] = 2000.0
    run = records((n, n_streams), run_t)
    return World(records((n,), world_t), run, records((n, n_requests), request_t), options, np.zeros((n, 4)))


@njit
def begin(st, w, tb, e, seed):
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
def _drift(w, tr, e, g):
    """Factor on execution times now: between knots that were measured or are hashed from the episode's seed."""
    spread = tr.device[g, 3]
    last = tr.speed.shape[1] - 1
    if spread == 0.0 and last < 0:
        return 1.0
    x = w.env[e]
    at = x.time / tr.device[g, 4]
    knot = int(at)
    if last >= 0:
        here = tr.speed[g, min(knot, last)]
        return math.exp(here + (at - knot) * (tr.speed[g, min(knot + 1, last)] - here))
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
    drift = _drift(w, tr, e, g)
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
        r.slow = max(math.exp(log_slow), 1.0) * tr.count[g, r.sharing] * r.noise * drift


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
def _progress(w, e, t):
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
    if rng.uniform(seed, 2 * first + 1) < tr.device[g, 1]:
        r.noise *= tr.device[g, 2]
    r.mb = s.model * n_sizes + s.b
    r.work = tr.solo[g, s.model, s.b]
    r.core = s.core
    r.h2d_start = max(st.env[e].now + tr.device[g, 0] + _crowd_ms(st, w, tr, e, k, HANDOVER), x.h2d_free)
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
        x.reward -= tr.device[g, 5 + d.priority] * (violated - r.baseline)
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
def _device_event(st, w, tr, e, g, t, kind):
    """What the scheduler does not see: a suspension, or the batch on stream ``kind`` is copied in or executed."""
    if kind >= 0:
        r = w.run[e, kind]
        if r.phase == COPY_IN:
            r.phase = EXECUTE
            if tr.device[g, 9] > 0.0:
                _take_first_turn(w.run[e], kind, tr.device[g, 9])
        else:
            x = w.env[e]
            r.exec_end = t
            r.phase = COPY_OUT
            r.until = max(t, x.d2h_free) + tr.d2h[g, r.mb // tr.solo.shape[2], r.mb % tr.solo.shape[2]]
            x.d2h_free = r.until
            r.until += tr.device[g, 7] + _crowd_ms(st, w, tr, e, kind, SEEN)
    if w.preempt[e, 0] > 0.0:
        _suspend(w, e, t)
    _set_slowdowns(w, tr, e, g)


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
        _progress(w, e, t)
        _device_event(st, w, tr, e, g, t, kind)
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
    _progress(w, e, t)
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
        defer(st, e, wake + tr.device[g, 8])


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
