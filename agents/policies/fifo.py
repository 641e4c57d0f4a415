"""First in, first out, blind to priority and deadline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, largest_batch
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_ARRIVAL


@dataclass(frozen=True)
class FifoParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    max_batch: int = 8
    mixed_batches: bool = False


MAX_BATCH, MIXED_BATCHES = places(FifoParams)


@njit
def choose(state, tables, memory, env, params):
    """Dispatch from the queue whose head arrived first, as many as wait."""
    best_p, best_m = -1, -1
    best = np.inf
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            q = state.queue[env, priority, model]
            if q.length > 0:
                arrival = state.entry[env, priority, model, q.head].arrival
                if arrival < best:
                    best, best_p, best_m = arrival, priority, model
    if best_m < 0 or state.scheduler[env].n_free == 0:
        return defer_action(state, tables), np.inf
    return largest_batch(state, tables, env, best_p, best_m, params[MAX_BATCH], params[MIXED_BATCHES])


KIND = PolicyKind(
    "fifo", choose, FifoParams, "folklore; what a plain inference server does", drop=False, order=BY_ARRIVAL
)
