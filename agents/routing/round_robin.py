"""The replicas in turn."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import eligible, nth
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    n, here = eligible(ledger, door, request.model)
    # Doors begin apart from each other, or all would send their first requests to the same replicas.
    turn = ledger.sent[door] + door * n // ledger.sent.shape[0]
    return nth(ledger, door, request.model, here, turn % n) if n > 0 else -1


KIND = RouterKind("round_robin", route, "folklore; the usual setting of proxies")
