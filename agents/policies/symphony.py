"""Symphony: deferred batching, wait until the batch could not grow any more without missing its deadline.

After Chen et al., "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling" (arXiv 2308.07470): for each
queue the candidate batch is the largest that meets its head's deadline; it becomes ready at "frontrun", the time after
which a batch of the next size would end too late, or when it is the largest size; of the ready ones the one with the
least latest start goes first. Blind to priority.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, solo_total
from envs.scheduling.forecast import in_flight
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class SymphonyParams:
    """Parameters.

    Attributes:
        margin: factor on solo latencies.
        in_flight: batches on the device at once.
        defer: share of the deferral that is used: 0 dispatches at once, 1 waits for frontrun.
        by_priority: whether ready high-priority batches go first (the paper knows no priority).
    """

    margin: float = 1.5
    in_flight: int = 2
    defer: float = 1.0
    by_priority: bool = False


@njit
def choose(st, tb, mem, e, p):
    """Of the ready candidate batches the most urgent; wakes at the next frontrun."""
    env = st.env[e]
    n_models = st.queue.shape[2]
    if env.n_free == 0 or in_flight(st, e) >= p[1]:
        return defer_action(st, tb), np.inf
    g = e % tb.solo.shape[0]
    last = tb.size.shape[0] - 1
    wake = np.inf
    best = np.inf
    action = defer_action(st, tb)
    for pr in range(2):
        for m in range(n_models):
            q = st.queue[e, pr, m]
            if q.length < tb.size[0]:
                continue
            head = st.entry[e, pr, m, q.head]
            b = 0
            for i in range(tb.size.shape[0]):
                if tb.size[i] <= q.length and env.now + p[0] * solo_total(tb, g, m, i) <= head.deadline:
                    b = i
            if b < last and tb.size[b + 1] > q.length:
                frontrun = head.deadline - p[0] * solo_total(tb, g, m, b + 1)
                ready = head.arrival + p[2] * (frontrun - head.arrival)
                if ready > env.now:
                    wake = min(wake, ready)
                    continue
            latest = head.deadline - p[0] * solo_total(tb, g, m, b)
            if latest < best:
                best = latest
                action = action_of(tb, n_models, pr, m, b)
        if p[3] > 0.0 and best < np.inf:
            break
    return action, wake if best == np.inf else np.inf


register(PolicyKind("symphony", choose, SymphonyParams, "after Chen et al., Symphony, arXiv 2308.07470"))
