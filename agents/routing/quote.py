"""The replica with the greatest chance to be in time, where a request is charged for the work that it adds there.

A request that joins a batch of its model costs little where one that begins a batch costs much, and what it costs, others wait
for. So its own time counts, and the growth of the replica's work beside it: requests of a model gather as long as none is late
for it, and replicas specialise. Where answers are long on their way, what it would join may be gone, and is worth less.

A request that is unlikely to be in time even there must not take the place of one that could be: it goes to the better of two
random replicas. So all such together are spread; the best of all would get them all.
"""

from __future__ import annotations

import math

import numpy as np

from agents.routing.base import RouterKind
from agents.routing.common import two_random
from envs.cluster.foretell import chance, foretold_ms, plain_and_growth_ms, still_there
from envs.scheduling.jit import inlined, njit

# All chosen on other seeds than those of the published table.
CHARGE = 0.6  # for each ms that the replica's work grows by, as far as its work is known
IN_TIME = (0.6, 0.3)  # least chance to be in time, of high and low, for which a request gets the best of all replicas


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    best = -1
    least = np.inf
    for replica in range(ledger.replica.shape[1]):
        if ledger.replica[door, replica].up == 1:
            cost = _cost(ledger, tables, door, replica, request)
            if cost < least:
                least = cost
                best = replica
    if best < 0:
        return best
    in_time = chance(ledger, door, request, foretold_ms(ledger, tables, door, best, request))
    if in_time < IN_TIME[request.priority]:
        a, b = two_random(ledger, door, request.model, draw)
        sooner = _cost(ledger, tables, door, a, request) <= _cost(ledger, tables, door, b, request)
        return a if sooner else b
    return best


@inlined
def _cost(ledger, tables, door, replica, request):
    """What a request takes and adds on a replica, ms.

    It takes at least the time of a batch alone, which makes replicas equal that have little to do: they fill up one after the
    other, and the rest stays free. Where it is not known what they have to do, the one with least goes first.
    """
    one = ledger.replica[door, replica]
    known = still_there(ledger, door, request.priority, request.model, one.age_ms)
    plain, growth = plain_and_growth_ms(ledger, tables, door, replica, request, known)
    # What it would join must be there still, and not have begun, which comes sooner: hence the square.
    return (plain + CHARGE * known * known * growth) * math.exp(one.log_told)


KIND = RouterKind("quote", route, "this project: greatest chance to be in time, charged for the growth of the work")
