"""The replica with the fewest requests outstanding; the first of them from a random place on."""

from __future__ import annotations

from agents.routing.base import RouterKind
from agents.routing.common import eligible, may_get
from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    _, here = eligible(ledger, door, request.model)
    n = ledger.replica.shape[1]
    start = int(rng.uniform(draw, 0) * n)
    best = -1
    for i in range(n):
        replica = (start + i) % n
        fewer = best < 0 or ledger.replica[door, replica].outstanding < ledger.replica[door, best].outstanding
        if fewer and may_get(ledger, door, replica, request.model, here):
            best = replica
    return best


KIND = RouterKind("join_shortest_queue", route, "Winston, Journal of Applied Probability 1977")
