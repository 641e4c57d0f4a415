"""Clockwork-style: one batch at a time, the largest that still meets the earliest deadline, hopeless requests dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, earliest_deadline_queue, largest_in_time, room
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import in_flight
from envs.scheduling.jit import njit


@dataclass(frozen=True)
class ClockworkParams:
    """Parameters.

    Attributes:
        margin: factor on solo latency when checking a deadline.
        in_flight: batches on the device at once (1 in the paper: execution alone is predictable).
        by_priority: whether high priority goes first (the paper knows no priority).
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    margin: float = 1.05
    in_flight: int = 1
    by_priority: bool = False
    mixed_batches: bool = False


MARGIN, IN_FLIGHT, BY_PRIORITY, MIXED_BATCHES = places(ClockworkParams)


@njit
def choose(state, tables, memory, env, params):
    """Queue with the earliest deadline; its largest batch that meets that deadline alone on the device."""
    if state.scheduler[env].n_free == 0 or in_flight(state, env) >= params[IN_FLIGHT]:
        return defer_action(state, tables), np.inf
    high, high_deadline = earliest_deadline_queue(state, env, 0)
    low, low_deadline = earliest_deadline_queue(state, env, 1)
    if params[BY_PRIORITY] > 0.0:
        priority, model = (0, high) if high >= 0 else (1, low)
    else:
        priority, model = (0, high) if high_deadline <= low_deadline else (1, low)
    if model < 0:
        return defer_action(state, tables), np.inf
    size = largest_in_time(state, tables, env, priority, model, params[MARGIN], params[MIXED_BATCHES])
    if tables.size[size] > room(state, tables, env, priority, model, params[MIXED_BATCHES]):
        return defer_action(state, tables), np.inf
    return action_of(tables, state.queue.shape[2], priority, model, size), np.inf


KIND = PolicyKind("clockwork", choose, ClockworkParams, "after Gujarati et al., Clockwork, OSDI 2020")
