"""A policy of your own: the shortest batch first, high priority before low."""

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, places
from agents.policies.common import defer_action
from agents.policies.registry import register
from envs.scheduling.candidates import action_of, valid
from envs.scheduling.jit import njit


@dataclass(frozen=True)
class ShortestFirstParams:
    """Parameters.

    Attributes:
        spare: streams that must be free before low priority may take one.
    """

    spare: int = 2


(SPARE,) = places(ShortestFirstParams)


@njit
def choose(state, tables, memory, env, params):
    """The valid candidate of least solo time; ties go to the first model."""
    n_models = state.queue.shape[2]
    for priority in range(2):
        best, least = -1, np.inf
        for model in range(n_models):
            action = action_of(tables, n_models, priority, model, 0)
            if valid(state, tables, env, action) and tables.solo[0, model, 0] < least:
                best, least = action, tables.solo[0, model, 0]
        if best >= 0 and (priority == 0 or state.scheduler[env].n_free >= params[SPARE]):
            return best, np.inf
    return defer_action(state, tables), np.inf


register(PolicyKind("shortest-first", choose, ShortestFirstParams, "shortest job first, by priority"))
