"""What a policy may dispatch: candidates, what a batch of each would hold, and which are valid. Nothing is changed here.

A candidate is (priority, model, batch size); its index is the action, and DEFER is the index after the last.
"""

from __future__ import annotations

from envs.scheduling.jit import inlined
from envs.scheduling.state import HIGH, LOW


@inlined
def batches_on_next_core(state, env):
    """Batches that would share the core of the spare stream if one were dispatched there, itself counted."""
    core = state.stream[env, state.scheduler[env].next_stream].core
    n = 1
    for stream in range(state.stream.shape[1]):
        if state.stream[env, stream].busy == 1 and state.stream[env, stream].core == core:
            n += 1
    return n


@inlined
def has_room(state, tables, env):
    """Whether a batch may be dispatched at all: a stream is free, and its core takes another batch."""
    if state.scheduler[env].n_free == 0:
        return False
    most = tables.device[env % tables.solo.shape[0]].max_batches_per_core
    return most <= 0.0 or batches_on_next_core(state, env) <= most


@inlined
def available(state, tables, env, priority, model):
    """Requests that a batch of candidate (priority, model) could hold.

    A batch that is too large for the high-priority requests takes low priority of the same model along, first come, first
    served; a batch of low priority holds no other.
    """
    n = state.queue[env, priority, model].length
    if priority == HIGH and n > 0 and tables.device[env % tables.solo.shape[0]].mixed_batches > 0.0:
        n += state.queue[env, LOW, model].length
    return n


@inlined
def n_high_of(state, env, priority, model, n):
    """High-priority requests in a batch of n of candidate (priority, model)."""
    return min(state.queue[env, HIGH, model].length, n) if priority == HIGH else 0


@inlined
def can_dispatch(state, env, tables):
    """Whether some candidate is valid: there is room for a batch, and what is queued fills a smallest one."""
    own = state.scheduler[env]
    if own.n_queued == 0 or not has_room(state, tables, env):
        return False
    smallest = tables.size[0]
    if smallest == 1:
        return True
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            if available(state, tables, env, priority, model) >= smallest:
                return True
    return False


@inlined
def action_of(tables, n_models, priority, model, size):
    """Index of the candidate (priority, model, batch-size index); DEFER is the index after the last candidate."""
    return (priority * n_models + model) * tables.size.shape[0] + size


@inlined
def candidate_of(tables, n_models, action):
    """Priority, model and batch-size index of an action that is not DEFER."""
    n_sizes = tables.size.shape[0]
    q = action // n_sizes
    return q // n_models, q % n_models, action % n_sizes


@inlined
def valid(state, tables, env, action):
    """Whether the action is a candidate that can be dispatched now."""
    n_models = state.queue.shape[2]
    if action < 0 or action >= 2 * n_models * tables.size.shape[0] or not has_room(state, tables, env):
        return False
    priority, model, size = candidate_of(tables, n_models, action)
    return available(state, tables, env, priority, model) >= tables.size[size]


@inlined
def mask(state, tables, env, out):
    """Valid actions of scheduler e into ``out`` (A,) bool: what is queued and fits a free stream, and DEFER."""
    n_sizes = tables.size.shape[0]
    free = has_room(state, tables, env)
    i = 0
    for priority in range(2):
        for model in range(state.queue.shape[2]):
            length = available(state, tables, env, priority, model)
            for size in range(n_sizes):
                out[i] = free and length >= tables.size[size]
                i += 1
    out[i] = True
