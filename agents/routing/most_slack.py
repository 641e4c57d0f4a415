"""The replica that is foretold to end the request first, so that most slack is left."""

from __future__ import annotations

import numpy as np

from agents.routing.base import RouterKind
from envs.cluster.ledger import foretold_ms
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    best = -1
    least = np.inf
    for replica in range(ledger.replica.shape[1]):
        if ledger.replica[door, replica].up == 1:
            foretold = foretold_ms(ledger, tables, door, replica, request)
            if foretold < least:
                least = foretold
                best = replica
    return best


KIND = RouterKind("most_slack", route, "this project: earliest foretold finish")
