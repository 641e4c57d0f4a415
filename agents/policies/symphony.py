"""Symphony: deferred batching, wait until the batch could not grow any more without missing its deadline.

After Chen et al., "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling" (arXiv 2308.07470): for each
queue the candidate batch is the largest that meets its head's deadline; it becomes ready at "frontrun", the time after
which a batch of the next size would end too late, or when it is the largest size; of the ready ones the one with the
least latest start goes first. Blind to priority.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, largest_in_time, room
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import in_flight, solo_total
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_DEADLINE


@dataclass(frozen=True)
class SymphonyParams:
    """Parameters.

    Attributes:
        margin: factor on solo latencies.
        in_flight: batches on the device at once.
        defer: share of the deferral that is used: 0 dispatches at once, 1 waits for frontrun.
        by_priority: whether ready high-priority batches go first (the paper knows no priority).
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    margin: float = 1.5
    in_flight: int = 2
    defer: float = 1.0
    by_priority: bool = False
    mixed_batches: bool = False


MARGIN, IN_FLIGHT, DEFER, BY_PRIORITY, MIXED_BATCHES = places(SymphonyParams)


@njit
def choose(state, tables, memory, env, params):
    """Of the ready candidate batches the most urgent; wakes at the next frontrun."""
    own = state.scheduler[env]
    n_models = state.queue.shape[2]
    if own.n_free == 0 or in_flight(state, env) >= params[IN_FLIGHT]:
        return defer_action(state, tables), np.inf
    group = env % tables.solo.shape[0]
    last = tables.size.shape[0] - 1
    wake = np.inf
    best = np.inf
    action = defer_action(state, tables)
    for priority in range(2):
        for model in range(n_models):
            q = state.queue[env, priority, model]
            length = room(state, tables, env, priority, model, params[MIXED_BATCHES])
            if length < tables.size[0]:
                continue
            head = state.entry[env, priority, model, q.head]
            size = largest_in_time(state, tables, env, priority, model, params[MARGIN], params[MIXED_BATCHES])
            if size < last and tables.size[size + 1] > length:
                frontrun = head.deadline - params[MARGIN] * solo_total(tables, group, model, size + 1)
                ready = head.arrival + params[DEFER] * (frontrun - head.arrival)
                if ready > own.now:
                    wake = min(wake, ready)
                    continue
            latest = head.deadline - params[MARGIN] * solo_total(tables, group, model, size)
            if latest < best:
                best = latest
                action = action_of(tables, n_models, priority, model, size)
        if params[BY_PRIORITY] > 0.0 and best < np.inf:
            break
    return action, wake if best == np.inf else np.inf


KIND = PolicyKind(
    "symphony", choose, SymphonyParams, "after Chen et al., Symphony, arXiv 2308.07470", order=BY_DEADLINE
)
