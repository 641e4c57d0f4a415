"""The replica with the greatest chance to be in time, where a request is charged for the work that it adds there.

A request that joins a batch of its model costs little where one that begins a batch costs much, and what it costs, others wait
for. So its own time counts, and a share of the growth of the replica's work beside it: requests of a model gather as long as
none is late for it, and replicas specialise. Where little speaks for one or the other, a model prefers replicas in an order of
its own, so that it finds its batches again, behind all doors alike.

A request that is unlikely to be in time even there must not take the place of one that could be: of a few random replicas it
goes to the least loaded. So all such together are spread; the least loaded of all would get them all.
"""

from __future__ import annotations

import math

import numpy as np

from agents.routing.base import RouterKind
from agents.routing.common import nth_up, replicas_up
from envs.cluster.foretell import chance, foretold_ms, growth_ms, left_ms, load_of, log_slowness, plain_ms
from envs.scheduling import rng
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import LOW

# All chosen on other seeds than those of the published table.
CHARGE = 0.3  # for each ms that the replica's work grows by
AFFINITY = 0.2  # most that the order in which a model prefers replicas counts, in mean solo latencies
IN_TIME = 0.6  # least chance to be in time for which a request is placed so
SOME = 3  # replicas to choose from for the others


@njit
def route(ledger, tables, door, request, draw):
    """One choice, see the module's text."""
    best = -1
    least = np.inf
    unit_ms = tables.device[0].unit_ms
    for replica in range(ledger.replica.shape[1]):
        one = ledger.replica[door, replica]
        if one.up == 0:
            continue
        growth = growth_ms(ledger, tables, door, replica, request)
        cost = plain_ms(ledger, tables, door, replica, request) + CHARGE * growth
        cost += AFFINITY * unit_ms * _rank(ledger, request.model, replica)
        cost *= math.exp(log_slowness(ledger, door, replica))
        if cost < least:
            least = cost
            best = replica
    if best >= 0 and chance(ledger, door, request, foretold_ms(ledger, tables, door, best, request)) < IN_TIME:
        return _least_loaded_of_some(ledger, tables, door, request, draw)
    return best


@inlined
def _rank(ledger, model, replica):
    """Place of a replica in the order in which a model prefers them, from 0 to below 1; each model begins elsewhere."""
    n = ledger.replica.shape[1]
    return ((replica - model * n // ledger.count.shape[3]) % n) / n


@njit
def _least_loaded_of_some(ledger, tables, door, request, draw):
    """Of a few random replicas, that with the least requests times work of this door, each for its speed.

    Either alone errs: few requests may be long ones, and little work may be many requests that hold each other up.
    """
    n = replicas_up(ledger, door)
    best = -1
    least = np.inf
    for i in range(SOME):
        replica = nth_up(ledger, door, int(rng.uniform(draw, i) * n))
        work = left_ms(ledger, door, replica, LOW, request.now) + solo_total(tables, 0, request.model, 0)
        load = load_of(ledger, door, replica, request.now) * work * math.exp(log_slowness(ledger, door, replica))
        if load < least:
            least = load
            best = replica
    return best


KIND = RouterKind("quote", route, "this project: greatest chance to be in time, charged for the growth of the work")
