"""GPUlet-style: priority, then deadline, admitted by a static linear model of interference.

After Choi et al., "Serving Heterogeneous Machine Learning Models on Multi-GPU Servers with Spatio-Temporal Sharing"
(GPUlet, USENIX ATC 2022): the slowdown of two co-located models is linear in their memory and compute demands, fitted
offline; a co-location is allowed when both stay within their objective. The weights are the offline prior of the
profile, never adapted, and the slowdown is that of the set at dispatch: what changes while a batch runs is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, held_by_low, solo_total
from envs.scheduling.forecast import in_flight
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of
from envs.scheduling.predictor import feature_column, features
from envs.scheduling.state import N_FEATURES


@dataclass(frozen=True)
class GpuletParams:
    """Parameters.

    Attributes:
        in_flight: batches on the device at once (2 partitions a device in the paper).
        margin: factor on predicted latencies.
        low_streams: streams that low priority may hold at once.
    """

    in_flight: int = 2
    margin: float = 1.1
    low_streams: int = 64


@njit
def _slowdown(st, tb, e, m, b, skip, extra_m, extra_b):
    """Static slowdown of (m, b) beside all in flight except stream skip, and beside (extra_m, extra_b) if any."""
    g = e % tb.solo.shape[0]
    n = 0
    cpu = 0.0
    mem = 0.0
    cache = 0.0
    for k in range(st.stream.shape[1]):
        s = st.stream[e, k]
        if s.busy == 1 and k != skip:
            n += 1
            cpu += tb.demand[g, s.model, s.b, 0]
            mem += tb.demand[g, s.model, s.b, 1]
            cache += tb.demand[g, s.model, s.b, 2]
    if extra_m >= 0:
        n += 1
        cpu += tb.demand[g, extra_m, extra_b, 0]
        mem += tb.demand[g, extra_m, extra_b, 1]
        cache += tb.demand[g, extra_m, extra_b, 2]
    mine = tb.demand[g, m, b]
    x = st.work[e, :, feature_column(st)]
    # Partitions do not share cores: each co-runner counts as one beside it.
    features(1.0, n, mine[0], mine[1], mine[2], cpu, mem, cache, x)
    s = 1.0
    for f in range(N_FEATURES):
        s += tb.prior[g, f] * x[f]
    return max(s, 1.0)


@njit
def _admits(st, tb, e, pr, m, b, margin):
    """Whether the batch and all in flight of at least its priority stay within their deadlines side by side."""
    g = e % tb.solo.shape[0]
    now = st.env[e].now
    copies = solo_total(tb, g, m, b) - tb.solo[g, m, b]
    head = st.entry[e, pr, m, st.queue[e, pr, m].head]
    if now + margin * (copies + tb.solo[g, m, b] * _slowdown(st, tb, e, m, b, -1, -1, 0)) > head.deadline:
        return False
    for k in range(st.stream.shape[1]):
        s = st.stream[e, k]
        if s.busy == 0 or s.priority > pr:
            continue
        alone = s.start + margin * (s.solo * _slowdown(st, tb, e, s.model, s.b, k, -1, 0) + s.post)
        beside = s.start + margin * (s.solo * _slowdown(st, tb, e, s.model, s.b, k, m, b) + s.post)
        if alone <= s.deadline and beside > s.deadline:
            return False
    return True


@njit
def choose(st, tb, mem, e, p):
    """High priority first, earliest deadline first; the largest batch that the static model admits."""
    env = st.env[e]
    n_models = st.queue.shape[2]
    if env.n_free == 0 or in_flight(st, e) >= p[0]:
        return defer_action(st, tb), np.inf
    idle = in_flight(st, e) == 0
    for pr in range(2):
        if pr == 1 and held_by_low(st, e) >= p[2]:
            break
        best = np.inf
        action = -1
        for m in range(n_models):
            q = st.queue[e, pr, m]
            if q.length < tb.size[0]:
                continue
            deadline = st.entry[e, pr, m, q.head].deadline
            if deadline >= best:
                continue
            for i in range(tb.size.shape[0]):
                b = tb.size.shape[0] - 1 - i
                if tb.size[b] <= q.length and (_admits(st, tb, e, pr, m, b, p[1]) or (idle and b == 0)):
                    best = deadline
                    action = action_of(tb, n_models, pr, m, b)
                    break
        if action >= 0:
            return action, np.inf
    return defer_action(st, tb), np.inf


register(PolicyKind("gpulet", choose, GpuletParams, "after Choi et al., GPUlet, USENIX ATC 2022"))
