"""The plane of a door: it serves nothing itself, but sends each call to the replica that its router chooses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.routing.base import RouterKind
from envs.cluster.ledger import End, Routed
from serving.api.answer import Answer, Caller
from serving.api.config import ApiConfig
from serving.api.infer_call import InferCall
from serving.api.model_view import ModelView
from serving.api.plane import Plane
from serving.api.refusal import Kind, Refusal, too_large
from serving.cluster.door_metrics import DoorMetrics
from serving.cluster.frames import AnswerFrame, InferFrame, SentTensor, Told
from serving.cluster.greeting import NO_GREETING, Greeting, scheduled_views
from serving.cluster.link import Link, LinkConfig, Lost
from serving.cluster.remote_repository import RemoteRepository
from serving.cluster.routing import LiveLedger, tables_of
from serving.engine.quotes import Quote
from serving.engine.request import Observer, RequestResult
from serving.models.tensors import VARIES, TensorSpec, from_bytes, to_bytes
from traces.errors import InputError

log = logging.getLogger(__name__)


# How calls end that are not answered; "left": their client has gone, "refused": for any other reason.
ENDS = {
    Kind.UNREACHABLE: "unreachable",
    Kind.STOPPING: "unavailable",
    Kind.TOO_LARGE: "too_large",
    Kind.FAULT: "failed",
}


class _Place(NamedTuple):
    """Where a model stands.

    Attributes:
        view: among the greeting's views, its buckets together.
        scheduled: among what the ledger schedules, its buckets one by one.
    """

    view: int
    scheduled: int


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
        count: calls that came (`sent`), how each ended (`ENDS`), and how often one was `lost` with its replica and `retried`.
        on_quote: called with the probability that a call is in time, as it comes; None: nobody asks.
        observers: see the ends of requests and what is refused.
        greeting: of the replicas that serve what this door serves.
        ledger: what is known of the replicas; None before the first is there.
        changing: calls that load or unload a model now, on one replica after the other.
    """

    def __init__(
        self,
        config: ApiConfig,
        peers: Sequence[tuple[str, int] | None],
        router: RouterKind,
        link: LinkConfig,
        retries: int,
    ) -> None:
        self._models = RemoteRepository(self)
        super().__init__(config, self._models, DoorMetrics(self).render)
        self.router, self.retries = router, retries
        self.count: Counter[str] = Counter()
        self._inside = 0
        self._stopping = False
        self._empty = asyncio.Event()
        self.on_quote: Callable[[float], None] | None = None
        self.observers: list[Observer] = [self._statistics, self._recent]
        self.greeting = NO_GREETING
        self._places: dict[str, _Place] = {}  # by the name under which a model is scheduled
        self._served: tuple[str, ...] = ()
        self.ledger: LiveLedger | None = None
        self._id = 0
        self._came = asyncio.Event()
        self.changing = 0
        self._there: set[Link] = set()
        self._odd: set[str] = set()  # replicas that the log says serve something else
        self.links = [Link(peer, link, self._on_change, self._on_told) for peer in peers]

    async def some_replica(self) -> None:
        """Wait until a replica is there."""
        await self._came.wait()

    async def close(self) -> None:
        """End the connections."""
        for link in self.links:
            await link.close()

    async def drain(self, timeout_s: float) -> None:
        """Take no more calls, and let those inside end, for at most so long."""
        self._stopping = True
        if self._inside:
            log.info("draining for at most %g s", timeout_s)
            self._empty.clear()  # it was set whenever the last call of some had ended
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    @property
    def ready(self) -> bool:
        """Whether calls are taken, and some replica takes requests."""
        return not self._stopping and any(link.accepting for link in self.links)

    def is_used(self, place: int) -> bool:
        """Whether a replica gets requests: it takes some, and serves what this door serves."""
        return self.ledger is not None and bool(self.ledger.ledger.replica["up"][0, place])

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Names under which the replicas schedule their models."""
        return self._served

    @property
    def queue_places(self) -> int:
        """Requests that a queue of a replica holds."""
        return self.greeting.queue_places

    @property
    def watching(self) -> Sequence[Observer]:
        """The observers of this door."""
        return self.observers

    def now_ms(self) -> float:
        """See `Plane.now_ms`."""
        return _now_ms()

    def in_force(self) -> dict[str, Any]:
        """See `Plane.in_force`."""
        used = sum(map(self.is_used, range(len(self.links))))
        return {
            "policy": f"router {self.router.name}",
            "reason": "as --router says",
            "accepting": self.ready,
            "streams": 0,
            "busy": 0,
            "fallbacks": 0,
            "note": f"This server sends each request to one of its replicas, of which {used} take requests. Their "
            "streams, queues and predictions are not shown here: each replica has a status page of its own.",
        }

    def _view_models(self) -> dict[str, ModelView]:
        return dict(self.greeting.views)

    # Replicas come and go.

    def _on_change(self, link: Link) -> None:
        if not hasattr(self, "links"):
            return  # the first of them, before all are made
        place = self.links.index(link)
        if link.greeting is None:
            self._there.discard(link)
        elif link not in self._there:
            self._there.add(link)
            self._models.came(link, link.greeting)
        self.agree()
        if self.ledger is None:
            return
        if link.greeting is None:
            self.ledger.away(place)
        elif not self._take_up(self.ledger, place, link):
            self.ledger.drains(place)

    def agree(self) -> None:
        """Serve what most replicas serve that take requests; where as many serve something else, what is served stays."""
        said = {link.name: link.greeting for link in self.links if link.greeting is not None and link.accepting}
        signatures = {name: one.signature for name, one in said.items()}  # each worked out once: there may be many
        counts, served = Counter(signatures.values()), self.greeting.signature
        if said and (self.ledger is None or counts[served] < max(counts.values())):
            most = [name for name, signature in signatures.items() if counts[signature] == max(counts.values())]
            self._serve_models(said[most[-1]])
            served = self.greeting.signature
        for name, signature in signatures.items() if not self.changing else ():
            if signature == served:
                if name in self._odd:
                    self._odd.discard(name)
                    log.info("replica %s serves what this door serves, and gets requests again", name)
            elif name not in self._odd:
                self._odd.add(name)
                log.warning(
                    "replica %s serves other models (%s); it gets no requests", name, ", ".join(said[name].views)
                )

    def _serve_models(self, greeting: Greeting) -> None:
        """Serve what a replica serves. What the ledger learned is of other models now, so it begins anew."""
        log.info("the replicas serve %s", ", ".join(greeting.views))
        self._came.set()
        self.greeting, self._served = greeting, greeting.scheduled
        own = {name: number for number, name in enumerate(greeting.scheduled)}
        self._places = {
            one.scheduled: _Place(number, own[one.scheduled])
            for number, (name, view) in enumerate(greeting.views.items())
            for one in scheduled_views({name: view})
        }
        tables = tables_of(greeting.batch_sizes, list(greeting.total_ms.values()), list(greeting.share.values()))
        self.ledger = LiveLedger(self.router, len(self.links), tables)
        for place, link in enumerate(self.links):
            self._take_up(self.ledger, place, link)

    def _take_up(self, ledger: LiveLedger, place: int, link: Link) -> bool:
        """Send to a replica from now on, if it takes requests for the models that this door serves; says whether."""
        said = link.greeting
        if said is None or not link.accepting or said.signature != self.greeting.signature:
            return False
        ledger.up(place, [row[0] for row in said.total_ms.values()])
        return True

    def _on_told(self, link: Link, told: Told) -> None:
        if self.ledger is not None:
            self.ledger.told(self.links.index(link), _now_ms(), told)

    # Requests.

    async def serve(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call; see `Plane.infer`."""
        self.count["sent"] += 1
        self._inside += 1
        end = "left"
        try:
            if self._stopping:
                stopping = Refusal(Kind.STOPPING, "the server is stopping")
                raise self._end_at_once(view, priority, deadline_ms, call.n_items, stopping)
            answer = await self._serve(view, call, priority, deadline_ms, caller)
            end = "answered"
            return answer
        except Refusal as refusal:
            end = ENDS.get(refusal.kind, "refused")
            raise
        finally:
            self.count[end] += 1
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def _serve(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        arrival = _now_ms()
        due, n, tries = arrival + deadline_ms, call.n_items, 0
        inputs = tuple(SentTensor(place, one.shape, to_bytes(one)) for place, one in enumerate(call.values))
        outputs = tuple(one.place for one in call.outputs)
        if sum(len(one.values) for one in inputs) > self.greeting.most_bytes:
            raise self._end(view, priority, arrival, due, n, too_large(self.greeting.most_bytes))
        while True:
            now = _now_ms()
            if now >= due:
                raise self._end(
                    view, priority, arrival, due, n, Refusal(Kind.UNREACHABLE, _too_late(deadline_ms, tries))
                )
            ledger, place = self._place(view)
            request = Routed(now, priority, place.scheduled, due)
            if self.on_quote is not None and not tries:
                self.on_quote(ledger.quote(request).probability)
            chosen = ledger.route(request, n)
            if chosen is None:
                raise self._end(view, priority, arrival, due, n, Refusal(Kind.STOPPING, "no replica takes requests"))
            sent, generation = chosen
            executed, inside_ms = -1, 0.0
            try:
                link = self.links[sent.replica]
                greeting = link.greeting.number if link.greeting is not None else 0
                frame = InferFrame(
                    0, greeting, place.view, priority, due - now, caller.origin.client_id.encode(),
                    caller.origin.traceparent.encode(), outputs, inputs,
                )  # fmt: skip
                answer = await link.infer(frame)
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
                raise self._end(view, priority, arrival, due, n, refusal) from None
            finally:
                took_ms = _now_ms() - now
                ledger.ended(sent, generation, End(took_ms, inside_ms if executed > 0 else took_ms, executed))
            return self._answered(view, call, answer, priority, arrival, due)

    def quote(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """What a request could expect by the ledger; see `Plane.quote`."""
        ledger, place = self._place(view)
        now = _now_ms()
        return ledger.quote(Routed(now, priority, place.scheduled, now + deadline_ms))

    def refuse(
        self, view: ModelView, priority: int, deadline_ms: float, n: int, message: str, caller: Caller
    ) -> Refusal:
        """See `Plane.refuse`."""
        self.count["sent"] += 1
        self.count["unreachable"] += 1
        return self._end_at_once(view, priority, deadline_ms, n, Refusal(Kind.UNREACHABLE, message))

    def _end_at_once(self, view: ModelView, priority: int, deadline_ms: float, n: int, refusal: Refusal) -> Refusal:
        """Show the end of a call that comes now and is sent to no replica."""
        now = _now_ms()
        return self._end(view, priority, now, now + deadline_ms, n, refusal)

    def _place(self, view: ModelView) -> tuple[LiveLedger, _Place]:
        place = self._places.get(view.scheduled)
        if self.ledger is None or place is None:
            raise Refusal(Kind.NOT_FOUND, f"model {view.name!r} is not served any more")
        return self.ledger, place

    def _answered(
        self, view: ModelView, call: InferCall, answer: AnswerFrame, priority: int, arrival: float, due: float
    ) -> Answer:
        now, n = _now_ms(), call.n_items
        if [one.place for one in answer.outputs] != [one.place for one in call.outputs]:
            raise Refusal(Kind.FAULT, f"a replica answered {len(answer.outputs)} other outputs than were asked for")
        outputs = tuple(_output(view.outputs[one.place], one, n) for one in answer.outputs)
        late = answer.late or now > due  # the way back counts
        for _ in range(n):
            self._show(
                view.scheduled, priority, arrival, due, "late" if late else "met",
                now - answer.latency_ms + answer.queue_ms,
            )  # fmt: skip
        parameters: dict[str, int | str] = {
            "outcome": "late" if late else "met",
            "latency_us": round(1e3 * (now - arrival)),
            "queue_us": round(1e3 * answer.queue_ms),
            "batch_size": answer.batch_size,
            "predicted_us": round(1e3 * answer.predicted_ms),
        }
        return Answer(outputs, parameters)

    def _end(self, view: ModelView, priority: int, arrival: float, due: float, n: int, refusal: Refusal) -> Refusal:
        """Show the end of the items of a call that is not answered; they were requests here, whatever the replica saw."""
        for _ in range(n):
            self._show(view.scheduled, priority, arrival, due, "dropped", float("nan"), refusal)
        refusal.observed = True
        return refusal

    def _show(
        self,
        model: str,
        priority: int,
        arrival: float,
        due: float,
        outcome: str,
        start: float,
        refusal: Refusal | None = None,
    ) -> None:
        self._id += 1
        reason, message = ("", "") if refusal is None else (refusal.reason, str(refusal))
        result = RequestResult(
            id=self._id, model=model, priority=priority, outcome=outcome, reason=reason, message=message,
            arrival_ms=arrival, deadline_ms=due, offered_ms=arrival, start_ms=start, finish_ms=_now_ms(),
        )  # fmt: skip
        for observer in self.observers:
            observer.request_ended(result)


def _output(spec: TensorSpec, sent: SentTensor, n: int) -> np.ndarray:
    """An output of n items. Raises Refusal: it is not as the model has it."""
    fits = len(sent.shape) == 1 + len(spec.shape) and sent.shape[0] == n
    if not fits or any(b not in (a, VARIES) for a, b in zip(sent.shape[1:], spec.shape)):
        raise Refusal(Kind.FAULT, f"{spec.name}: a replica answered shape {list(sent.shape)} for {n} items")
    try:
        return from_bytes(sent.values, spec, sent.shape)
    except InputError as error:
        raise Refusal(Kind.FAULT, f"a replica answered {error}") from None


def _now_ms() -> float:
    return time.perf_counter() * 1e3


def _too_late(deadline_ms: float, tries: int) -> str:
    lost = f" after {tries} lost replicas" if tries else ""
    return f"deadline of {deadline_ms:.3f} ms has passed{lost}"
