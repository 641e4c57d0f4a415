"""Clipper: batch size by additive increase and multiplicative decrease, against a latency objective.

After Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System" (NSDI 2017), section 4.3: each model has
its own queue and its own maximum batch size, which grows by a constant while batches end within the objective and shrinks
by 10 % when one does not. Blind to priority; nothing is dropped. Batches are dispatched without waiting, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import OWN_MEM, defer_action, in_flight_of, largest_fit, note_left, observed_ms
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_ARRIVAL


@dataclass(frozen=True)
class ClipperParams:
    """Parameters.

    Attributes:
        objective: latency objective of a batch, as a multiple of the model's solo latency at batch size 1.
        increase: added to a model's batch size after a full batch within the objective, in requests.
        decrease: factor on it after a batch beyond the objective.
        instances: batches of one model in flight at once.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    objective: float = 4.0
    increase: float = 0.5
    decrease: float = 0.9
    instances: int = 1
    mixed_batches: bool = False


OBJECTIVE, INCREASE, DECREASE, INSTANCES, MIXED_BATCHES = places(ClipperParams)


@njit
def choose(state, tables, memory, env, params):
    """Learn from the batches that ended, then dispatch the oldest request's queue up to the model's batch size."""
    own = state.scheduler[env]
    group = env % tables.solo.shape[0]
    n_models = state.queue.shape[2]
    most = tables.size[tables.size.shape[0] - 1]
    for stream in range(state.stream.shape[1]):
        took = observed_ms(state, memory, env, stream)
        if took < 0.0:
            continue
        s = state.stream[env, stream]
        limit = max(memory[env, s.model % OWN_MEM], 1.0)
        if took > params[OBJECTIVE] * solo_total(tables, group, s.model, 0):
            limit *= params[DECREASE]
        elif s.n >= tables.size[0] and 2.0 * s.n > limit:
            # Batches come in the profile's sizes: one of more than half the limit counts as full.
            limit += params[INCREASE]
        memory[env, s.model % OWN_MEM] = min(max(limit, 1.0), most)
    best_p, best_m = -1, -1
    best = np.inf
    for priority in range(2):
        for model in range(n_models):
            q = state.queue[env, priority, model]
            if q.length == 0 or in_flight_of(state, env, model) >= params[INSTANCES]:
                continue
            arrival = state.entry[env, priority, model, q.head].arrival
            if arrival < best:
                best, best_p, best_m = arrival, priority, model
    size = -1
    if best_m >= 0 and own.n_free > 0:
        limit = max(memory[env, best_m % OWN_MEM], tables.size[0])
        size = largest_fit(state, tables, env, best_p, best_m, limit, params[MIXED_BATCHES])
    if size < 0:
        note_left(state, memory, env, 0)
        return defer_action(state, tables), np.inf
    note_left(state, memory, env, tables.size[size])
    return action_of(tables, n_models, best_p, best_m, size), np.inf


KIND = PolicyKind(
    "clipper", choose, ClipperParams, "after Crankshaw et al., Clipper, NSDI 2017", drop=False, order=BY_ARRIVAL
)
