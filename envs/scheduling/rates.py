"""What was offered and what was met of late: exponential averages, on the device's own time scale."""

from __future__ import annotations

import math

from envs.scheduling.jit import inlined
from envs.scheduling.state import HIGH

LEAST_DEFERRAL_MS = 0.5  # shorter ones would keep a processor busy with timers where models take microseconds
WINDOW = 20.0  # mean solo latencies that the averages reach back


@inlined
def window_ms(tables, group):
    """Time constant of the averaged rates."""
    return WINDOW * tables.device[group].unit_ms


@inlined
def deferral_ms(tables, group, defer):
    """How long a deferral of ``defer`` mean solo latencies lasts, if no event ends it before."""
    return max(defer * tables.device[group].unit_ms, LEAST_DEFERRAL_MS)


@inlined
def note_offered(state, tables, env, t, priority, model):
    """A request arrives at time t (ms)."""
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    window = window_ms(tables, group)
    decay = math.exp(-(t - own.rate_time) / window)
    own.rate_time = t
    own.rate_high *= decay
    own.rate_low *= decay
    offered = tables.solo[group, model, 0] / window
    if priority == HIGH:
        own.rate_high += offered
    else:
        own.rate_low += offered


@inlined
def offered_rates(state, tables, env):
    """Offered work of late, ms of solo execution per ms: (high, low)."""
    own = state.scheduler[env]
    decay = math.exp(-(own.now - own.rate_time) / window_ms(tables, env % tables.solo.shape[0]))
    return own.rate_high * decay, own.rate_low * decay


@inlined
def note_met(state, tables, env, t, n_high, n_low):
    """A batch ended at time t (ms) with so many requests of high and low priority in time."""
    own = state.scheduler[env]
    window = window_ms(tables, env % tables.solo.shape[0])
    decay = math.exp(-(t - own.met_time) / window)
    own.met_time = t
    own.met_high = own.met_high * decay + n_high / window
    own.met_low = own.met_low * decay + n_low / window


@inlined
def earned_per_ms(state, tables, env, high_weight):
    """Value of the requests met per ms of late, a low-priority one being 1."""
    own = state.scheduler[env]
    window = window_ms(tables, env % tables.solo.shape[0])
    average = (high_weight * own.met_high + own.met_low) * math.exp(-(own.now - own.met_time) / window)
    return average / max(1.0 - math.exp(-own.now / window), 0.05)  # less than a window has passed at the start
