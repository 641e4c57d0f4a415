"""Clipper: batch size by additive increase and multiplicative decrease, against a latency objective.

After Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System" (NSDI 2017), section 4.3: each model has
its own queue and its own maximum batch size, which grows by a constant while batches end within the objective and shrinks
by 10 % when one does not. Blind to priority; nothing is dropped. Batches are dispatched without waiting, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import OWN_MEM, defer_action, in_flight_of, largest_fit, note_left, observed_ms, solo_total
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class ClipperParams:
    """Parameters.

    Attributes:
        objective: latency objective of a batch, as a multiple of the model's solo latency at batch size 1.
        increase: added to a model's batch size after a full batch within the objective, in requests.
        decrease: factor on it after a batch beyond the objective.
        instances: batches of one model in flight at once.
    """

    objective: float = 4.0
    increase: float = 0.5
    decrease: float = 0.9
    instances: int = 1


@njit
def choose(st, tb, mem, e, p):
    """Learn from the batches that ended, then dispatch the oldest request's queue up to the model's batch size."""
    env = st.env[e]
    g = e % tb.solo.shape[0]
    n_models = st.queue.shape[2]
    most = tb.size[tb.size.shape[0] - 1]
    for k in range(st.stream.shape[1]):
        took = observed_ms(st, mem, e, k)
        if took < 0.0:
            continue
        s = st.stream[e, k]
        limit = max(mem[e, s.model % OWN_MEM], 1.0)
        if took > p[0] * solo_total(tb, g, s.model, 0):
            limit *= p[2]
        elif s.n >= tb.size[0] and 2.0 * s.n > limit:
            # Batches come in the profile's sizes: one of more than half the limit counts as full.
            limit += p[1]
        mem[e, s.model % OWN_MEM] = min(max(limit, 1.0), most)
    best_p, best_m = -1, -1
    best = np.inf
    for pr in range(2):
        for m in range(n_models):
            q = st.queue[e, pr, m]
            if q.length == 0 or in_flight_of(st, e, m) >= p[3]:
                continue
            arrival = st.entry[e, pr, m, q.head].arrival
            if arrival < best:
                best, best_p, best_m = arrival, pr, m
    b = -1
    if best_m >= 0 and env.n_free > 0:
        b = largest_fit(st, tb, e, best_p, best_m, max(mem[e, best_m % OWN_MEM], tb.size[0]))
    if b < 0:
        note_left(st, mem, e, 0)
        return defer_action(st, tb), np.inf
    note_left(st, mem, e, tb.size[b])
    return action_of(tb, n_models, best_p, best_m, b), np.inf


register(PolicyKind("clipper", choose, ClipperParams, "after Crankshaw et al., Clipper, NSDI 2017", drop=False))
