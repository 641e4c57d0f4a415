"""Earliest deadline first, blind to priority (Liu and Layland, 1973)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, earliest_deadline_queue, largest_batch
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_DEADLINE


@dataclass(frozen=True)
class EdfParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    max_batch: int = 8
    mixed_batches: bool = False


MAX_BATCH, MIXED_BATCHES = places(EdfParams)


@njit
def choose(state, tables, memory, env, params):
    """Dispatch from the queue whose head has the earliest deadline, as many as wait."""
    high, high_deadline = earliest_deadline_queue(state, env, 0)
    low, low_deadline = earliest_deadline_queue(state, env, 1)
    priority, model = (0, high) if high_deadline <= low_deadline else (1, low)
    if model < 0 or state.scheduler[env].n_free == 0:
        return defer_action(state, tables), np.inf
    return largest_batch(state, tables, env, priority, model, params[MAX_BATCH], params[MIXED_BATCHES])


KIND = PolicyKind("edf", choose, EdfParams, "Liu and Layland, JACM 1973", order=BY_DEADLINE)
