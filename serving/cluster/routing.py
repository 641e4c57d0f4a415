"""The live ledger of a door: the functions of the simulated cluster, bound to this process's arrays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from agents.routing.base import RouterKind
from envs.cluster.foretell import LEAST_MS, best_chance, work_ms
from envs.cluster.ledger import End, Report, Routed, answered, forget, make_ledger, send, told, write_report
from envs.scheduling.jit import bind
from envs.scheduling.state import HIGH, LOW, N_DEMAND, N_FEATURES, QUANTILES, Tables, device_t, records
from serving.cluster.frames import COUNT, COUNT_BYTES, MS, MS_BYTES, Told
from serving.engine.compiled import ENV
from serving.engine.quotes import Quote
from serving.engine.scheduler import LiveScheduler

DOOR = 0  # a process has one ledger
NORMAL = {level: NormalDist().inv_cdf(level) for level in QUANTILES}  # quantiles of the normal distribution


class EngineState:
    """What an engine tells of itself: the requests in it, what is left in flight, how slow it is at present, and what it lacks.

    Args:
        scheduler: the engine's.
        load_ms: how long it takes to load a model that the scheduler does not know, since it is out of memory.
    """

    def __init__(self, scheduler: LiveScheduler, load_ms: Callable[[str], float]) -> None:
        self._scheduler, self._load_ms = scheduler, load_ms
        self._prepare(())
        self._write = bind(write_report, scheduler.state, scheduler.tables, ENV, 0.0, self._inside)

    def _prepare(self, names: tuple[str, ...]) -> None:
        self._profile, self._names = self._scheduler.profile, names
        index = self._scheduler.index
        # Behind the last model there is a 0, for those that are out of memory.
        self._inside = np.zeros((2, len(index) + 1), np.int32)
        self._places = np.array([index.get(name, len(index)) for name in names], np.intp)
        load_ms = [0.0 if name in index else self._load_ms(name) for name in names]
        self._loads = np.array(load_ms, MS).tobytes() if any(load_ms) else b""

    def told(self, names: tuple[str, ...], now: float) -> Told:
        """Its words at ``now``, ms on the engine's clock; requests are of these models, of which some may be out of memory."""
        scheduler = self._scheduler
        if scheduler.profile is not self._profile or names != self._names:
            self._prepare(names)
        said = self._write(scheduler.state, scheduler.tables, ENV, now, self._inside)
        inside = self._inside[:, self._places].astype(COUNT).tobytes()
        return Told(said.log_slowdown, said.busy, said.in_flight_ms, inside, self._loads)


class Sent(NamedTuple):
    """Requests that were sent together.

    Attributes:
        replica: where.
        request: as it was routed.
        plain_ms: what the ledger foretold of each.
    """

    replica: int
    request: Routed
    plain_ms: list[float]


def tables_of(
    batch_sizes: Sequence[int], total_ms: Sequence[Sequence[float]], share: Sequence[Sequence[float]]
) -> Tables:
    """Tables of models of which only the time alone is known, copies and all, and the device's share in it: (M, B) each."""
    solo = np.ascontiguousarray(total_ms, float)[None]
    none = np.zeros_like(solo)
    device = records((1,), device_t)
    device["unit_ms"] = solo[0, :, 0].mean()
    return Tables(
        size=np.array(batch_sizes, np.int32),
        solo=solo,
        h2d=none,
        d2h=none.copy(),
        demand=np.zeros((*solo.shape, N_DEMAND)),
        share=np.ascontiguousarray(share, float)[None],
        device=device,
        quantile=np.ones((1, len(QUANTILES))),
        weight=np.zeros((1, N_FEATURES)),
        cov=np.zeros((1, N_FEATURES, N_FEATURES)),
    )


class LiveLedger:
    """What a door knows of its replicas, and where it sends requests.

    Args:
        kind: the router.
        replicas: how many there are; all are away at first.
        tables: of the models, see `tables_of`.
    """

    def __init__(self, kind: RouterKind, replicas: int, tables: Tables) -> None:
        self.kind = kind
        self.tables = tables
        self.ledger = make_ledger(1, replicas, tables.solo.shape[1])
        self.ledger.replica["up"] = 0
        self._inside = np.zeros((2, tables.solo.shape[1]), np.int64)
        request = Routed(0.0, 0, 0, 0.0)
        ledger = self.ledger
        self._route: Any = kind.bound(ledger, tables)
        self._send = bind(send, ledger, tables, DOOR, 0, request)
        self._answered = bind(answered, ledger, DOOR, 0, request, 0.0, End(0.0, 0.0, 0))
        self._best_chance = bind(best_chance, ledger, tables, DOOR, request)
        self._work_ms: Any = bind(work_ms, ledger, tables, DOOR, 0, LOW, 0.0)
        self._told = bind(told, ledger, DOOR, 0, 0.0, Report(0.0, 0, 0.0, self._inside))
        self._generation = [0] * replicas

    def up(self, replica: int, lone_ms: Sequence[float]) -> None:
        """A replica takes requests; it measured lone ones of the models to take ``lone_ms`` (M,)."""
        known = self.ledger.replica[DOOR, replica]
        known["up"] = 1
        times_as_long = np.maximum(lone_ms, LEAST_MS) / np.maximum(self.tables.solo[0, :, 0], LEAST_MS)
        known["log_measured"] = known["log_told"] = math.log(float(times_as_long.mean()))

    def drains(self, replica: int) -> None:
        """A replica takes no more requests, but answers those that it has."""
        self.ledger.replica["up"][DOOR, replica] = 0

    def away(self, replica: int) -> None:
        """A replica is lost."""
        self._generation[replica] += 1
        forget(self.ledger, DOOR, replica)

    def route(self, request: Routed, n: int) -> tuple[Sent, int] | None:
        """Choose a replica for n items and count them there. Returns what `ended` takes; None where no replica is up."""
        draw = np.uint64(random.getrandbits(64))
        replica = self._route(self.ledger, self.tables, DOOR, request, draw)
        if replica < 0:
            return None
        plain = [self._send(self.ledger, self.tables, DOOR, replica, request) for _ in range(n)]
        # A call counts once: by items, calls of two would all go to every other replica.
        self.ledger.sent[DOOR] -= n - 1
        return Sent(replica, request, plain), self._generation[replica]

    def quote(self, request: Routed) -> Quote:
        """What a request could expect on the replica that would end it first."""
        probability, foretold = self._best_chance(self.ledger, self.tables, DOOR, request)
        spread = float(self.ledger.spread[DOOR, request.priority])
        return Quote(probability, {level: foretold * math.exp(z * spread) for level, z in NORMAL.items()})

    def work_ms(self, replica: int, now: float) -> tuple[float, float]:
        """Work that a replica has at ``now``: that of high priority alone, and what low priority adds to it."""
        high, both = (self._work_ms(self.ledger, self.tables, DOOR, replica, priority, now) for priority in (HIGH, LOW))
        return high, both - high

    def ended(self, sent: Sent, generation: int, end: End) -> None:
        """Requests ended; see `envs.cluster.ledger.answered`. Those of a replica that was lost since are forgotten."""
        if generation == self._generation[sent.replica]:
            for plain in sent.plain_ms:
                self._answered(self.ledger, DOOR, sent.replica, sent.request, plain, end)

    def told(self, replica: int, now: float, said: Told) -> None:
        """A replica tells of itself."""
        # Where it serves other models, its next greeting will say so.
        if len(said.inside) == self._inside.size * COUNT_BYTES:
            self._inside.ravel()[:] = np.frombuffer(said.inside, COUNT)
            report = Report(said.log_slowdown, said.busy, said.in_flight_ms, self._inside)
            self._told(self.ledger, DOOR, replica, now, report)
            load_ms = self.ledger.load_ms[DOOR, replica]
            load_ms[:] = np.frombuffer(said.load_ms, MS) if len(said.load_ms) == len(load_ms) * MS_BYTES else 0.0
