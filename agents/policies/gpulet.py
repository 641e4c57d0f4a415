"""GPUlet-style: priority, then deadline, admitted by a static linear model of interference.

After Choi et al., "Serving Heterogeneous Machine Learning Models on Multi-GPU Servers with Spatio-Temporal Sharing"
(GPUlet, USENIX ATC 2022): the slowdown of two co-located models is linear in their memory and compute demands, fitted
offline; a co-location is allowed when both stay within their objective. The weights are the offline prior of the
profile, never adapted, and the slowdown is that of the set at dispatch: what changes while a batch runs is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action, held_by_low, room
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import in_flight, solo_total
from envs.scheduling.jit import njit
from envs.scheduling.predictor import N_DEVICE_FEATURES, feature_column, features
from envs.scheduling.state import HIGH


@dataclass(frozen=True)
class GpuletParams:
    """Parameters.

    Attributes:
        in_flight: batches on the device at once (2 partitions a device in the paper).
        margin: factor on predicted latencies.
        low_streams: streams that low priority may hold at once.
        mixed_batches: whether a batch of high priority takes low priority of its model along.
    """

    in_flight: int = 2
    margin: float = 1.1
    low_streams: int = 64
    mixed_batches: bool = False


IN_FLIGHT, MARGIN, LOW_STREAMS, MIXED_BATCHES = places(GpuletParams)


@njit
def _slowdown(state, tables, env, model, size, skip, extra_m, extra_b):
    """Static slowdown of (m, b) beside all in flight except stream skip, and beside (extra_m, extra_b) if any."""
    group = env % tables.solo.shape[0]
    n = 0
    cpu = 0.0
    mem = 0.0
    cache = 0.0
    for stream in range(state.stream.shape[1]):
        s = state.stream[env, stream]
        if s.busy == 1 and stream != skip:
            n += 1
            cpu += tables.demand[group, s.model, s.size_index, 0]
            mem += tables.demand[group, s.model, s.size_index, 1]
            cache += tables.demand[group, s.model, s.size_index, 2]
    if extra_m >= 0:
        n += 1
        cpu += tables.demand[group, extra_m, extra_b, 0]
        mem += tables.demand[group, extra_m, extra_b, 1]
        cache += tables.demand[group, extra_m, extra_b, 2]
    mine = tables.demand[group, model, size]
    x = state.scratch[env, :, feature_column(state)]
    # Partitions do not share cores: each co-runner counts as one beside it.
    features(1.0, n, mine[0], mine[1], mine[2], cpu, mem, cache, x)
    s = 1.0
    for f in range(N_DEVICE_FEATURES):
        s += tables.weight[group, f] * x[f]
    return max(s, 1.0)


@njit
def _admits(state, tables, env, priority, model, size, margin):
    """Whether the batch and all in flight of at least its priority stay within their deadlines side by side."""
    group = env % tables.solo.shape[0]
    now = state.scheduler[env].now
    copies = solo_total(tables, group, model, size) - tables.solo[group, model, size]
    head = state.entry[env, priority, model, state.queue[env, priority, model].head]
    if (
        now
        + margin * (copies + tables.solo[group, model, size] * _slowdown(state, tables, env, model, size, -1, -1, 0))
        > head.deadline
    ):
        return False
    for stream in range(state.stream.shape[1]):
        s = state.stream[env, stream]
        if s.busy == 0 or s.priority > priority:
            continue
        alone = s.start + margin * (
            s.solo * _slowdown(state, tables, env, s.model, s.size_index, stream, -1, 0) + s.post
        )
        beside = s.start + margin * (
            s.solo * _slowdown(state, tables, env, s.model, s.size_index, stream, model, size) + s.post
        )
        # Of a mixed batch, low priority is no reason to refuse high.
        for i in range(s.n_high if priority == HIGH else s.n):
            deadline = state.member[env, stream, i].deadline
            if alone <= deadline and beside > deadline:
                return False
    return True


@njit
def choose(state, tables, memory, env, params):
    """High priority first, earliest deadline first; the largest batch that the static model admits."""
    own = state.scheduler[env]
    n_models = state.queue.shape[2]
    if own.n_free == 0 or in_flight(state, env) >= params[IN_FLIGHT]:
        return defer_action(state, tables), np.inf
    idle = in_flight(state, env) == 0
    for priority in range(2):
        if priority == 1 and held_by_low(state, env) >= params[LOW_STREAMS]:
            break
        best = np.inf
        action = -1
        for model in range(n_models):
            q = state.queue[env, priority, model]
            length = room(state, tables, env, priority, model, params[MIXED_BATCHES])
            if length < tables.size[0]:
                continue
            deadline = state.entry[env, priority, model, q.head].deadline
            if deadline >= best:
                continue
            for i in range(tables.size.shape[0]):
                size = tables.size.shape[0] - 1 - i
                if tables.size[size] <= length and (
                    _admits(state, tables, env, priority, model, size, params[MARGIN]) or (idle and size == 0)
                ):
                    best = deadline
                    action = action_of(tables, n_models, priority, model, size)
                    break
        if action >= 0:
            return action, np.inf
    return defer_action(state, tables), np.inf


KIND = PolicyKind("gpulet", choose, GpuletParams, "after Choi et al., GPUlet, USENIX ATC 2022")
