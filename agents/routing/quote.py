"""The replica with the greatest chance to be in time, where a request is charged for the work that it adds there.

A request that joins a batch of its model costs little where one that begins a batch costs much, and what it costs, others wait
for. So its own time counts, and a share of the growth of the replica's work beside it: requests of a model gather as long as
none is late for it, and replicas specialise without being told. A request that is unlikely to be in time anywhere goes where
fewest are for its speed: it must not take the place of one that could be.
"""

from __future__ import annotations

import math

import numpy as np

from agents.routing.base import RouterKind
from envs.cluster.ledger import chance, foretold_ms, growth_ms, load_of, log_slowness, plain_ms
from envs.scheduling import rng
from envs.scheduling.jit import njit

# Both chosen on other seeds than those of the published table.
CHARGE = 0.3  # for each ms that the replica's work grows by
IN_TIME = 0.5  # least chance to be in time for which a request is placed so


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    best = -1
    least = np.inf
    for replica in range(ledger.replica.shape[1]):
        one = ledger.replica[door, replica]
        if one.up == 0:
            continue
        growth = growth_ms(ledger, tables, door, replica, request)
        cost = plain_ms(ledger, tables, door, replica, request) + CHARGE * growth
        cost *= math.exp(log_slowness(ledger, door, replica))
        if cost < least:
            least = cost
            best = replica
    if best >= 0 and chance(ledger, door, request, foretold_ms(ledger, tables, door, best, request)) < IN_TIME:
        return _fewest_inside(ledger, door, request.now, draw)
    return best


@njit
def _fewest_inside(ledger, door, now, draw):
    """The replica with the fewest requests for its speed; the first of them from a random place on."""
    n = ledger.replica.shape[1]
    start = int(rng.uniform(draw, 0) * n)
    best = -1
    fewest = np.inf
    for i in range(n):
        replica = (start + i) % n
        if ledger.replica[door, replica].up == 1:
            there = load_of(ledger, door, replica, now)
            if there < fewest:
                fewest = there
                best = replica
    return best


KIND = RouterKind("quote", route, "this project: greatest chance to be in time, charged for the growth of the work")
