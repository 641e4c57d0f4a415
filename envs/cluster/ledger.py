"""What a router knows of its replicas: what it sent them, what came back, and what their answers tell.

The simulated cluster and the live one keep the same ledger with the same functions. From it ``envs.cluster.foretell`` works out
when a replica would end a request. How foretold and real times compare, the ledger learns for each priority, and so what
batching and streams side by side save; how much slower a replica is than others, it says itself.

Axes: D doors (processes that route, each with knowledge of its own), R replicas, 2 priorities, M models.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from envs.cluster.foretell import LEAST_MS, plain_ms, still_there
from envs.scheduling.jit import inlined, njit
from envs.scheduling.quote import left_in_flight
from envs.scheduling.state import HIGH, LOW, records

BIAS_RATE = 0.01  # of the factor that all replicas share, by priority
SPREAD_RATE = 0.01
AVERAGE_RATE = 0.02  # of mean times
FIRST_SPREAD = 0.3  # of the log of real over foretold time
MOST_SURPRISE = 1.0  # bound on that log: an outlier moves what is learned no further
MOST_LOG_FACTOR = 3.0
SLOWDOWN_BELIEVED = 0.25  # least log of a slowdown that a replica is believed; below is noise, and all are chosen by it

replica_t = np.dtype(
    [
        ("up", "i4"),  # 1 while requests may be sent there
        ("outstanding", "i4"),  # requests sent and not answered
        ("log_measured", "f8"),  # log of how much longer than in the router's tables it measured lone requests to take
        ("log_told", "f8"),  # the same with the slowdown at present that it tells
        ("told_at", "f8"),  # when it last told what is in it
        ("busy", "i4"),  # streams with a batch in flight then
        ("in_flight_ms", "f8"),  # what was left of these batches, in sum, as long as on the router's device
        ("sent_at", "f8"),  # when a request was last sent there; `Ledger.recent` is as of then
        ("age_ms", "f8"),  # mean time that requests and answers are on their way
    ],
    align=True,
)


class Ledger(NamedTuple):
    """What D doors know of R replicas.

    Attributes:
        replica: (D, R) records.
        count: (D, R, 2, M) requests sent there and not answered.
        recent: (D, R, 2, M) requests sent there, each counting less the longer ago that was: see ``still_there``.
        beside: (D, R, 2, M) requests there that other doors sent, up to each priority, as far as answers tell.
        load_ms: (D, R, M) how long it takes there to load a model that is out of memory, and 0 of one that is in it, as told.
        slack_ms: (D, 2, M) mean time from when requests were sent to their deadlines.
        stay_ms: (D, 2, M) mean time that requests were in a replica.
        sent: (D,) requests that were sent at all.
        log_bias: (D, 2) log of real over foretold time, on average over the replicas.
        spread: (D, 2) standard deviation of that log.
    """

    replica: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    recent: np.ndarray
    beside: np.ndarray
    load_ms: np.ndarray
    slack_ms: np.ndarray
    stay_ms: np.ndarray
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
    by_model = (doors, replicas, 2, n_models)
    ledger = Ledger(
        replica=records((doors, replicas), replica_t),
        count=np.zeros(by_model, np.int64),
        recent=np.zeros(by_model),
        beside=np.zeros(by_model),
        load_ms=np.zeros((doors, replicas, n_models)),
        slack_ms=np.zeros((doors, 2, n_models)),
        stay_ms=np.zeros((doors, 2, n_models)),
        sent=np.zeros(doors, np.int64),
        log_bias=np.zeros((doors, 2)),
        spread=np.full((doors, 2), FIRST_SPREAD),
    )
    ledger.replica["up"] = 1
    return ledger


@njit
def send(ledger, tables, door, replica, request):
    """Note that a request is sent to a replica. Returns its time by the work alone, for ``answered``."""
    plain = plain_ms(ledger, tables, door, replica, request)
    one = ledger.replica[door, replica]
    recent = ledger.recent[door, replica]
    for priority in range(2):
        for model in range(recent.shape[1]):
            if recent[priority, model] > 0.0:
                recent[priority, model] *= still_there(ledger, door, priority, model, request.now - one.sent_at)
    one.sent_at = request.now
    recent[request.priority, request.model] += 1.0
    ledger.count[door, replica, request.priority, request.model] += 1
    one.outstanding += 1
    slack_ms = ledger.slack_ms[door, request.priority]
    slack_ms[request.model] = _averaged(slack_ms[request.model], max(request.deadline - request.now, LEAST_MS))
    ledger.sent[door] += 1
    return plain


@inlined
def _averaged(mean, value):
    """A mean with one value more. The first counts as it is: from 0, it would take long."""
    return mean + AVERAGE_RATE * (value - mean) if mean > 0.0 else value


@njit
def answered(ledger, door, replica, request, plain, end):
    """Note that a request has ended, however it ended.

    Args:
        ledger, door, replica: where it was sent.
        request: as it was sent.
        plain: what ``send`` returned.
        end: how it ended.
    """
    one = ledger.replica[door, replica]
    priority = request.priority
    ledger.count[door, replica, priority, request.model] -= 1
    one.outstanding -= 1
    if end.executed < 0:
        return
    one.age_ms = _averaged(one.age_ms, max(end.took_ms - end.inside_ms, 0.0))
    stay_ms = ledger.stay_ms[door, priority]
    stay_ms[request.model] = _averaged(stay_ms[request.model], max(end.inside_ms, LEAST_MS))
    error = math.log(max(end.inside_ms, LEAST_MS) / plain) - ledger.log_bias[door, priority] - one.log_told
    if end.executed == 0 and error <= 0.0:
        return
    error = min(max(error, -MOST_SURPRISE), MOST_SURPRISE)
    bias = ledger.log_bias[door, priority] + BIAS_RATE * error
    ledger.log_bias[door, priority] = min(max(bias, -MOST_LOG_FACTOR), MOST_LOG_FACTOR)
    variance = ledger.spread[door, priority] ** 2
    ledger.spread[door, priority] = math.sqrt(max(variance + SPREAD_RATE * (error * error - variance), 0.0025))


@njit
def told(ledger, door, replica, now, report):
    """Note what a replica says of itself. Requests that are not this door's own are those of others.

    Args:
        ledger, door, replica: which.
        now: when that was, ms.
        report: as ``write_report`` gave it there.
    """
    one = ledger.replica[door, replica]
    one.told_at = now
    slower = min(max(report.log_slowdown, -MOST_LOG_FACTOR), MOST_LOG_FACTOR)
    one.log_told = one.log_measured + (slower if abs(slower) >= SLOWDOWN_BELIEVED else 0.0)
    one.busy = report.busy
    one.in_flight_ms = report.in_flight_ms * math.exp(-one.log_told)
    inside = report.inside
    for model in range(inside.shape[1]):
        beside = 0
        for priority in range(2):
            beside += max(inside[priority, model] - ledger.count[door, replica, priority, model], 0)
            ledger.beside[door, replica, priority, model] = beside


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
    one.busy = 0
    one.in_flight_ms = 0.0
    for model in range(ledger.count.shape[3]):
        ledger.load_ms[door, replica, model] = 0.0
        for priority in range(2):
            ledger.count[door, replica, priority, model] = 0
            ledger.recent[door, replica, priority, model] = 0.0
            ledger.beside[door, replica, priority, model] = 0.0
