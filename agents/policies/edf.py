"""Earliest deadline first, blind to priority (Liu and Layland, 1973)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, earliest_deadline_queue, largest_fit
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class EdfParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
    """

    max_batch: int = 8


@njit
def choose(st, tb, mem, e, p):
    """Dispatch from the queue whose head has the earliest deadline, as many as wait."""
    high, high_deadline = earliest_deadline_queue(st, e, 0)
    low, low_deadline = earliest_deadline_queue(st, e, 1)
    pr, m = (0, high) if high_deadline <= low_deadline else (1, low)
    if m < 0 or st.env[e].n_free == 0:
        return defer_action(st, tb), np.inf
    b = largest_fit(st, tb, e, pr, m, p[0])
    if b < 0:
        return defer_action(st, tb), np.inf
    return action_of(tb, st.queue.shape[2], pr, m, b), np.inf


register(PolicyKind("edf", choose, EdfParams, "Liu and Layland, JACM 1973"))
