"""First in, first out, blind to priority and deadline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, largest_fit
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class FifoParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
    """

    max_batch: int = 8


@njit
def choose(st, tb, mem, e, p):
    """Dispatch from the queue whose head arrived first, as many as wait."""
    n_models = st.queue.shape[2]
    best_p, best_m = -1, -1
    best = np.inf
    for pr in range(2):
        for m in range(n_models):
            q = st.queue[e, pr, m]
            if q.length > 0:
                arrival = st.entry[e, pr, m, q.head].arrival
                if arrival < best:
                    best = arrival
                    best_p, best_m = pr, m
    if best_m < 0 or st.env[e].n_free == 0:
        return defer_action(st, tb), np.inf
    b = largest_fit(st, tb, e, best_p, best_m, p[0])
    if b < 0:
        return defer_action(st, tb), np.inf
    return action_of(tb, n_models, best_p, best_m, b), np.inf


register(PolicyKind("fifo", choose, FifoParams, "folklore; what a plain inference server does", drop=False))
