"""CORK, the adaptive batcher of BentoML: wait for company only while the wait costs less than what batching saves.

After the published description of BentoML's adaptive batching (docs.bentoml.com, "Adaptive batching") and its dispatcher,
named after TCP_CORK: batch duration is fitted online as ``a n + b`` for each model; n queued requests are held back
while ``n (time since the last arrival + a)``, what their wait costs together, is below a share of the fixed cost b that
a further request would save. Requests that wait too long are refused (here the drop of unreachable deadlines).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, largest_fit, note_left, observed_ms, room
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import place
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_DEADLINE

MODELS = 8  # models that have a fit of their own in the 16 floats of memory; others share one


@dataclass(frozen=True)
class CorkParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        budget: share of the fixed cost that a queue may spend on waiting.
        rate: learning rate of the fit (normalised least mean squares).
        by_priority: whether high priority goes first (BentoML knows no priority).
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    max_batch: int = 8
    budget: float = 0.95
    rate: float = 0.05
    by_priority: bool = False
    mixed_batches: bool = False


MAX_BATCH, BUDGET, RATE, BY_PRIORITY, MIXED_BATCHES = places(CorkParams)


@njit
def _fit(state, tables, memory, env, rate):
    """Start each fit from the solo latencies, and move it with each batch that ended."""
    group = env % tables.solo.shape[0]
    last = tables.size.shape[0] - 1
    for model in range(min(state.queue.shape[2], MODELS)):
        if memory[env, 2 * model] == 0.0:
            span = max(tables.size[last] - tables.size[0], 1)
            memory[env, 2 * model] = max((tables.solo[group, model, last] - tables.solo[group, model, 0]) / span, 1e-6)
            memory[env, 2 * model + 1] = max(
                tables.solo[group, model, 0] - memory[env, 2 * model] * tables.size[0], 0.0
            )
    for stream in range(state.stream.shape[1]):
        took = observed_ms(state, memory, env, stream)
        if took < 0.0:
            continue
        s = state.stream[env, stream]
        at = 2 * (s.model % MODELS)
        error = took - memory[env, at] * s.n - memory[env, at + 1]
        step = rate * error / (1.0 + s.n * s.n)
        memory[env, at] = max(memory[env, at] + step * s.n, 1e-6)
        memory[env, at + 1] = max(memory[env, at + 1] + step, 0.0)


@njit
def choose(state, tables, memory, env, params):
    """Of the queues that need not wait any more, the one whose oldest request arrived first."""
    own = state.scheduler[env]
    n_models = state.queue.shape[2]
    _fit(state, tables, memory, env, params[RATE])
    wake = np.inf
    best_p, best_m = -1, -1
    best = np.inf
    for priority in range(2):
        for model in range(n_models):
            n = state.queue[env, priority, model].length
            if n == 0:
                continue
            at = 2 * (model % MODELS)
            newest = state.entry[env, priority, model, place(state, env, priority, model, n - 1)].arrival
            # The newest request may wait until n (now - newest + a) = budget b.
            until = newest + params[BUDGET] * memory[env, at + 1] / n - memory[env, at]
            held = room(state, tables, env, priority, model, params[MIXED_BATCHES])
            if held < params[MAX_BATCH] and until > own.now:
                wake = min(wake, until)
                continue
            arrival = state.entry[env, priority, model, state.queue[env, priority, model].head].arrival
            if arrival < best:
                best, best_p, best_m = arrival, priority, model
        if best_m >= 0 and params[BY_PRIORITY] > 0.0:
            break
    size = -1
    if best_m >= 0 and own.n_free > 0:
        size = largest_fit(state, tables, env, best_p, best_m, params[MAX_BATCH], params[MIXED_BATCHES])
    if size < 0:
        note_left(state, memory, env, 0)
        return defer_action(state, tables), wake
    note_left(state, memory, env, tables.size[size])
    return action_of(tables, n_models, best_p, best_m, size), np.inf


KIND = PolicyKind("cork", choose, CorkParams, "after BentoML's CORK dispatcher (adaptive batching)", order=BY_DEADLINE)
