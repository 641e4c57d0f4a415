"""Triton's dynamic batcher: each model on its own, priority levels within a model, a bounded wait for fuller batches.

From the description of NVIDIA Triton Inference Server, "Dynamic Batcher" in its model configuration guide: a model's
scheduler sends a batch as soon as it reaches the preferred size, or when its oldest request has waited for
``max_queue_delay_microseconds``; within a model, higher priority levels go first, and lower ones fill the batch up; an
instance group of a model holds so many batches at once. Models do not know of each other: whichever became ready first takes
a free stream. Requests whose timeout passed in the queue are rejected (here the simulator's or engine's drop, since clients
set it to the deadline).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, in_flight_of, largest_fit, room
from envs.scheduling.candidates import action_of
from envs.scheduling.jit import njit
from envs.scheduling.state import LOW


@dataclass(frozen=True)
class TritonParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        preferred: preferred batch size in requests: a queue that holds so many does not wait.
        max_delay: longest wait of the oldest request for a preferred batch, in ms.
        instances: batches of one model in flight at once.
        levels: whether priority levels are used within a model; without, its priorities are two queues and never share a batch.
    """

    max_batch: int = 8
    preferred: int = 4
    max_delay: float = 1.0
    instances: int = 1
    levels: bool = True


MAX_BATCH, PREFERRED, MAX_DELAY, INSTANCES, LEVELS = places(TritonParams)


@njit
def choose(state, tables, memory, env, params):
    """Of the models that are ready, the one whose oldest request arrived first."""
    own = state.scheduler[env]
    n_models = state.queue.shape[2]
    wake = np.inf
    if own.n_free == 0:
        return defer_action(state, tables), wake
    best_p, best_m = -1, -1
    best = np.inf
    for model in range(n_models):
        if in_flight_of(state, env, model) >= params[INSTANCES]:
            continue
        for priority in range(2):
            q = state.queue[env, priority, model]
            if q.length == 0:
                continue
            arrival = state.entry[env, priority, model, q.head].arrival
            held = room(state, tables, env, priority, model, params[LEVELS])
            if held > q.length:  # low priority that the batch takes along has waited, too
                arrival = min(arrival, state.entry[env, LOW, model, state.queue[env, LOW, model].head].arrival)
            if held < params[PREFERRED] and arrival + params[MAX_DELAY] > own.now:
                wake = min(wake, arrival + params[MAX_DELAY])
            elif arrival < best:
                best, best_p, best_m = arrival, priority, model
            if params[LEVELS] > 0.0:
                break
    if best_m < 0:
        return defer_action(state, tables), wake
    size = largest_fit(state, tables, env, best_p, best_m, params[MAX_BATCH], params[LEVELS])
    if size < 0:
        return defer_action(state, tables), wake
    return action_of(tables, n_models, best_p, best_m, size), np.inf


KIND = PolicyKind("triton", choose, TritonParams, "NVIDIA Triton Inference Server, model configuration guide")
