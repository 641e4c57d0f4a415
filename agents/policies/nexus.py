"""Nexus: batch sizes for which twice the batch latency fits the objective, round robin over models, early drop.

After Shen et al., "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis" (SOSP 2019): a session's batch
is the largest b with 2 l(b) <= SLO (a request may just miss a batch and wait for the next); a device takes its sessions in
turn; "early drop" slides a window of that size over the queue and drops what stands before the first window that can end
in time, so that a late head does not shrink all batches. Queues here are FIFO rings from which only unreachable heads
are dropped, so the window is enforced by ``drop_scale``: a head is given up when its slack no longer holds so many solo
latencies. Blind to priority.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, room
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import in_flight, solo_total
from envs.scheduling.jit import njit
from envs.scheduling.quote import BY_DEADLINE


@dataclass(frozen=True)
class NexusParams:
    """Parameters.

    Attributes:
        worst_case: batch latencies that must fit the objective (2 in the paper).
        in_flight: batches on the device at once (the paper's devices run one at a time).
        margin: factor on solo latencies.
        drop_scale: solo latencies that a head's slack must hold, else it is dropped early.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    worst_case: float = 2.0
    in_flight: int = 2
    margin: float = 1.2
    drop_scale: float = 1.5
    mixed_batches: bool = False


WORST_CASE, IN_FLIGHT, MARGIN, DROP_SCALE, MIXED_BATCHES = places(NexusParams)


@njit
def choose(state, tables, memory, env, params):
    """The next queue in turn that holds something, with its session's batch size."""
    own = state.scheduler[env]
    n_models = state.queue.shape[2]
    if own.n_free == 0 or in_flight(state, env) >= params[IN_FLIGHT]:
        return defer_action(state, tables), np.inf
    group = env % tables.solo.shape[0]
    n_sessions = 2 * n_models
    for i in range(n_sessions):
        session = (int(memory[env, 0]) + i) % n_sessions
        model = session // 2
        priority = session % 2
        q = state.queue[env, priority, model]
        length = room(state, tables, env, priority, model, params[MIXED_BATCHES])
        if length < tables.size[0]:
            continue
        head = state.entry[env, priority, model, q.head]
        best = 0
        for size in range(tables.size.shape[0]):
            need = params[MARGIN] * solo_total(tables, group, model, size)
            in_window = own.now + need <= head.deadline and params[WORST_CASE] * need <= head.deadline - head.arrival
            if tables.size[size] <= length and in_window:
                best = size
        memory[env, 0] = session + 1
        return action_of(tables, n_models, priority, model, best), np.inf
    return defer_action(state, tables), np.inf


KIND = PolicyKind("nexus", choose, NexusParams, "after Shen et al., Nexus, SOSP 2019", order=BY_DEADLINE)
