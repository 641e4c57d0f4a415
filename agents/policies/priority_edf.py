"""Static priority, earliest deadline first within it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, earliest_deadline_queue, held_by_low, largest_fit
from envs.scheduling.candidates import action_of
from envs.scheduling.jit import njit


@dataclass(frozen=True)
class PriorityEdfParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        low_streams: streams that low priority may hold at once; the others are kept free for high priority.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    max_batch: int = 8
    low_streams: int = 64
    mixed_batches: bool = False


MAX_BATCH, LOW_STREAMS, MIXED_BATCHES = places(PriorityEdfParams)


@njit
def choose(state, tables, memory, env, params):
    """High priority first; low priority only when no high-priority request waits."""
    if state.scheduler[env].n_free == 0:
        return defer_action(state, tables), np.inf
    for priority in range(2):
        model, _ = earliest_deadline_queue(state, env, priority)
        if model < 0:
            continue
        if priority == 1 and held_by_low(state, env) >= params[LOW_STREAMS]:
            continue
        size = largest_fit(state, tables, env, priority, model, params[MAX_BATCH], params[MIXED_BATCHES])
        if size >= 0:
            return action_of(tables, state.queue.shape[2], priority, model, size), np.inf
    return defer_action(state, tables), np.inf


KIND = PolicyKind("priority-edf", choose, PriorityEdfParams, "static priority with EDF within each level")
