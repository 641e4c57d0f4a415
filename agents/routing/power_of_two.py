"""The one with fewer requests outstanding of two replicas drawn at random."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import nth_up, replicas_up
from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    n = replicas_up(ledger, door)
    if n == 0:
        return -1
    first = int(rng.uniform(draw, 0) * n)
    a = nth_up(ledger, door, first)
    if n == 1:
        return a
    b = nth_up(ledger, door, (first + 1 + int(rng.uniform(draw, 1) * (n - 1))) % n)
    return a if ledger.replica[door, a].outstanding <= ledger.replica[door, b].outstanding else b


KIND = RouterKind("power_of_two", route, "Mitzenmacher, IEEE TPDS 2001; the default of Ray Serve")
