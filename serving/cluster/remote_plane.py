"""The plane of a door: it serves nothing itself, but sends each call to the replica that its router chooses."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from agents.routing.base import RouterKind
from envs.cluster.ledger import End, Routed
from envs.scheduling.state import PRIORITIES
from serving.api.config import ApiConfig
from serving.api.model_view import ModelView
from serving.api.plane import Answer, Caller, Plane
from serving.api.refusal import Kind, Refusal
from serving.api.tensors import DATATYPES
from serving.cluster.frames import AnswerFrame, InferFrame
from serving.cluster.link import Link, LinkConfig, Lost
from serving.cluster.routing import LiveLedger, tables_of
from serving.engine.quotes import Quote
from serving.engine.request import Observer, RequestResult
from traces.errors import InputError


class RemotePlane(Plane):
    """Answers by replicas.

    A request whose replica is lost is sent to another while time is left, at most `retries` times: it may then have begun on
    two, which does no harm, and is answered once.

    Args:
        config: what one client may ask, and defaults of its requests.
        peers: host and port of each replica; None for one that is not placed yet, see `Link.move`.
        router: chooses among them.
        link: how to speak to them.
        retries: how often a request is sent again at most.

    Attributes:
        count: requests by what became of them: sent, answered, refused, retried, lost, unreachable.
        on_quote: called with the probability that a call is in time, as it comes; None: nobody asks.
        observers: see the ends of requests and what is refused.
    """

    def __init__(
        self,
        config: ApiConfig,
        peers: Sequence[tuple[str, int] | None],
        router: RouterKind,
        link: LinkConfig,
        retries: int,
    ) -> None:
        super().__init__(config, _Repository(self), self._render)
        self.router, self.retries = router, retries
        self.count: Counter[str] = Counter()
        self.on_quote: Callable[[float], None] | None = None
        self.observers: list[Observer] = [self._statistics]
        self._greeting: dict[str, Any] = {}
        self._served: tuple[str, ...] = ()
        self._ledger: LiveLedger | None = None
        self._id = 0
        self._came = asyncio.Event()
        self.links = [Link(peer, link, self._on_change, self._on_held) for peer in peers]

    async def some_replica(self) -> None:
        """Wait until a replica is there."""
        await self._came.wait()

    async def close(self) -> None:
        """End the connections."""
        for link in self.links:
            await link.close()

    @property
    def ready(self) -> bool:
        """Whether some replica takes requests."""
        return any(link.accepting for link in self.links)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that the replicas serve."""
        return self._served

    @property
    def queue_places(self) -> int:
        """Requests that a queue of a replica holds."""
        return int(self._greeting.get("queue_places", 0))

    @property
    def watching(self) -> Sequence[Observer]:
        """The observers of this door."""
        return self.observers

    def _view_models(self) -> dict[str, ModelView]:
        views = {}
        for one in self._greeting.get("models", []):
            dtype = np.dtype(one["dtype"])
            datatype = next(name for name, known in DATATYPES.items() if known == dtype)
            shapes = tuple(one["item"]), one["output_datatype"], tuple(one["output_item"])
            views[one["name"]] = ModelView(
                one["name"], dtype, datatype, *shapes, one["below"], one["deadline_ms"], one["priority"]
            )
        return views

    # Replicas come and go.

    def _on_change(self, link: Link) -> None:
        if not hasattr(self, "links"):
            return  # the first of them, before all are made
        place = self.links.index(link)
        if link.greeting is not None:
            served = tuple(one["name"] for one in link.greeting["models"])
            if self._ledger is None or served != self._served:
                self._serve_models(link.greeting, served)
            self._came.set()
        assert self._ledger is not None or link.greeting is None
        if self._ledger is None:
            return
        if link.greeting is None:
            self._ledger.away(place)
        elif link.accepting and self._names_of(link) == self._served:
            self._ledger.up(place)
        else:
            self._ledger.drains(place)

    def _serve_models(self, greeting: dict[str, Any], served: tuple[str, ...]) -> None:
        """Serve what a replica serves. What the ledger learned is of other models now, so it begins anew."""
        self._greeting, self._served = greeting, served
        tables = tables_of(greeting["batch_sizes"], [one["total_ms"] for one in greeting["models"]])
        self._ledger = LiveLedger(self.router, len(self.links), tables)
        for place, link in enumerate(self.links):
            if link.accepting and self._names_of(link) == served:
                self._ledger.up(place)

    @staticmethod
    def _names_of(link: Link) -> tuple[str, ...]:
        return tuple(one["name"] for one in link.greeting["models"]) if link.greeting else ()

    def _on_held(self, link: Link, held: tuple[float, float]) -> None:
        if self._ledger is not None:
            self._ledger.told(self.links.index(link), _now_ms(), held)

    # Requests.

    async def serve(
        self, view: ModelView, values: np.ndarray, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call; see `Plane.infer`."""
        arrival = _now_ms()
        due, n, tries = arrival + deadline_ms, len(values), 0
        body = np.ascontiguousarray(values, view.dtype).data.cast("B")
        self.count["sent"] += 1
        while True:
            now = _now_ms()
            if now >= due:
                self.count["unreachable"] += 1
                raise self._end(
                    view, priority, arrival, due, n, Refusal(Kind.UNREACHABLE, _too_late(deadline_ms, tries))
                )
            ledger = self._ledger
            if ledger is None or view.name not in self._served:
                raise Refusal(Kind.NOT_FOUND, f"model {view.name!r} is not served any more")
            request = Routed(now, priority, self._served.index(view.name), due)
            if self.on_quote is not None and not tries:
                self.on_quote(ledger.quote(request).probability)
            chosen = ledger.route(request, n)
            if chosen is None:
                raise self._end(view, priority, arrival, due, n, Refusal(Kind.STOPPING, "no replica takes requests"))
            sent, generation = chosen
            executed, inside_ms = -1, 0.0
            try:
                frame = InferFrame(
                    0, request.model, priority, due - now, n, caller.origin.client_id.encode(),
                    caller.origin.traceparent.encode(), body,
                )  # fmt: skip
                answer = await self.links[sent.replica].infer(frame)
                executed, inside_ms = 1, answer.latency_ms
            except Lost as lost:
                tries += 1
                self.count["lost"] += 1
                if tries > self.retries:
                    raise self._end(view, priority, arrival, due, n, Refusal(Kind.STOPPING, str(lost))) from None
                self.count["retried"] += 1
                continue
            except Refusal as refusal:
                executed = 0 if refusal.kind is Kind.UNREACHABLE else -1
                self.count["refused"] += 1
                raise self._end(view, priority, arrival, due, n, refusal) from None
            finally:
                took_ms = _now_ms() - now
                ledger.ended(sent, generation, End(took_ms, inside_ms if executed > 0 else took_ms, executed))
            self.count["answered"] += 1
            return self._answered(view, answer, priority, arrival, due)

    def quote(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """What a request could expect by the ledger; see `Plane.quote`."""
        if self._ledger is None or view.name not in self._served:
            raise Refusal(Kind.NOT_FOUND, f"model {view.name!r} is not served any more")
        now = _now_ms()
        return self._ledger.quote(Routed(now, priority, self._served.index(view.name), now + deadline_ms))

    def _answered(self, view: ModelView, answer: AnswerFrame, priority: int, arrival: float, due: float) -> Answer:
        now = _now_ms()
        output_dtype = DATATYPES[view.output_datatype]
        if answer.items * view.output_item_bytes != len(answer.values):
            raise Refusal(Kind.FAULT, f"a replica answered {len(answer.values)} bytes for {answer.items} items")
        output = np.frombuffer(answer.values, output_dtype).reshape(answer.items, *view.output_item)
        late = answer.late or now > due  # the way back counts
        for _ in range(answer.items):
            self._show(
                view.name, priority, arrival, due, "late" if late else "met", now - answer.latency_ms + answer.queue_ms
            )
        parameters: dict[str, int | str] = {
            "outcome": "late" if late else "met",
            "latency_us": round(1e3 * (now - arrival)),
            "queue_us": round(1e3 * answer.queue_ms),
            "batch_size": answer.batch_size,
            "predicted_us": round(1e3 * answer.predicted_ms),
        }
        return Answer(output, parameters)

    def _end(self, view: ModelView, priority: int, arrival: float, due: float, n: int, refusal: Refusal) -> Refusal:
        """Show the end of the items of a call that is not answered; they were requests here, whatever the replica saw."""
        for _ in range(n):
            self._show(view.name, priority, arrival, due, "dropped", float("nan"), str(refusal))
        refusal.observed = True
        return refusal

    def _show(
        self, model: str, priority: int, arrival: float, due: float, outcome: str, start: float, message: str = ""
    ) -> None:
        self._id += 1
        result = RequestResult(
            id=self._id, model=model, priority=priority, outcome=outcome, message=message, arrival_ms=arrival,
            deadline_ms=due, offered_ms=arrival, start_ms=start, finish_ms=_now_ms(),
        )  # fmt: skip
        for observer in self.observers:
            observer.request_ended(result)

    # Metrics.

    def _render(self) -> tuple[bytes, str]:
        registry = CollectorRegistry()
        events = Gauge("strait_door_requests", "Calls by what became of them", ["event"], registry=registry)
        for event, number in self.count.items():
            events.labels(event).set(number)
        up = Gauge("strait_replica_up", "Whether a replica takes requests", ["replica"], registry=registry)
        outstanding = Gauge(
            "strait_replica_outstanding", "Requests sent and not answered", ["replica"], registry=registry
        )
        slowness = Gauge(
            "strait_replica_log_slowness", "Log of its time over that of all", ["replica"], registry=registry
        )
        placed = [(place, link) for place, link in enumerate(self.links) if link.address is not None]
        for place, link in placed:
            up.labels(link.name).set(link.accepting)
            if self._ledger is not None:
                known = self._ledger.ledger.replica[0, place]
                outstanding.labels(link.name).set(int(known["outstanding"]))
                slowness.labels(link.name).set(float(known["log_slowness"]))
        work = Gauge("strait_replica_work_ms", "Work outstanding", ["replica", "priority"], registry=registry)
        if self._ledger is not None:
            for place, link in placed:
                for number, priority in enumerate(PRIORITIES):
                    work.labels(link.name, priority).set(float(self._ledger.ledger.work[0, place, number]))
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _Repository:
    """The replicas' repositories as one: a model is loaded on one replica after the other."""

    def __init__(self, plane: RemotePlane) -> None:
        self._plane = plane

    def defaults(self, name: str) -> tuple[int | None, float | None]:
        return None, None  # they come with the models' views

    def index(self) -> list[dict[str, str]]:
        return list(self._plane._greeting.get("index", []))

    async def load(self, name: str) -> None:
        await self._change(True, name)

    async def unload(self, name: str) -> None:
        await self._change(False, name)

    async def _change(self, load: bool, name: str) -> None:
        for link in self._plane.links:
            if link.accepting:
                try:
                    await link.change(load, name)
                except Refusal as refusal:
                    if refusal.kind is Kind.NOT_FOUND:
                        raise KeyError(name) from None
                    raise InputError(f"replica {link.name}: {refusal}") from None
                except Lost as lost:
                    raise InputError(str(lost)) from None


def _now_ms() -> float:
    return time.perf_counter() * 1e3


def _too_late(deadline_ms: float, tries: int) -> str:
    lost = f" after {tries} lost replicas" if tries else ""
    return f"deadline of {deadline_ms:.3f} ms has passed{lost}"
