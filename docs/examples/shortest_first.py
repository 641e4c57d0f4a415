"""A policy of your own: the shortest batch first, high priority before low."""

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of, valid


@dataclass(frozen=True)
class ShortestFirstParams:
    """Parameters.

    Attributes:
        spare: streams that must be free before low priority may take one.
    """

    spare: int = 2


@njit
def choose(st, tb, mem, e, p):
    """The valid candidate of least solo time; ties go to the first model."""
    n_models = st.queue.shape[2]
    for priority in range(2):
        best, least = -1, np.inf
        for m in range(n_models):
            action = action_of(tb, n_models, priority, m, 0)
            if valid(st, tb, e, action) and tb.solo[0, m, 0] < least:
                best, least = action, tb.solo[0, m, 0]
        if best >= 0 and (priority == 0 or st.scheduler[e].n_free >= p[0]):
            return best, np.inf
    return defer_action(st, tb), np.inf


register(PolicyKind("shortest-first", choose, ShortestFirstParams, "shortest job first, by priority"))
