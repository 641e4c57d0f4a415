"""What a router knows of its replicas: what it sent them, what came back, and what their answers tell.

The simulated cluster and the live one keep the same ledger with the same functions. A router foretells when a replica would
end a request from the work that is ahead of it there; how foretold and real times compare, the ledger learns for each replica,
which finds slow machines, and for each priority, which holds what batching and streams side by side save. Work is counted in ms
alone on the device of the profile, in the batches that the requests would form. A batch of high priority takes low priority of
its model along, so work is not a sum over priorities: it is counted up to a priority, that of high alone and that of all, which
is also what lies ahead of a request of that priority.

Axes: D doors (processes that route, each with knowledge of its own), R replicas, 2 priorities, M models.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs.cluster.foretell import LEAST_MS, batches_ms, left_ms, plain_ms, unanswered
from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined, njit
from envs.scheduling.quote import left_in_flight
from envs.scheduling.state import HIGH, LOW, records

SLOWNESS_RATE = 0.03  # of a replica's factor, for each answer
BIAS_RATE = 0.01  # of the factor that all replicas share, by priority
SPREAD_RATE = 0.01
LATENCY_RATE = 0.02
FIRST_SPREAD = 0.3  # of the log of real over foretold time
MOST_SURPRISE = 1.0  # bound on that log: an outlier moves what is learned no further
MOST_LOG_FACTOR = 3.0
PACE_MS = 200.0  # time constant of a replica's pace
FIRST_BUSY_MS = 20.0  # a pace of 1 counts so long at first
SLOWDOWN_BELIEVED = 0.25  # least log of a slowdown that a replica is believed; below is noise, and all are chosen by it
SERVED = 3.0  # times as long as alone a request is served, in batches and beside others; chosen on other seeds than published

replica_t = np.dtype(
    [
        ("up", "i4"),  # 1 while requests may be sent there
        ("outstanding", "i4"),  # requests sent and not answered
        ("log_measured", "f8"),  # log of how much longer than in the router's tables it measured lone requests to take
        ("log_told", "f8"),  # the same with the slowdown at present that it tells
        ("log_slowness", "f8"),  # log of how much longer it takes than that, beside what all take
        ("told_at", "f8"),  # when it last told its work
        ("busy", "i4"),  # streams with a batch in flight then
        ("in_flight_ms", "f8"),  # what was left of these batches, in sum, as long as on the router's device
        ("level_at", "f8"),  # when `level` was worked out
        ("served_ms", "f8"),  # mean time that requests are served there
        ("latency_ms", "f8"),  # mean time of requests inside it
        ("age_ms", "f8"),  # mean time that requests and answers are on their way
    ],
    align=True,
)


class Ledger(NamedTuple):
    """What D doors know of R replicas.

    Attributes:
        replica: (D, R) records.
        count: (D, R, 2, M) requests sent there and not answered.
        work: (D, R, 2) their work up to each priority, ms; as all that is of work below.
        level: (D, R, 2) the same at ``level_at``, as if it were worked off from when it was sent: see ``left_ms``.
        held: (D, R, 2) work of what the replica last told to be in it, whoever sent it, ms.
        ended: (D, R, 2) work that has ended since, ms.
        done: (D, R, 2) work that ended lately while there was some, ms; its pace is this over ``busy``.
        busy: (D, R, 2) the time that that took, ms.
        beside: (D, R, 2, M) requests there that other doors sent, up to each priority, as far as answers tell.
        others: (D, R, 2) what they add to the work, ms.
        sent: (D,) requests that were sent at all.
        log_bias: (D, 2) log of real over foretold time, on average over the replicas.
        spread: (D, 2) standard deviation of that log.
    """

    replica: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    work: np.ndarray
    level: np.ndarray
    held: np.ndarray
    ended: np.ndarray
    done: np.ndarray
    busy: np.ndarray
    beside: np.ndarray
    others: np.ndarray
    sent: np.ndarray
    log_bias: np.ndarray
    spread: np.ndarray


class End(NamedTuple):
    """How a request ended.

    Attributes:
        took_ms: from when it was sent until its answer was there.
        inside_ms: the part of it that it was in the replica.
        executed: 0 where it was dropped, which says that it would have taken longer than that; below 0 where it says nothing.
    """

    took_ms: float
    inside_ms: float
    executed: int


class Report(NamedTuple):
    """What a replica tells of itself.

    Attributes:
        log_slowdown: log of how many times as long as it measured executions take there at present.
        busy: streams with a batch in flight.
        in_flight_ms: time left of these batches, in sum, as the replica foretells it.
        inside: (2, M) requests in it, queued and in flight, by priority and model, whoever sent them.
    """

    log_slowdown: float
    busy: int
    in_flight_ms: float
    inside: np.ndarray


class Routed(NamedTuple):
    """A request to be routed.

    Attributes:
        now: present time, ms.
        priority: HIGH or LOW.
        model: index.
        deadline: absolute, ms.
    """

    now: float
    priority: int
    model: int
    deadline: float


def make_ledger(doors: int, replicas: int, n_models: int) -> Ledger:
    """The ledger of doors that have sent nothing yet; all replicas are up."""
    ledger = Ledger(
        records((doors, replicas), replica_t),
        np.zeros((doors, replicas, 2, n_models), np.int64),
        np.zeros((doors, replicas, 2)),
        np.zeros((doors, replicas, 2)),
        np.zeros((doors, replicas, 2)),
        np.zeros((doors, replicas, 2)),
        np.full((doors, replicas, 2), FIRST_BUSY_MS),
        np.full((doors, replicas, 2), FIRST_BUSY_MS),
        np.zeros((doors, replicas, 2, n_models)),
        np.zeros((doors, replicas, 2)),
        np.zeros(doors, np.int64),
        np.zeros((doors, 2)),
        np.full((doors, 2), FIRST_SPREAD),
    )
    ledger.replica["up"] = 1
    return ledger


@njit
def send(ledger, tables, door, replica, request):
    """Note that a request is sent to a replica. Returns its time by the work alone, for ``answered``."""
    plain = plain_ms(ledger, tables, door, replica, request)
    level = ledger.level[door, replica]
    for priority in range(2):
        level[priority] = left_ms(ledger, door, replica, priority, request.now)
    one = ledger.replica[door, replica]
    one.level_at = request.now
    served_ms = SERVED * solo_total(tables, 0, request.model, 0)
    one.served_ms += (LATENCY_RATE if one.served_ms > 0.0 else 1.0) * (served_ms - one.served_ms)
    more = _count(ledger, tables, door, replica, request, 1)
    for priority in range(2):
        level[priority] += more[priority]
    ledger.sent[door] += 1
    return plain


@inlined
def _count(ledger, tables, door, replica, request, by):
    """Count a request more or less, with its work. Returns by how much that changes, up to each priority."""
    one = ledger.replica[door, replica]
    work = ledger.work[door, replica]
    before = (work[HIGH], work[LOW])
    one.outstanding += by
    for priority in range(2):
        n = unanswered(ledger, door, replica, priority, request.model)
        more = by if request.priority <= priority else 0
        difference = batches_ms(tables, request.model, n + more) - batches_ms(tables, request.model, n)
        # What is left of rounding must not add up.
        work[priority] = max(work[priority] + difference, 0.0) if one.outstanding > 0 else 0.0
    ledger.count[door, replica, request.priority, request.model] += by
    return work[HIGH] - before[HIGH], work[LOW] - before[LOW]


@njit
def answered(ledger, tables, door, replica, request, plain, end):
    """Note that a request has ended, however it ended.

    Args:
        ledger, tables, door, replica: where it was sent.
        request: as it was sent.
        plain: what ``send`` returned.
        end: how it ended.
    """
    one = ledger.replica[door, replica]
    less = _count(ledger, tables, door, replica, request, -1)
    if end.executed < 0:
        return
    for priority in range(2):
        ledger.ended[door, replica, priority] -= less[priority]
    priority = request.priority
    expected = math.log(plain) + ledger.log_bias[door, priority] + one.log_told + one.log_slowness
    # The first answer counts as it is: from 0 the averages would take long, and requests would seem to be gone at once.
    rate = LATENCY_RATE if one.latency_ms > 0.0 else 1.0
    one.latency_ms += rate * (end.inside_ms - one.latency_ms)
    one.age_ms += rate * (max(end.took_ms - end.inside_ms, 0.0) - one.age_ms)
    error = math.log(max(end.inside_ms, LEAST_MS)) - expected
    if end.executed == 0 and error <= 0.0:
        return
    error = min(max(error, -MOST_SURPRISE), MOST_SURPRISE)
    one.log_slowness += SLOWNESS_RATE * error
    # The replicas' own factors are about 0 on average: what all have in common is the bias.
    one.log_slowness = min(max((1.0 - SLOWNESS_RATE * 0.1) * one.log_slowness, -MOST_LOG_FACTOR), MOST_LOG_FACTOR)
    bias = ledger.log_bias[door, priority] + BIAS_RATE * error
    ledger.log_bias[door, priority] = min(max(bias, -MOST_LOG_FACTOR), MOST_LOG_FACTOR)
    variance = ledger.spread[door, priority] ** 2
    ledger.spread[door, priority] = math.sqrt(max(variance + SPREAD_RATE * (error * error - variance), 0.0025))


@njit
def told(ledger, tables, door, replica, now, report):
    """Note what a replica says of itself.

    What is not this door's own is that of others. What ended since it last said so shows its pace, if it had work then.

    Args:
        ledger, tables, door, replica: which.
        now: when that was, ms.
        report: as ``write_report`` gave it there.
    """
    one = ledger.replica[door, replica]
    elapsed = max(now - one.told_at, 0.0)
    one.told_at = now
    slower = min(max(report.log_slowdown, -MOST_LOG_FACTOR), MOST_LOG_FACTOR)
    before = one.log_told
    one.log_told = one.log_measured + (slower if abs(slower) >= SLOWDOWN_BELIEVED else 0.0)
    # What answers had shown of the change is not counted twice.
    change = one.log_told - before
    if change * one.log_slowness > 0.0:
        one.log_slowness -= change if abs(change) < abs(one.log_slowness) else one.log_slowness
    one.busy = report.busy
    one.in_flight_ms = report.in_flight_ms * math.exp(-one.log_told)
    inside = report.inside
    kept = math.exp(-elapsed / PACE_MS)
    done, busy = ledger.done[door, replica], ledger.busy[door, replica]
    for priority in range(2):
        held = 0.0
        others = 0.0
        for model in range(inside.shape[1]):
            n = 0
            beside = 0
            for up_to in range(priority + 1):
                n += inside[up_to, model]
                beside += max(inside[up_to, model] - ledger.count[door, replica, up_to, model], 0)
            held += batches_ms(tables, model, n)
            ledger.beside[door, replica, priority, model] = beside
            if beside > 0:  # with one door there is none
                own = unanswered(ledger, door, replica, priority, model)
                others += batches_ms(tables, model, own + beside) - batches_ms(tables, model, own)
        if ledger.held[door, replica, priority] > 0.0:
            done[priority] = kept * done[priority] + ledger.ended[door, replica, priority]
            busy[priority] = kept * busy[priority] + elapsed
        ledger.ended[door, replica, priority] = 0.0
        ledger.held[door, replica, priority] = held
        ledger.others[door, replica, priority] = others


@njit
def write_report(state, tables, env, now, inside):
    """The report of a replica, with its requests in ``inside`` (2, M or more)."""
    for model in range(state.queue.shape[2]):
        for priority in range(2):
            inside[priority, model] = state.queue[env, priority, model].length
    for stream in range(state.stream.shape[1]):
        s = state.stream[env, stream]
        if s.busy == 1:
            inside[HIGH, s.model] += s.n_high
            inside[LOW, s.model] += s.n - s.n_high
    busy, _, left = left_in_flight(state, tables, env, now)
    return Report(state.scheduler[env].log_slowdown, busy, left, inside)


@njit
def forget(ledger, door, replica):
    """A replica is lost: nothing is sent there, and what was sent is not waited for."""
    one = ledger.replica[door, replica]
    one.up = 0
    one.outstanding = 0
    one.log_slowness = 0.0
    one.busy = 0
    one.in_flight_ms = 0.0
    for priority in range(2):
        ledger.work[door, replica, priority] = 0.0
        ledger.others[door, replica, priority] = 0.0
        ledger.level[door, replica, priority] = 0.0
        ledger.ended[door, replica, priority] = 0.0
        ledger.held[door, replica, priority] = 0.0
        ledger.done[door, replica, priority] = FIRST_BUSY_MS
        ledger.busy[door, replica, priority] = FIRST_BUSY_MS
        for model in range(ledger.count.shape[3]):
            ledger.count[door, replica, priority, model] = 0
            ledger.beside[door, replica, priority, model] = 0.0
