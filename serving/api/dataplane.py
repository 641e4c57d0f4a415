"""The plane of a server with an engine of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from envs.scheduling.state import LOW
from serving.api.config import ApiConfig
from serving.api.model_view import ModelView, view_model
from serving.api.plane import BIG, Answer, Caller, Plane, RepositoryApi
from serving.api.refusal import Kind, Refusal
from serving.engine.admission import Admission
from serving.engine.engine import Engine
from serving.engine.quotes import Quote
from serving.engine.request import Observer, Origin, Request, RequestResult


class DataPlane(Plane):
    """Answers by an engine of this process.

    Args:
        engine: started, on the loop of the listeners.
        config: see `Plane`, as the rest.

    Attributes:
        observers: what must observe the engine for this to answer: the wait in the queues, and statistics.
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
        self.observers: tuple[Observer, ...] = (self._admission, self._statistics)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.engine.accepting

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are served; the same object until they change."""
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
        factor, floor_ms = self.config.deadline_factor, self.config.deadline_floor_ms
        views = {}
        for name, model in self.engine.served().items():
            priority, deadline_ms = (None, None) if self.repository is None else self.repository.defaults(name)
            if deadline_ms is None:
                deadline_ms = max(floor_ms, factor * self.engine.scheduler.alone_ms(name))
            views[name] = view_model(model, deadline_ms, LOW if priority is None else priority)
        return views

    async def serve(
        self, view: ModelView, values: np.ndarray, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call; see `Plane.infer`."""
        requests = self._offer(view.name, priority, deadline_ms, list(values), caller.origin)
        try:
            results = await _ends(requests)
            if len(values) * view.output_item_bytes < BIG:
                return _answer(results)
            return await asyncio.get_running_loop().run_in_executor(None, _answer, results)
        finally:
            # All have ended if all went well; if not, none is worth its time any more.
            for request in requests:
                self.engine.cancel(request)

    def quote(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """What a request could expect by the state of the engine; see `Plane.quote`."""
        try:
            return self.engine.quotes.quote(view.name, priority, deadline_ms)
        except KeyError:
            raise Refusal(Kind.NOT_FOUND, f"model {view.name!r} is not served any more") from None

    def _offer(
        self, model: str, priority: int, deadline_ms: float, values: list[np.ndarray], origin: Origin
    ) -> list[Request]:
        """Hand requests to the engine, unless the queue ahead of them puts their deadline out of reach."""
        try:
            message = self._admission.refusal(model, priority, deadline_ms)
            if not message:
                return self.engine.offer(model, priority, deadline_ms, values, origin=origin)
            self.engine.refuse(model, priority, deadline_ms, len(values), message, origin)
        except KeyError:
            raise Refusal(Kind.NOT_FOUND, f"model {model!r} is not served any more") from None
        raise Refusal(Kind.UNREACHABLE, message, observed=True)


async def _ends(requests: list[Request]) -> list[RequestResult]:
    """The ends of all requests, or the Refusal of the first that was not answered."""
    for request in requests:  # those that are refused on arrival, before waiting for the others
        if request.future.done():
            _answered(request.future.result())
    return [_answered(await request.future) for request in requests]


def _answered(result: RequestResult) -> RequestResult:
    if not result.answered:
        raise Refusal.of(result)
    return result


def _answer(results: list[RequestResult]) -> Answer:
    outputs = [result.output for result in results if result.output is not None]
    output = outputs[0][np.newaxis] if len(outputs) == 1 else np.stack(outputs)
    worst: dict[str, int | str] = {
        "outcome": "late" if "late" in [one.outcome for one in results] else "met",
        "latency_us": round(1e3 * max([one.latency_ms for one in results])),
        "queue_us": round(1e3 * max([one.queue_ms for one in results])),
        "batch_size": max([one.batch_size for one in results]),
        "predicted_us": round(1e3 * max([one.predicted_ms for one in results])),
    }
    return Answer(output, worst)
