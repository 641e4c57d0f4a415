"""The plane of a server with an engine of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from envs.scheduling.state import CANCELLED, FAILED, LATE, LOW, MET, OUTCOMES, QUANTILES
from serving.api.answer import Answer, Caller, answer_of, ends_of, items_of
from serving.api.config import ApiConfig
from serving.api.infer_call import InferCall
from serving.api.model_view import ModelView, view_model
from serving.api.plane import BIG, Plane, RepositoryApi
from serving.api.processes.steps import SteppedModel
from serving.api.refusal import Kind, Refusal
from serving.engine.admission import Admission
from serving.engine.engine import Engine
from serving.engine.quotes import Quote
from serving.engine.request import Observer, Request
from serving.models.served import ServedModel
from serving.models.tensors import Item, split_bucket
from serving.status.recent import QueueLengths
from traces.errors import InputError


class DataPlane(Plane):
    """Answers by an engine of this process.

    Args:
        engine: started, on the loop of the listeners.
        config: see `Plane`, as the rest.

    Attributes:
        observers: what must observe the engine for this to answer: the wait in the queues, statistics, and the last seconds.
        why_policy: why the policy was chosen, one line.
    """

    def __init__(
        self,
        engine: Engine,
        config: ApiConfig,
        repository: RepositoryApi | None = None,
        metrics: Callable[[], tuple[bytes, str]] | None = None,
    ) -> None:
        super().__init__(config, repository, metrics)
        self.engine = engine
        self._admission = Admission(engine.scheduler, engine.now_ms)
        self.observers: tuple[Observer, ...] = (self._admission, self._statistics, self._recent)
        self.why_policy: Callable[[], str] = lambda: "as --policy says"
        self._stepped: dict[str, SteppedModel] = {}  # by the names under which their buckets are scheduled

    def prepare(self) -> None:
        """Describe the models before the first request comes, which starts the processes of their own steps."""
        self.views  # noqa: B018

    def close(self) -> None:
        """End the processes of the models' own steps."""
        for stepped in set(self._stepped.values()):
            stepped.close()

    def stepped(self, view: ModelView) -> SteppedModel | None:
        """The steps before and after a model; None if it has none."""
        return self._stepped.get(view.scheduled)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.accepting

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Names under which the models in memory are scheduled; the same object until they change."""
        return self.engine.models

    @property
    def queue_places(self) -> int:
        """Requests that a queue holds."""
        return self.engine.config.queue_places

    @property
    def watching(self) -> Sequence[Observer]:
        """The observers of the engine."""
        return self.engine.observers

    def _view_models(self) -> dict[str, ModelView]:
        evicted = {} if self.repository is None else self.repository.evicted
        factor, floor_ms = self.config.deadline_factor, self.config.deadline_floor_ms
        served: dict[str, list[ServedModel]] = {}
        for one in self.engine.served().values():
            served.setdefault(one.model, []).append(one)
        served |= {name: list(one.models) for name, one in evicted.items() if name not in served}
        views = {}
        before, self._stepped = self._stepped, {}
        for name, models in served.items():
            priority, given_ms = (None, None) if self.repository is None else self.repository.defaults(name)
            out, at_hand = evicted.get(name), self.engine.scheduler.index
            alone_ms = [
                self.engine.scheduler.alone_ms(one.name)
                if one.name in at_hand or out is None
                else out.alone_ms[one.name]
                for one in models
            ]
            deadlines_ms = [max(floor_ms, factor * ms) if given_ms is None else given_ms for ms in alone_ms]
            view = views[name] = view_model(models, deadlines_ms, LOW if priority is None else priority)
            steps = models[0].preprocess, models[0].postprocess
            if any(steps):
                stepped = before.get(models[0].name)
                if stepped is None or any(a is not b for a, b in zip(stepped.steps, steps)):  # it was loaded again
                    stepped = SteppedModel(view, models[0], self.config.step_processes)
                views[name] = stepped.view
                self._stepped |= {one.name: stepped for one in models}
        for gone in set(before.values()) - set(self._stepped.values()):
            gone.close()
        return views

    def serve(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Coroutine[Any, Any, Answer]:
        """Serve a call; see `Plane.infer`."""
        stepped = self.stepped(view)
        if stepped is None:
            return self._serve_model(view, call, priority, deadline_ms, caller)
        return self._serve_stepped(stepped, call, priority, deadline_ms, caller)

    async def _serve_stepped(
        self, stepped: SteppedModel, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call of a model with steps on the host; the deadline is the whole call's."""
        begin_ms, n = self.engine.now_ms(), call.n_items
        due_ms, held = begin_ms + deadline_ms, list[Request]()

        def check(view: ModelView, steps_ms: float, words: str) -> float:
            left_ms = due_ms - steps_ms - self.engine.now_ms()
            if left_ms > 0.0:
                return left_ms
            message = f"deadline of {deadline_ms:.1f} ms is out of reach: {words}"
            raise self.refuse(view, priority, deadline_ms, n, message, caller)

        def settle(outcome: int, message: str = "") -> None:
            self.engine.settle(held, outcome, message, begin_ms, due_ms)

        steps_ms, smallest = stepped.expected_ms(n), stepped.smallest(call.size)
        # Whether it is for the time that the steps are thought to take if this call is refused.
        by_steps = self.engine.queued == 0 or steps_ms + self._alone_ms(smallest) > deadline_ms
        try:
            left_ms = check(smallest, steps_ms, f"its preprocess and postprocess take {steps_ms:.1f} ms")
            self._admit(smallest, priority, left_ms, n, caller)
            try:
                values, size = await stepped.before(call.values, call.size, due_ms - self.engine.now_ms())
            except Refusal:
                by_steps = False
                raise
            own = stepped.inner.bucket(size)
            left_ms = check(own, stepped.after_ms(n), "its preprocess took too long")
            answer = await self._serve_model(own, stepped.whole(call, values, size), priority, left_ms, caller, held)
            outputs = stepped.chosen(call, await stepped.after(answer.outputs))
        except BaseException as error:
            kind = error.kind if isinstance(error, Refusal) else None
            if by_steps and kind is Kind.UNREACHABLE:
                stepped.doubt()
            # Of several items one may be out of reach: then nobody waits for the answers of the others.
            left = kind is Kind.UNREACHABLE or isinstance(error, asyncio.CancelledError)
            settle(CANCELLED if left else FAILED, str(error) or "cancelled after the model had answered")
            raise
        took_ms = self.engine.now_ms() - begin_ms
        outcome = MET if took_ms <= deadline_ms else LATE
        settle(outcome)
        return Answer(outputs, answer.parameters | {"outcome": OUTCOMES[outcome], "latency_us": round(1e3 * took_ms)})

    def _alone_ms(self, view: ModelView) -> float:
        """Time that a request of a model takes alone; 0 for one that is out of memory."""
        try:
            return self.engine.scheduler.alone_ms(view.scheduled)
        except KeyError:
            return 0.0

    async def _serve_model(
        self,
        view: ModelView,
        call: InferCall,
        priority: int,
        deadline_ms: float,
        caller: Caller,
        held: list[Request] | None = None,
    ) -> Answer:
        """Serve a call of the model itself, its inputs as it takes them; ``held`` gets requests whose end comes later."""
        loading_ms = 0.0
        if not self.engine.serves(view.scheduled):
            loading_ms = await self.bring_back(view, deadline_ms)
        values = items_of(call.values)
        requests = self._offer(view, priority, deadline_ms - loading_ms, values, caller, held is not None)
        if held is not None:
            held += requests
        try:
            results = await ends_of(requests)
            outputs = [(one.place, view.outputs[one.place]) for one in call.outputs]
            work = partial(answer_of, results, outputs, loading_ms)
            if call.n_items * view.output_item_bytes < BIG:
                return work()
            return await asyncio.get_running_loop().run_in_executor(None, work)
        finally:
            # All have ended if all went well; if not, none is worth its time any more.
            for request in requests:
                self.engine.cancel(request)

    def quote(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """What a request could expect by the state of the engine; see `Plane.quote`."""
        stepped = self.stepped(view)
        if stepped is None:
            return self._quote_model(view, priority, deadline_ms)
        steps_ms = stepped.expected_ms(1)
        probability, finish_ms = self._quote_model(view, priority, deadline_ms - steps_ms)
        return Quote(probability, {level: ms + steps_ms for level, ms in finish_ms.items()})

    def _quote_model(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """The same of the model itself."""
        try:
            return self.engine.quotes.quote(view.scheduled, priority, deadline_ms)
        except KeyError:
            out = self._evicted(view)
        if out is None:
            raise Refusal(Kind.NOT_FOUND, f"model {view.name!r} is not served any more")
        finish_ms = out.load_ms + out.alone_ms[view.scheduled]
        return Quote(float(finish_ms <= deadline_ms), dict.fromkeys(QUANTILES, finish_ms))

    def refuse(
        self, view: ModelView, priority: int, deadline_ms: float, n: int, message: str, caller: Caller
    ) -> Refusal:
        """See `Plane.refuse`."""
        try:
            self.engine.refuse(view.scheduled, priority, deadline_ms, n, message, caller.origin)
        except KeyError:  # it is out of memory, or going
            return Refusal(Kind.UNREACHABLE, message)
        return Refusal(Kind.UNREACHABLE, message, observed=True)

    def scheduling(self) -> dict[str, Any]:
        """See `Plane.scheduling`."""
        return {"policy": self.engine.guard.name, "high_weight": self.engine.scheduler.high_weight}

    def now_ms(self) -> float:
        """See `Plane.now_ms`."""
        return self.engine.now_ms()

    def queue_lengths(self) -> QueueLengths:
        """See `Plane.queue_lengths`."""
        lengths = self.engine.scheduler.queue_lengths.T.tolist()
        return {model: both for model, both in zip(self.engine.models, lengths) if any(both)}

    def in_force(self) -> dict[str, Any]:
        """See `Plane.in_force`."""
        engine, guard = self.engine, self.engine.guard
        replaced = f"it replaced {guard.policy.name}: {guard.replaced}"
        return self.scheduling() | {
            "reason": self.why_policy() if guard.replaced is None else replaced,
            "accepting": engine.accepting,
            "streams": engine.scheduler.streams,
            "busy": engine.in_flight,
            "fallbacks": guard.fallbacks,
            "note": "",
        }

    def set_high_weight(self, value: float) -> None:
        """See `Plane.set_high_weight`."""
        self.engine.scheduler.high_weight = value

    async def bring_back(self, view: ModelView, deadline_ms: float) -> float:
        """Have a model loaded that is out of memory, unless that takes longer than its deadline allows; ms that it took.

        Raises:
            Refusal: the deadline is out of reach, or it cannot be loaded.
        """
        begin_ms, evicted = self.engine.now_ms(), self._evicted(view)
        if self.repository is None or evicted is None:
            return 0.0  # it is not served any more, as `_offer` will say
        finish_ms = evicted.load_ms + evicted.alone_ms[view.scheduled]
        if finish_ms > deadline_ms:
            raise Refusal(
                Kind.UNREACHABLE,
                f"deadline of {deadline_ms:.1f} ms is out of reach: model {view.name!r} must be loaded first, "
                f"predicted finish at {finish_ms:.1f} ms",
            )
        try:
            await asyncio.shield(asyncio.ensure_future(self.repository.bring_back(split_bucket(view.scheduled)[0])))
        except InputError as error:
            raise Refusal(Kind.FULL, str(error)) from None
        waited_ms = self.engine.now_ms() - begin_ms
        if waited_ms >= deadline_ms:
            raise Refusal(Kind.UNREACHABLE, f"deadline of {deadline_ms:.1f} ms has passed while it was loaded")
        return waited_ms

    def _evicted(self, view: ModelView) -> Any:
        """What is kept of a model that is out of memory; None if it is not."""
        return None if self.repository is None else self.repository.evicted.get(split_bucket(view.scheduled)[0])

    def _offer(
        self, view: ModelView, priority: int, deadline_ms: float, values: list[Item], caller: Caller, held: bool
    ) -> list[Request]:
        """Hand requests to the engine, unless the queue ahead of them puts their deadline out of reach."""
        self._admit(view, priority, deadline_ms, len(values), caller)
        try:
            return self.engine.offer(view.scheduled, priority, deadline_ms, values, None, caller.origin, held)
        except KeyError:
            raise Refusal(Kind.NOT_FOUND, f"model {view.scheduled!r} is not served any more") from None

    def _admit(self, view: ModelView, priority: int, deadline_ms: float, n: int, caller: Caller) -> None:
        """Refuse n requests if the queue ahead of them puts their deadline out of reach."""
        try:
            message = self._admission.refusal(view.scheduled, priority, deadline_ms)
        except KeyError:  # it is out of memory, or going
            return
        if message:
            raise self.refuse(view, priority, deadline_ms, n, message, caller)
