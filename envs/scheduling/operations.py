"""Operations on the scheduling state, one per thing that can happen. Simulator and live engine call the same ones.

Each takes the state, the tables and the index e of the scheduler. Requests that end go to ``state.ended``, where the
caller (simulator or engine) collects them; a request enters that list exactly once.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling.candidates import action_of, available, candidate_of, has_room, n_high_of
from envs.scheduling.forecast import alone_ms, in_flight, invalidate_forecast, place, predict_finishes, solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.learning import N_QUANTILES, learn
from envs.scheduling.predictor import FINISH, STREAM, advance, choose_next_stream
from envs.scheduling.rates import note_met, note_offered
from envs.scheduling.state import CANCELLED, DROPPED, FAILED, HIGH, LATE, LOW, MET, N_FEATURES, P95

KNOWN_BATCHES = 8.0  # a profiled model counts as seen so often, so that first batches do not throw its bias


@njit
def clear(state, tables, env):
    """Empty scheduler e: no queues, no batches, time 0, the predictor back at its prior."""
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    own.now = 0.0
    own.wake = np.inf
    own.rate_high = 0.0
    own.rate_low = 0.0
    own.rate_time = 0.0
    own.met_high = 0.0
    own.met_low = 0.0
    own.met_time = 0.0
    own.next_batch = 0
    own.n_free = state.stream.shape[1]
    own.n_queued = 0
    own.n_ended = 0
    own.deferred = 0
    own.log_slowdown = 0.0
    invalidate_forecast(state, env)
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            state.queue[env, priority, model].head = 0
            state.queue[env, priority, model].length = 0
    cores = int(tables.device[group].cores)
    for stream in range(state.stream.shape[1]):
        state.stream[env, stream].busy = 0
        state.stream[env, stream].core_log_slowdown = 0.0
        state.stream[env, stream].core_slowdown = 1.0
        state.stream[env, stream].core = stream % cores if cores > 0 else stream
    choose_next_stream(state, env)
    state.count[env] = 0
    for f in range(N_FEATURES):
        state.weight[env, f] = tables.weight[group, f]
        for h in range(N_FEATURES):
            state.cov[env, f, h] = tables.cov[group, f, h]
    state.bias[env] = 0.0
    state.n_learned[env] = KNOWN_BATCHES
    state.n_calibrated[env] = 0.0
    for n in range(state.scale.shape[1]):
        for q in range(N_QUANTILES):
            state.scale[env, n, q] = tables.quantile[group, q]


@inlined
def _end(state, env, id_, arrival, priority, model, batch, outcome):
    own = state.scheduler[env]
    r = state.ended[env, own.n_ended]
    r.id = id_
    r.arrival = arrival
    r.outcome = outcome
    r.priority = priority
    r.model = model
    r.batch = batch
    own.n_ended += 1
    state.count[env, priority, outcome] += 1


@inlined
def refuse(state, env, t, priority, model, id_):
    """A request ends at time t without having been queued."""
    _end(state, env, id_, t, priority, model, -1, DROPPED)


@inlined
def head_deadline(state, env, priority, model):
    """Absolute deadline of the first request of queue (p, m); the queue must not be empty."""
    return state.entry[env, priority, model, state.queue[env, priority, model].head].deadline


@inlined
def enqueue(state, tables, env, t, priority, model, id_, deadline):
    """A request arrives at time t with an absolute deadline. Returns False, and drops it, when its queue is full."""
    note_offered(state, tables, env, t, priority, model)
    q = state.queue[env, priority, model]
    if q.length >= state.entry.shape[3]:
        refuse(state, env, t, priority, model, id_)
        return False
    r = state.entry[env, priority, model, place(state, env, priority, model, q.length)]
    r.id = id_
    r.arrival = t
    r.deadline = deadline
    q.length += 1
    state.scheduler[env].n_queued += 1
    return True


@inlined
def _pop(state, env, priority, model):
    q = state.queue[env, priority, model]
    q.length -= 1
    # An empty ring begins at its first place again: short queues stay within a few cache lines.
    q.head = place(state, env, priority, model, 1) if q.length > 0 else 0
    state.scheduler[env].n_queued -= 1


@inlined
def defer(state, tables, env, wake):
    """Dispatch nothing until the next event, or until time ``wake`` (ms; inf for no timer), whichever policy says so.

    The last line of defence against idling. The deferral ends at the latest when a queued request should start to be in time
    alone, by the 95 % quantile. If that time has come, the device is idle and the request can still be in time, it is not
    lost to a policy's caution: it is to be dispatched.

    Returns:
        The candidate to dispatch at once in place of the deferral; -1: none, the deferral stands.
    """
    own = state.scheduler[env]
    own.wake = wake
    own.deferred = 1
    if own.n_queued == 0 or not has_room(state, tables, env):
        return -1
    idle = in_flight(state, env) == 0
    caution = max(state.scale[env, 0, P95], 1.0)
    n_models = state.queue.shape[2]
    for priority in range(2):
        for model in range(n_models):
            length = available(state, tables, env, priority, model)
            if length < tables.size[0]:
                continue
            deadline = head_deadline(state, env, priority, model)
            slack = deadline - own.now
            alone = alone_ms(state, tables, env, model, 0)
            # Compared as it is set: a timer that rings at the time of a deferral must not end in the same one for ever.
            latest = deadline - caution * alone
            if latest > own.now:
                own.wake = min(own.wake, latest)
            elif idle and slack >= alone:
                size = 0
                for larger in range(1, tables.size.shape[0]):
                    # Not for the sake of low priority: a longer batch is a risk at this moment.
                    fits = tables.size[larger] <= state.queue[env, priority, model].length
                    if fits and alone_ms(state, tables, env, model, larger) <= slack:
                        size = larger
                own.wake = np.inf
                own.deferred = 0
                return action_of(tables, n_models, priority, model, size)
    return -1


@inlined
def _priority_of(batch, i):
    """Priority of the i-th request of a batch: those of high priority come first."""
    return HIGH if i < batch.n_high else LOW


@inlined
def dispatch(state, tables, env, action):
    """Start the candidate on the spare stream, at the time the state stands at. Returns the stream."""
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    priority, model, size = candidate_of(tables, state.queue.shape[2], action)
    n = predict_finishes(state, tables, env, model, size)
    stream = own.next_stream
    s = state.stream[env, stream]
    s.batch = own.next_batch
    s.start = own.now
    s.wait = own.cached_wait
    s.left = tables.solo[group, model, size]
    s.post = tables.d2h[group, model, size]
    s.solo = tables.solo[group, model, size]
    s.predicted = state.scratch[env, FINISH, n]
    # What was predicted with the candidate is now the outlook.
    state.scratch[env, STREAM, n] = stream
    for j in range(n + 1):
        state.stream[env, int(state.scratch[env, STREAM, j])].finish = own.now + state.scratch[env, FINISH, j]
    own.forecast_valid = 1
    own.cached_model = -1
    s.work = 0.0
    s.shared_work = 0.0
    s.join_cost = 0.0
    s.log_slowdown = own.log_slowdown
    s.busy = 1
    s.model = model
    s.priority = priority
    s.size_index = size
    s.n = tables.size[size]
    s.n_corunners = n
    s.deadline = np.inf
    for f in range(N_FEATURES):
        state.feature_sum[env, stream, f] = 0.0
    s.n_high = n_high_of(state, env, priority, model, s.n)
    for i in range(s.n):
        source = _priority_of(s, i)
        r = state.entry[env, source, model, state.queue[env, source, model].head]
        to = state.member[env, stream, i]
        to.id = r.id
        to.arrival = r.arrival
        to.deadline = r.deadline
        s.deadline = min(s.deadline, r.deadline)
        _pop(state, env, source, model)
    own.next_batch += 1
    own.n_free -= 1
    choose_next_stream(state, env)
    return stream


@inlined
def _release(state, env, stream):
    """Stream k is free again."""
    state.stream[env, stream].busy = 0
    invalidate_forecast(state, env)
    choose_next_stream(state, env)
    state.scheduler[env].n_free += 1


@njit
def complete(state, tables, env, t, stream, exec_ms):
    """The batch on stream k ended at time t after ``exec_ms`` of execution: its requests are met or late."""
    advance(state, tables, env, t)
    end_batch(state, tables, env, t, stream, exec_ms)


@inlined
def end_batch(state, tables, env, t, stream, exec_ms):
    """``complete`` for a caller that has moved the state on to time t."""
    s = state.stream[env, stream]
    met_high = 0
    met_low = 0
    for i in range(s.n):
        r = state.member[env, stream, i]
        met = t <= r.deadline
        if i < s.n_high:
            met_high += met
        else:
            met_low += met
        _end(state, env, r.id, r.arrival, _priority_of(s, i), s.model, s.batch, MET if met else LATE)
    note_met(state, tables, env, t, met_high, met_low)
    learn(state, tables, env, stream, exec_ms, t - s.start)
    _release(state, env, stream)


@njit
def fail(state, tables, env, t, stream):
    """The batch on stream k failed at time t; nothing is learned from it."""
    advance(state, tables, env, t)
    s = state.stream[env, stream]
    for i in range(s.n):
        r = state.member[env, stream, i]
        _end(state, env, r.id, r.arrival, _priority_of(s, i), s.model, s.batch, FAILED)
    _release(state, env, stream)


@njit
def cancel(state, env, priority, model, id_):
    """Take a queued request out of queue (p, m). Returns whether it was there (it may be in flight or ended)."""
    q = state.queue[env, priority, model]
    for i in range(q.length):
        r = state.entry[env, priority, model, place(state, env, priority, model, i)]
        if r.id == id_:
            _end(state, env, r.id, r.arrival, priority, model, -1, CANCELLED)
            for j in range(i, q.length - 1):
                state.entry[env, priority, model, place(state, env, priority, model, j)] = state.entry[
                    env, priority, model, place(state, env, priority, model, j + 1)
                ]
            q.length -= 1
            state.scheduler[env].n_queued -= 1
            return True
    return False


@inlined
def _drop_heads(state, env, priority, model, earliest):
    """Drop requests from the head of a queue as long as their deadline is before ``earliest``, ms; returns how many."""
    n = 0
    while state.queue[env, priority, model].length > 0 and head_deadline(state, env, priority, model) < earliest:
        r = state.entry[env, priority, model, state.queue[env, priority, model].head]
        _end(state, env, r.id, r.arrival, priority, model, -1, DROPPED)
        _pop(state, env, priority, model)
        n += 1
    return n


@inlined
def drop_unreachable(state, tables, env, scale):
    """Drop queued requests that cannot meet their deadline: even alone on the device, now, ``scale`` times solo.

    A ``scale`` above 1 gives requests up that other work would make late: on an idle device there is none, and 1 holds.
    Only heads are looked at, in FIFO order, so the cost is that of what is dropped. Returns the number dropped.
    """
    if scale > 1.0 and in_flight(state, env) == 0:
        scale = 1.0
    group = env % tables.solo.shape[0]
    now = state.scheduler[env].now
    n = 0
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            need = scale * solo_total(tables, group, model, 0)
            n += _drop_heads(state, env, priority, model, now + need)
    return n


@njit
def drop_late(state, env, grace):
    """Drop queued requests whose deadline passed more than ``grace`` ms ago; otherwise as ``drop_unreachable``."""
    n = 0
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            n += _drop_heads(state, env, priority, model, state.scheduler[env].now - grace)
    return n


@njit
def drop_all(state, env):
    """Drop everything queued (end of an episode, or a server that stops). Returns the number dropped."""
    n = 0
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            while state.queue[env, priority, model].length > 0:
                r = state.entry[env, priority, model, state.queue[env, priority, model].head]
                _end(state, env, r.id, r.arrival, priority, model, -1, DROPPED)
                _pop(state, env, priority, model)
                n += 1
    return n
