"""CORK, the adaptive batcher of BentoML: wait for company only while the wait costs less than what batching saves.

After the published description of BentoML's adaptive batching (docs.bentoml.com, "Adaptive batching") and its dispatcher,
named after TCP_CORK: batch duration is fitted online as ``a n + b`` for each model; n queued requests are held back
while ``n (time since the last arrival + a)``, what their wait costs together, is below a share of the fixed cost b that
a further request would save. Requests that wait too long are refused (here the drop of unreachable deadlines).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, largest_fit, note_left, observed_ms
from envs.scheduling.forecast import place
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of

MODELS = 8  # models that have a fit of their own in the 16 floats of memory; others share one


@dataclass(frozen=True)
class CorkParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        budget: share of the fixed cost that a queue may spend on waiting.
        rate: learning rate of the fit (normalised least mean squares).
        by_priority: whether high priority goes first (BentoML knows no priority).
    """

    max_batch: int = 8
    budget: float = 0.95
    rate: float = 0.05
    by_priority: bool = False


@njit
def _fit(st, tb, mem, e, rate):
    """Start each fit from the solo latencies, and move it with each batch that ended."""
    g = e % tb.solo.shape[0]
    last = tb.size.shape[0] - 1
    for m in range(min(st.queue.shape[2], MODELS)):
        if mem[e, 2 * m] == 0.0:
            span = max(tb.size[last] - tb.size[0], 1)
            mem[e, 2 * m] = max((tb.solo[g, m, last] - tb.solo[g, m, 0]) / span, 1e-6)
            mem[e, 2 * m + 1] = max(tb.solo[g, m, 0] - mem[e, 2 * m] * tb.size[0], 0.0)
    for k in range(st.stream.shape[1]):
        took = observed_ms(st, mem, e, k)
        if took < 0.0:
            continue
        s = st.stream[e, k]
        at = 2 * (s.model % MODELS)
        error = took - mem[e, at] * s.n - mem[e, at + 1]
        step = rate * error / (1.0 + s.n * s.n)
        mem[e, at] = max(mem[e, at] + step * s.n, 1e-6)
        mem[e, at + 1] = max(mem[e, at + 1] + step, 0.0)


@njit
def choose(st, tb, mem, e, p):
    """Of the queues that need not wait any more, the one whose oldest request arrived first."""
    env = st.env[e]
    n_models = st.queue.shape[2]
    _fit(st, tb, mem, e, p[2])
    wake = np.inf
    best_p, best_m = -1, -1
    best = np.inf
    for pr in range(2):
        for m in range(n_models):
            n = st.queue[e, pr, m].length
            if n == 0:
                continue
            at = 2 * (m % MODELS)
            newest = st.entry[e, pr, m, place(st, e, pr, m, n - 1)].arrival
            # The newest request may wait until n (now - newest + a) = budget b.
            until = newest + p[1] * mem[e, at + 1] / n - mem[e, at]
            if n < p[0] and until > env.now:
                wake = min(wake, until)
                continue
            arrival = st.entry[e, pr, m, st.queue[e, pr, m].head].arrival
            if arrival < best:
                best, best_p, best_m = arrival, pr, m
        if best_m >= 0 and p[3] > 0.0:
            break
    b = -1
    if best_m >= 0 and env.n_free > 0:
        b = largest_fit(st, tb, e, best_p, best_m, p[0])
    if b < 0:
        note_left(st, mem, e, 0)
        return defer_action(st, tb), wake
    note_left(st, mem, e, tb.size[b])
    return action_of(tb, n_models, best_p, best_m, b), np.inf


register(PolicyKind("cork", choose, CorkParams, "after BentoML's CORK dispatcher (adaptive batching)"))
