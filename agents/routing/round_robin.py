"""The replicas in turn."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import nth_up, replicas_up
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    n = replicas_up(ledger, door)
    # Doors begin apart from each other, or all would send their first requests to the same replicas.
    return nth_up(ledger, door, (ledger.sent[door] + door * n // ledger.sent.shape[0]) % n) if n > 0 else -1


KIND = RouterKind("round_robin", route, "folklore; the usual setting of proxies")
