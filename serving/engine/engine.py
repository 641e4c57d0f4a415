"""The live engine: one asyncio loop owns the scheduling state, the executor's threads own the device.

The loop moves the same state by the same operations as the simulator (envs.simulation.events), with the real clock instead of a
virtual one: at an arrival, a completion or a timer it moves the state to now, drops what is out of reach, and asks the
policy until it defers or nothing can be dispatched. Clients' requests that come in one tick of the loop arrive together
(`serving.engine.timers.Coalescer`). Every request offered ends exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.scheduling.state import CANCELLED, DROPPED, FAILED
from serving.engine.batch import BatchInFlight
from serving.engine.config import EngineConfig
from serving.engine.guard import GuardedPolicy
from serving.engine.ledger import Ledger, unreachable
from serving.engine.model_set import join_profiles
from serving.engine.quotes import Quotes
from serving.engine.request import (
    FAULT,
    FULL,
    LEFT,
    STOPPING,
    UNLOADED,
    UNNAMED,
    UNREACHABLE,
    BatchRecord,
    Observer,
    Origin,
    Request,
    RequestResult,
)
from serving.engine.runner import BatchRunner
from serving.engine.scheduler import AdjustTables, LiveScheduler, unchanged
from serving.engine.timers import Coalescer, Timer
from serving.engine.warmup import warm_up
from serving.executors.base import BatchResult
from serving.executors.executor import Executor
from serving.models.served import ServedModel
from serving.models.tensors import Item
from traces.errors import InputError

log = logging.getLogger(__name__)

Given = Item | np.ndarray


class Engine:
    """Serves requests by a policy on an executor.

    Args:
        executor: the device, with all models of the profile loaded; the engine takes over its `on_result`.
        profile: what the scheduler knows of the models; exactly those to serve, in the order of their indices.
        policy: decides.
        config: settings.
        adjust_tables: the change that the policy makes to what the scheduler knows (see `agents.learned.names.resolve`).

    Attributes:
        scheduler: what the policy knows and decides on.
        quotes: what a request could expect, see `serving.engine.quotes`.
        observers: see the end of each request and batch.
        offered: (2,) requests offered by priority.
        ended: (2, 6) requests ended, by priority and outcome.
        batches: batches ended.
        guard: the policy in force, and how it does.
        accepting: whether requests are taken: started, and not stopping.
    """

    def __init__(
        self,
        executor: Executor,
        profile: Profile,
        policy: Policy,
        config: EngineConfig | None = None,
        adjust_tables: AdjustTables = unchanged,
    ) -> None:
        self.executor = executor
        self.config = config or EngineConfig()
        loaded = executor.models
        for name in profile.models:
            if name not in loaded:
                raise InputError(f"model {name!r} is in the profile, but not loaded")
        self.scheduler = LiveScheduler(profile, adjust_tables, executor.streams, self.config.queue_places)
        self.scheduler.high_weight = self.config.high_weight
        self.guard = GuardedPolicy(policy, self.scheduler, self.config.decision_budget_ms)
        self.quotes = Quotes(self.scheduler, lambda: self.guard.order, self.now_ms)
        self.observers: list[Observer] = [self.quotes]
        self.ledger = Ledger(self.observers)
        self.offered, self.ended = self.ledger.offered, self.ledger.ended
        self.batches = 0
        self.clock_start_ms = time.perf_counter() * 1e3
        self._requests = self.ledger.inside
        self._runner = BatchRunner(executor, self._on_part, self._on_end, self._pump)
        self._timer = Timer(self.now_ms, self._pump)
        self._coalescer = Coalescer(self._pump)
        self.accepting = False
        self._leaving: set[str] = set()
        # What ended and was not told yet: batches, and requests (number, outcome) with the time.
        self._batch_records: list[BatchRecord] = []
        self._finished: list[tuple[list[tuple[int, int]], float]] = []

    # What can be asked.

    def now_ms(self) -> float:
        """The engine's clock: ms since it was made."""
        return time.perf_counter() * 1e3 - self.clock_start_ms

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are served; the same object until they change."""
        return self.scheduler.profile.models

    @property
    def profile(self) -> Profile:
        """What the scheduler knows of the models beforehand."""
        return self.scheduler.profile

    @property
    def in_flight(self) -> int:
        """Streams with a batch."""
        return self.scheduler.in_flight

    @property
    def queued(self) -> int:
        """Requests in all queues."""
        return self.scheduler.queued

    def served(self) -> dict[str, ServedModel]:
        """The models that are served, by name."""
        loaded = self.executor.models
        return {name: loaded[name] for name in self.models}

    def serves(self, model: str) -> bool:
        """Whether requests of a model are taken now."""
        return model in self.scheduler.index and model not in self._leaving

    # A request's way in and out.

    async def start(self, warm_executor: bool = True) -> None:
        """Compile and warm up everything that a request will meet, then take requests.

        Args:
            warm_executor: False where every model has run at every batch size on every stream.
        """
        loop = asyncio.get_running_loop()
        policies = (self.guard.policy, self.guard.fallback)
        await loop.run_in_executor(None, warm_up, self.scheduler.tables, self.scheduler.streams, policies)
        for name in self.models if warm_executor else ():
            await loop.run_in_executor(None, self.executor.warm_up, name, self.profile.batch_sizes)
        self._runner.start(loop)
        self.accepting = True

    async def submit(self, model: str, priority: int, deadline_ms: float, values: Given) -> RequestResult:
        """Serve one request; when the calling task is cancelled, so is the request. Arguments as in `offer`."""
        return (await self.submit_all(model, priority, deadline_ms, [values]))[0]

    async def submit_all(
        self, model: str, priority: int, deadline_ms: float, values: Sequence[Given]
    ) -> list[RequestResult]:
        """Serve several requests of one model and return when all have ended. Arguments as in `offer`."""
        requests = self.offer(model, priority, deadline_ms, values)
        try:
            return [await request.future for request in requests]
        except asyncio.CancelledError:
            for request in requests:
                self.cancel(request)
            raise

    def offer(
        self,
        model: str,
        priority: int,
        deadline_ms: float,
        values: Sequence[Given],
        arrival_ms: float | None = None,
        origin: Origin = UNNAMED,
        held: bool = False,
    ) -> list[Request]:
        """Hand in requests that arrive together; their results come in their `future`. Call on the engine's loop.

        Args:
            model: name of a served model.
            priority: 0 (high) or 1 (low).
            deadline_ms: relative to the arrival.
            values: one item per request: an array for each input of the model, or the array of its only input.
            arrival_ms: when they arrived, if not now.
            origin: what their client says of them.
            held: whether an answer is not their end, but `settle` is.

        Raises:
            KeyError: no such model.
        """
        m, scheduler, ledger, loop = self._index(model), self.scheduler, self.ledger, asyncio.get_running_loop()
        now = self.now_ms()
        arrival = now if arrival_ms is None else min(arrival_ms, now)
        requests = []
        for one in values:
            result = ledger.new(model, priority, arrival, arrival + deadline_ms, now, origin)
            item = one if type(one) is tuple else (one,)
            request = Request(result, m, item, loop.create_future(), held=held)  # type: ignore[arg-type]
            requests.append(request)
            ledger.open(request)
            self.quotes.arrives(result, m)
            if not self.accepting:
                ledger.close(request, DROPPED, STOPPING, "the server is stopping", now)
            elif not scheduler.arrive(now, arrival, priority, m, result.id, result.deadline_ms):
                self._collect(now, FULL, f"the queue of model {model!r} is full ({self.config.queue_places} requests)")
        # A trace's arrivals are decided on one by one, as in the simulator; so is what would not fit into one batch.
        if arrival_ms is not None or scheduler.n_queued[0] >= scheduler.tables.size[-1]:
            self._pump()
        else:
            self._coalescer.arrived()
        return requests

    def refuse(
        self, model: str, priority: int, deadline_ms: float, count: int, message: str, origin: Origin = UNNAMED
    ) -> None:
        """Count requests that are turned away before they are offered, since their deadline is out of reach.

        Each is offered and dropped at once: observers see it as they see all others.

        Args:
            model: name of a served model.
            priority: 0 (high) or 1 (low).
            deadline_ms: from now.
            count: how many.
            message: one line for people.
            origin: what their client says of them.

        Raises:
            KeyError: no such model.
        """
        self._index(model)
        now = self.now_ms()
        for _ in range(count):
            result = self.ledger.new(model, priority, now, now + deadline_ms, now, origin)
            self.ledger.refuse(result, UNREACHABLE, message, now)

    def _index(self, model: str) -> int:
        if model in self._leaving:
            raise KeyError(model)
        return self.scheduler.index[model]

    def settle(
        self, requests: Sequence[Request], outcome: int, message: str, arrival_ms: float, deadline_ms: float
    ) -> None:
        """Note the end of requests that were held, unless they ended unanswered.

        Args:
            requests: of one call.
            outcome: MET, LATE, FAILED or CANCELLED.
            message: one line for people.
            arrival_ms, deadline_ms: of the whole call, on the engine's clock.
        """
        reason, now = {FAILED: FAULT, CANCELLED: LEFT}.get(outcome, ""), self.now_ms()
        for request in requests:
            if request.future.done() and request.result.id in self._requests:
                request.result.arrival_ms, request.result.deadline_ms = arrival_ms, deadline_ms
                self.ledger.settle(request, outcome, reason, message, now)

    def cancel(self, request: Request) -> None:
        """Give a request up: at once when it is queued; its result is discarded when it is in flight."""
        result = request.result
        if result.id not in self._requests:
            return
        if self.scheduler.cancel(result.priority, request.model_index, result.id):
            self._collect(self.now_ms(), LEFT, "cancelled in the queue")
            self._set_timer()
        else:
            request.discarded = True

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Take no more requests, finish those inside for at most `timeout_s`, then end the rest as dropped or failed."""
        self.accepting = False
        if self._requests:
            try:
                await asyncio.wait_for(self.ledger.empty(), timeout_s)
            except TimeoutError:
                log.warning("stopping with %d requests queued and %d batches in flight", self.queued, self.in_flight)
        now = self.now_ms()
        self.scheduler.drop_all()
        self._collect(now, STOPPING, "the server is stopping")
        for request in list(self._requests.values()):
            self.ledger.close(request, FAILED, STOPPING, "the server is stopping", now)
        self._timer.set(math.inf)

    # Changes while serving. Requests of other models, queued or in flight, notice nothing.

    async def reload_policy(self, policy: Policy, adjust_tables: AdjustTables = unchanged) -> None:
        """Let another policy decide from now on; the predictor keeps what it learned. Arguments as for the engine."""
        tables = adjust_tables(self.profile.tables())
        await asyncio.get_running_loop().run_in_executor(None, warm_up, tables, self.scheduler.streams, (policy,))
        self.scheduler.adjust(adjust_tables)
        self.guard.install(policy)
        self.guard.bind()
        self._pump()

    def put_model(self, known: Profile, loaded_as: str) -> None:
        """Serve a further model, or another one in place of that of its name. Call on the engine's loop.

        What is in flight ends on the model that it began on. What is queued goes to the new one, if that takes its input.

        Args:
            known: what the scheduler knows of it beforehand.
            loaded_as: its name in the executor, which has warmed it up; changed.

        Raises:
            InputError: the batch sizes differ.
        """
        (name,) = known.models
        profile = join_profiles(self.profile, known)
        self.executor.rename(loaded_as, name)
        self._drop_queued(name, self.executor.models[name])
        self._change_models(profile)

    async def remove_model(self, name: str) -> None:
        """Serve a model no more: what is queued is dropped, what is in flight ends first.

        Raises:
            InputError: it is not served, or it is the only one.
        """
        if name not in self.models or name in self._leaving:
            raise InputError(f"model {name!r} is not served; served are {', '.join(self.models)}")
        if len(self.models) - len(self._leaving) == 1:
            raise InputError(f"model {name!r} is the only one left; load another before it is unloaded")
        self._leaving.add(name)
        try:
            self._drop_queued(name)
            await self._runner.until_none_of(name)
            self._change_models(self.profile.select([other for other in self.models if other != name]))
        finally:
            self._leaving.discard(name)

    def _drop_queued(self, name: str, new: ServedModel | None = None) -> None:
        """Drop what is queued for a model, but for inputs that the new one of its name takes."""
        for request in self._requests.values():
            result, values = request.result, request.values
            if (
                result.model == name
                and result.batch_id < 0
                and (new is None or values is None or not new.takes(values))
            ):
                self.scheduler.cancel(result.priority, request.model_index, result.id)
        self._collect(self.now_ms(), UNLOADED, f"model {name!r} was unloaded")

    def _change_models(self, profile: Profile) -> None:
        self.scheduler.change_models(profile)
        for request in self._requests.values():
            # Of one that is held, the model may be gone.
            request.model_index = self.scheduler.index.get(request.result.model, -1)
        # A policy's memory may be about models by their old indices.
        self.guard.policy.reset(1)
        self.guard.fallback.reset(1)
        self.guard.bind()
        self._pump()

    # The decision loop.

    def _pump(self) -> None:
        """Ask the policy until it defers or nothing can be dispatched, then tell what ended: the device goes first."""
        scheduler, guard, grace = self.scheduler, self.guard, self.config.grace_ms
        while True:
            # The clock is read in each round: a decision takes time, and a short batch may have run meanwhile.
            now = self.now_ms()
            ready = scheduler.poll(now, guard.drop, grace)
            if scheduler.n_ended[0]:  # the poll has dropped some
                self._collect(now, UNREACHABLE, "")
            if not ready:
                break
            action, wake = guard.decide()
            if action == scheduler.defer_action:
                action = scheduler.defer(wake)
                if action < 0:
                    break
            # A dispatch is followed by another question: streams are left, and the policy answers one batch at a time.
            self._launch(scheduler.dispatch(action))
            if not scheduler.n_queued[0]:  # the usual end at low load, which spares a poll
                break
        self._set_timer()
        self._tell()

    def _launch(self, stream: int) -> None:
        """The state has a new batch on a stream: hand it to the executor."""
        record, members = self.scheduler.batch_on(stream)
        self._runner.launch(stream, BatchInFlight.dispatched(record, [self._requests[id_] for id_ in members]))

    def _set_timer(self) -> None:
        """Look again when something is to be done even if nothing happens before."""
        waiting = self.scheduler.n_queued[0] > 0
        self._timer.set(self.scheduler.next_timer(self.guard.drop, self.config.grace_ms) if waiting else math.inf)

    # Ends of batches and of requests.

    def _on_part(self, batch: BatchInFlight, result: BatchResult) -> None:
        self.batches += 1
        if self.observers:
            self._batch_records.append(batch.record(result, self.clock_start_ms, self.now_ms()))

    def _on_end(self, stream: int, batch: BatchInFlight) -> None:
        now = self.now_ms()
        self.scheduler.finish(now, stream, batch.exec_ms if batch.teaches else -1.0)
        self._finished.append((self.scheduler.take_ended(), now))

    def _tell(self) -> None:
        """Tell observers and clients of the batches that ended."""
        while self._batch_records:
            record = self._batch_records.pop(0)
            for observer in self.observers:
                observer.batch_ended(record)
        while self._finished:
            self._close(*self._finished.pop(0), FAULT, "")

    def _collect(self, now: float, reason: str, message: str) -> None:
        """Close the requests that ended in the state since the last look; what the state does not know is given."""
        self._close(self.scheduler.take_ended(), now, reason, message)

    def _close(self, ended: list[tuple[int, int]], now: float, reason: str, message: str) -> None:
        for id_, outcome in ended:
            request = self._requests.get(id_)
            if request is None:
                continue  # it ended as the server stopped
            if reason == UNLOADED:  # taken out of the queue as if it were cancelled, but not by its client
                outcome = DROPPED
            elif reason == UNREACHABLE:
                message = unreachable(request.result, self.scheduler.alone_ms(request.result.model), now)
            self.ledger.end(request, outcome, reason, message, now)
