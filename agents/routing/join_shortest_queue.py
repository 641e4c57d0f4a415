"""The replica with the fewest requests outstanding; the first of them from a random place on."""

from __future__ import annotations

from agents.routing.base import RouterKind
from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    n = ledger.replica.shape[1]
    start = int(rng.uniform(draw, 0) * n)
    best = -1
    for i in range(n):
        replica = (start + i) % n
        one = ledger.replica[door, replica]
        if one.up == 1 and (best < 0 or one.outstanding < ledger.replica[door, best].outstanding):
            best = replica
    return best


KIND = RouterKind("join_shortest_queue", route, "Winston, Journal of Applied Probability 1977")
