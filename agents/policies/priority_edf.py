"""Static priority, earliest deadline first within it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, earliest_deadline_queue, held_by_low, largest_fit
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class PriorityEdfParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        low_streams: streams that low priority may hold at once; the others are kept free for high priority.
    """

    max_batch: int = 8
    low_streams: int = 64


@njit
def choose(st, tb, mem, e, p):
    """High priority first; low priority only when no high-priority request waits."""
    if st.env[e].n_free == 0:
        return defer_action(st, tb), np.inf
    for pr in range(2):
        m, _ = earliest_deadline_queue(st, e, pr)
        if m < 0:
            continue
        if pr == 1 and held_by_low(st, e) >= p[1]:
            continue
        b = largest_fit(st, tb, e, pr, m, p[0])
        if b >= 0:
            return action_of(tb, st.queue.shape[2], pr, m, b), np.inf
    return defer_action(st, tb), np.inf


register(PolicyKind("priority-edf", choose, PriorityEdfParams, "static priority with EDF within each level"))
