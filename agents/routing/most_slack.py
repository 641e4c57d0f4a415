"""The replica that is foretold to end the request first, so that most slack is left."""

from __future__ import annotations

from agents.routing.base import RouterKind
from envs.cluster.foretell import earliest
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    return earliest(ledger, tables, door, request)[0]


KIND = RouterKind("most_slack", route, "this project: earliest foretold finish")
