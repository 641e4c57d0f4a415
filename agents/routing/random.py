"""Any replica that is up, all equally likely."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import eligible, nth
from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    n, here = eligible(ledger, door, request.model)
    return nth(ledger, door, request.model, here, int(rng.uniform(draw, 0) * n)) if n > 0 else -1


KIND = RouterKind("random", route, "folklore")
