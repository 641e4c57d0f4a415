"""What a ledger foretells of a replica: work ahead of a request, what the request adds to it, and whether it would be in time.

Work is counted in ms of the device alone, in the batches that requests would form: see ``batches_ms``. A batch of high priority
takes low priority of its model along, so work is not a sum over priorities: it is counted up to a priority, that of high alone
and that of all. Nothing is changed here. ``envs.cluster.ledger`` says what a ledger holds and how it learns.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import HIGH, LOW

OTHERS_MS = 200.0  # time constant with which the requests of other doors are forgotten
LEAST_MS = 1e-3
LOGISTIC = 1.7  # slope of the logistic curve that is nearest to the normal distribution
SIDE_BY_SIDE = 4.0  # batches that the host can launch in the time of one
STAYS = 0.8  # time constant with which requests leave a replica, in mean stays; chosen on other seeds than published


@inlined
def _device_ms(tables, model, size):
    """Time that a batch takes of the device, or of the host that launches its kernels, whichever has the greater part of it."""
    return solo_total(tables, 0, model, size) * max(tables.share[0, model, size], 1.0 / SIDE_BY_SIDE)


@inlined
def batches_ms(tables, model, n):
    """Time of the device for n requests of a model, in largest batches and a rest; between sizes it is linear."""
    sizes = tables.size.shape[0]
    largest = tables.size[sizes - 1]
    total = 0.0
    rest = float(n)
    if rest >= largest:  # few models have so many
        full = math.floor(rest / largest)
        rest -= full * largest
        total = full * _device_ms(tables, model, sizes - 1)
    if rest <= 0.0:
        return total
    above = 0
    while tables.size[above] < rest:
        above += 1
    high = _device_ms(tables, model, above)
    if above == 0:
        return total + min(rest, 1.0) * high
    low = _device_ms(tables, model, above - 1)
    part = (rest - tables.size[above - 1]) / (tables.size[above] - tables.size[above - 1])
    return total + low + part * (high - low)


@inlined
def still_there(ledger, door, priority, model, passed):
    """Share of the requests sent to a replica so many ms ago that have not ended, as far as is known before their answers."""
    stay_ms = STAYS * ledger.stay_ms[door, priority, model]
    return math.exp(-passed / stay_ms) if stay_ms > 0.0 else 1.0


@inlined
def _own_left(ledger, door, replica, priority, model, now):
    """Requests of a priority that this door sent to a replica and that are likely to be there still.

    Answers that come at once tell. Where they are long on their way beside the time that requests stay, it is worked out from
    when requests were sent.
    """
    n = ledger.count[door, replica, priority, model]
    one = ledger.replica[door, replica]
    if n == 0 or one.age_ms <= 0.0:
        return float(n)
    recent = ledger.recent[door, replica, priority, model]
    recent *= still_there(ledger, door, priority, model, max(now - one.sent_at, 0.0))
    return min(recent + (n - recent) * still_there(ledger, door, priority, model, one.age_ms), n)


@inlined
def requests_left(ledger, door, replica, model, now):
    """Requests of a model that are likely to be in a replica, whoever sent them: of high priority, and of both."""
    high = _own_left(ledger, door, replica, HIGH, model, now)
    both = high + _own_left(ledger, door, replica, LOW, model, now)
    beside = ledger.beside[door, replica]
    if beside[LOW, model] > 0.0:  # with one door there is none
        kept = math.exp(-max(now - ledger.replica[door, replica].told_at, 0.0) / OTHERS_MS)
        high += kept * beside[HIGH, model]
        both += kept * beside[LOW, model]
    return high, both


@inlined
def work_ms(ledger, tables, door, replica, priority, now):
    """Work of a replica up to a priority."""
    total = 0.0
    for model in range(ledger.count.shape[3]):
        total += batches_ms(tables, model, requests_left(ledger, door, replica, model, now)[priority])
    return total


@inlined
def _due_before(ledger, door, priority, model, slack):
    """Share of the waiting requests of a model that are due before one with so much slack: theirs is from 0 to the usual."""
    usual = ledger.slack_ms[door, priority, model]
    return slack / usual if usual > slack else 1.0


@inlined
def in_flight_ms(ledger, door, replica, now):
    """Time that is left of the batches in flight, in sum, by what the replica foretold of them."""
    one = ledger.replica[door, replica]
    return max(one.in_flight_ms - one.busy * (now - one.told_at + one.age_ms), 0.0)


@inlined
def plain_and_growth_ms(ledger, tables, door, replica, request, known=1.0):
    """By the work alone: time from now to the end of a request on a replica, and the work that it adds there.

    Ahead of it is high priority before low, and within one what is due before it. Half a mean batch of low priority that waits
    is in the way of high: one may begin before the next of high does. Then comes its own batch, one that it joins or its own.
    The time is at least that of a batch alone, as far as it is ``known`` (0 to 1) what the replica has to do. A model that is
    out of memory is loaded before, which the first request that asks for it adds.
    """
    load_ms = ledger.load_ms[door, replica, request.model]
    slack = max(request.deadline - request.now, LEAST_MS)
    time = 0.0
    low = 0.0
    growth = 0.0
    for model in range(ledger.count.shape[3]):
        n_high, n = requests_left(ledger, door, replica, model, request.now)
        if n == 0.0 and model != request.model:
            continue
        both = batches_ms(tables, model, n)
        high = batches_ms(tables, model, n_high) if n_high > 0.0 else 0.0
        time += high * (_due_before(ledger, door, HIGH, model, slack) if request.priority == HIGH else 1.0)
        low += (both - high) * (_due_before(ledger, door, LOW, model, slack) if request.priority == LOW else 1.0)
        if model == request.model:
            growth = batches_ms(tables, model, n + 1.0) - both
            time += growth if request.priority == LOW else batches_ms(tables, model, n_high + 1.0) - high
            growth += load_ms if n < 0.5 else 0.0
    time += low if request.priority == LOW else 0.5 * min(low, tables.device[0].unit_ms)
    time += in_flight_ms(ledger, door, replica, request.now)
    return max(time, known * solo_total(tables, 0, request.model, 0), LEAST_MS) + load_ms, growth


@inlined
def plain_ms(ledger, tables, door, replica, request):
    """The first of `plain_and_growth_ms`."""
    return plain_and_growth_ms(ledger, tables, door, replica, request)[0]


@inlined
def factor(ledger, door, replica, priority):
    """How many times as long as by the work alone requests take there, as answers and the replica lead to expect."""
    return math.exp(ledger.log_bias[door, priority] + ledger.replica[door, replica].log_told)


@inlined
def foretold_ms(ledger, tables, door, replica, request):
    """The time of `plain_ms` as it is likely to be."""
    return plain_ms(ledger, tables, door, replica, request) * factor(ledger, door, replica, request.priority)


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
