"""What a ledger foretells of a replica: work that is left there, what a request adds to it, and whether it would be in time.

Nothing is changed here. Routers ask these functions; ``envs.cluster.ledger`` says what a ledger holds and how it learns.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import HIGH, LOW

OTHERS_MS = 200.0  # time constant with which the work of other doors is forgotten
LEAST_MS = 1e-3
LOGISTIC = 1.7  # slope of the logistic curve that is nearest to the normal distribution


@inlined
def batches_ms(tables, model, n):
    """Time alone on the device of n requests of a model, in largest batches and a rest; between sizes it is linear."""
    sizes = tables.size.shape[0]
    largest = tables.size[sizes - 1]
    full = n // largest
    rest = n - full * largest
    total = full * solo_total(tables, 0, model, sizes - 1)
    if rest == 0:
        return total
    above = 0
    while tables.size[above] < rest:
        above += 1
    high = solo_total(tables, 0, model, above)
    if above == 0:
        return total + min(rest, 1.0) * high
    low = solo_total(tables, 0, model, above - 1)
    part = (rest - tables.size[above - 1]) / (tables.size[above] - tables.size[above - 1])
    return total + low + part * (high - low)


@inlined
def _worked_off(work, pace, served_ms, passed):
    """What is left of work after a while at a pace, which the last requests do not reach: each takes the time it is served."""
    last = pace * served_ms
    if work > last:
        full = (work - last) / pace
        if passed <= full:
            return work - pace * passed
        work = last
        passed -= full
    return work * math.exp(-passed / served_ms) if served_ms > 0.0 else 0.0


@inlined
def left_ms(ledger, door, replica, priority, now):
    """Work up to a priority that a replica is likely to have still, of what was sent there and not answered.

    An answer that is long on its way leaves requests in ``work`` that have ended. A replica that had work all the time has done
    its pace times that way of it; one that ran dry meanwhile has what was sent since, less what it did of that. The larger of
    the two is what is left, as in any queue.
    """
    work = ledger.work[door, replica, priority]
    one = ledger.replica[door, replica]
    if one.age_ms <= 0.0:
        return work
    pace = ledger.done[door, replica, priority] / ledger.busy[door, replica, priority]
    passed = max(now - one.level_at, 0.0)
    level = _worked_off(ledger.level[door, replica, priority], pace, one.served_ms, passed)
    return min(max(level, work - pace * one.age_ms, 0.0), work)


@inlined
def _share_left(ledger, door, replica, priority, now):
    """`left_ms` as a share of the work of what was not answered."""
    work = ledger.work[door, replica, priority]
    return left_ms(ledger, door, replica, priority, now) / work if work > 0.0 else 1.0


@inlined
def log_slowness(ledger, door, replica):
    """How much slower a replica is than others, by what it says and by its answers, these the less believed the older they are.

    What was foretold from old knowledge errs in ways that look like a slow machine.
    """
    one = ledger.replica[door, replica]
    return one.log_told + _believed(ledger, door, replica) * one.log_slowness


@inlined
def _believed(ledger, door, replica):
    """How much what a replica shows is believed, the less the older it is beside the time that requests are in it."""
    one = ledger.replica[door, replica]
    age, latency = one.age_ms, one.latency_ms
    return (latency / (age + latency)) ** 2 if age > 0.0 and latency > 0.0 else 1.0


@inlined
def load_of(ledger, door, replica, now):
    """Requests likely to be in a replica still, and one more, for its speed."""
    inside = ledger.replica[door, replica].outstanding * _share_left(ledger, door, replica, LOW, now)
    return (1.0 + inside) * math.exp(log_slowness(ledger, door, replica))


@inlined
def unanswered(ledger, door, replica, priority, model):
    """Requests of a model that were sent to a replica and not answered, up to a priority."""
    n = ledger.count[door, replica, HIGH, model]
    return n if priority == HIGH else n + ledger.count[door, replica, LOW, model]


@inlined
def _others_left(ledger, door, replica, now):
    """Share that is likely to be there still of what other doors had there when the replica last told."""
    return math.exp(-max(now - ledger.replica[door, replica].told_at, 0.0) / OTHERS_MS)


@inlined
def _growth_to(ledger, tables, door, replica, request, priority):
    """Work up to a priority that a request adds to a replica: that of the batch it joins there, or of a batch of its own."""
    own = unanswered(ledger, door, replica, priority, request.model)
    n = own * _share_left(ledger, door, replica, priority, request.now)
    beside = ledger.beside[door, replica, priority, request.model]
    if beside > 0.0:  # with one door there is none
        n += _others_left(ledger, door, replica, request.now) * beside
    return batches_ms(tables, request.model, n + 1.0) - batches_ms(tables, request.model, n)


@inlined
def growth_ms(ledger, tables, door, replica, request):
    """Work that a request adds to a replica."""
    return _growth_to(ledger, tables, door, replica, request, LOW)


@inlined
def ahead_ms(ledger, door, replica, request):
    """Work that a replica does before a request: of high priority before low; in which order within one, does not matter."""
    ahead = left_ms(ledger, door, replica, request.priority, request.now)
    others = ledger.others[door, replica, request.priority]
    return ahead + _others_left(ledger, door, replica, request.now) * others if others > 0.0 else ahead


@inlined
def _blocking_ms(ledger, door, replica, now):
    """Time for which low priority that waits on a slow machine will hold high up, beyond what it does elsewhere.

    What all replicas have of it is in the factor that they share.
    """
    one = ledger.replica[door, replica]
    if one.log_told <= 0.0:
        return 0.0
    low = left_ms(ledger, door, replica, LOW, now) - left_ms(ledger, door, replica, HIGH, now)
    return (math.exp(one.log_told) - 1.0) * min(max(low, 0.0), one.served_ms)


@inlined
def in_flight_ms(ledger, door, replica, now):
    """Time that is left of the batches in flight, in sum, by what the replica foretold of them."""
    one = ledger.replica[door, replica]
    return max(one.in_flight_ms - one.busy * (now - one.told_at + one.age_ms), 0.0)


@inlined
def plain_ms(ledger, tables, door, replica, request):
    """Time from now to the end of a request on a replica by the work alone: what is ahead of it, and its own batch."""
    total = ahead_ms(ledger, door, replica, request)
    total += _growth_to(ledger, tables, door, replica, request, request.priority)
    if request.priority == HIGH:
        # Work counts what is in flight as if it had just begun, and not what runs beside it; the little slack of high priority
        # asks for more. Low priority has the time: told so as well, it gathers less, and batches are smaller.
        total += _believed(ledger, door, replica) * in_flight_ms(ledger, door, replica, request.now)
        total += _blocking_ms(ledger, door, replica, request.now)
    return max(total, solo_total(tables, 0, request.model, 0), LEAST_MS)


@inlined
def foretold_ms(ledger, tables, door, replica, request):
    """The same as the replica's answers lead to expect."""
    factor = ledger.log_bias[door, request.priority] + log_slowness(ledger, door, replica)
    return plain_ms(ledger, tables, door, replica, request) * math.exp(factor)


@inlined
def chance(ledger, door, request, foretold):
    """Probability that a request foretold to take so many ms is in time."""
    slack = max(request.deadline - request.now, LEAST_MS)
    z = math.log(slack / foretold) / ledger.spread[door, request.priority]
    return 1.0 / (1.0 + math.exp(-LOGISTIC * min(max(z, -10.0), 10.0)))


@njit
def earliest(ledger, tables, door, request):
    """The replica which is up and foretold to end the request first, and the time foretold there; (-1, inf) for none."""
    best = -1
    least = np.inf
    for replica in range(ledger.replica.shape[1]):
        if ledger.replica[door, replica].up == 1:
            foretold = foretold_ms(ledger, tables, door, replica, request)
            if foretold < least:
                least = foretold
                best = replica
    return best, least


@njit
def best_chance(ledger, tables, door, request):
    """Greatest probability to be in time that a replica which is up offers, and the time foretold there; (0, inf) for none."""
    best, least = earliest(ledger, tables, door, request)
    return chance(ledger, door, request, least) if best >= 0 else 0.0, least
