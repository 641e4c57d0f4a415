"""Clockwork-style: one batch at a time, the largest that still meets the earliest deadline, hopeless requests dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, earliest_deadline_queue
from envs.scheduling.forecast import in_flight
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class ClockworkParams:
    """Parameters.

    Attributes:
        margin: factor on solo latency when checking a deadline.
        in_flight: batches on the device at once (1 in the paper: execution alone is predictable).
        by_priority: whether high priority goes first (the paper knows no priority).
    """

    margin: float = 1.05
    in_flight: int = 1
    by_priority: bool = False


@njit
def choose(st, tb, mem, e, p):
    """Queue with the earliest deadline; its largest batch that meets that deadline alone on the device."""
    g = e % tb.solo.shape[0]
    if st.env[e].n_free == 0 or in_flight(st, e) >= p[1]:
        return defer_action(st, tb), np.inf
    high, high_deadline = earliest_deadline_queue(st, e, 0)
    low, low_deadline = earliest_deadline_queue(st, e, 1)
    if p[2] > 0.0:
        pr, m = (0, high) if high >= 0 else (1, low)
    else:
        pr, m = (0, high) if high_deadline <= low_deadline else (1, low)
    if m < 0:
        return defer_action(st, tb), np.inf
    deadline = high_deadline if pr == 0 else low_deadline
    length = st.queue[e, pr, m].length
    best = 0
    for b in range(tb.size.shape[0]):
        need = p[0] * (tb.h2d[g, m, b] + tb.solo[g, m, b] + tb.d2h[g, m, b])
        if tb.size[b] <= length and st.env[e].now + need <= deadline:
            best = b
    if tb.size[best] > length:
        return defer_action(st, tb), np.inf
    return action_of(tb, st.queue.shape[2], pr, m, best), np.inf


register(PolicyKind("clockwork", choose, ClockworkParams, "after Gujarati et al., Clockwork, OSDI 2020"))
