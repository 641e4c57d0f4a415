"""The one with fewer requests outstanding of two replicas drawn at random."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import two_random
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    a, b = two_random(ledger, door, request.model, draw)
    return b if a >= 0 and ledger.replica[door, b].outstanding < ledger.replica[door, a].outstanding else a


KIND = RouterKind("power_of_two", route, "Mitzenmacher, IEEE TPDS 2001; the default of Ray Serve")
