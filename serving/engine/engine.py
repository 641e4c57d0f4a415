"""The live engine: one asyncio loop owns the scheduling state, the executor's threads own the device.

The loop moves the same state by the same operations as the simulator (envs.simulation.events), with the real clock instead of a
virtual one: at an arrival, a completion or a timer it moves the state to now, drops what is out of reach, and asks the
policy until it defers or nothing can be dispatched. Clients' requests that come in one turn of the loop arrive together
(`serving.engine.together`). Every request offered ends exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.scheduling.operations import clear, invalidate_forecast
from envs.scheduling.state import DROPPED, FAILED, SchedState, Tables, make_state, n_actions
from serving.engine.alarm import Alarm
from serving.engine.batch import Flight
from serving.engine.compiled import compile_core
from serving.engine.config import EngineConfig
from serving.engine.guard import GuardedPolicy
from serving.engine.ledger import Ledger, unreachable
from serving.engine.model_set import join_profiles, move_state
from serving.engine.request import FAULT, FULL, LEFT, STOPPING, UNLOADED, UNREACHABLE, Observer, Outcome, Request
from serving.engine.together import Together
from serving.engine.warmup import warm_up
from serving.executors.base import BatchResult, Executor
from serving.models.served import ServedModel
from traces.errors import InputError

log = logging.getLogger(__name__)


class Engine:
    """Serves requests by a policy on an executor.

    Args:
        executor: the device, with all models of the profile loaded; the engine takes over its `on_result`.
        profile: what the scheduler is told; exactly the models to serve, in the order of their indices.
        policy: who decides.
        config: settings.
        tell: changes what the scheduler is told, as the policy wants it (see `agents.learned.names.resolve`).

    Attributes:
        offered: (2,) requests offered by priority. ended: (2, 6) requests ended, by priority and outcome.
        batches: batches ended.
    """

    def __init__(
        self,
        executor: Executor,
        profile: Profile,
        policy: Policy,
        config: EngineConfig | None = None,
        tell: Callable[[Tables], Tables] = lambda tables: tables,
    ) -> None:
        self.executor = executor
        self.profile = profile
        self.config = config or EngineConfig()
        self.models = profile.models
        for name in self.models:
            if name not in executor.models:
                raise InputError(f"model {name!r} is in the profile, but not loaded")
        self._index = {name: m for m, name in enumerate(self.models)}
        self._tell = tell
        self.tables: Tables = tell(profile.tables())
        places = self.config.queue_places
        self.state: SchedState = make_state(1, len(self.models), self.tables.size, executor.streams, places)
        clear(self.state, self.tables, 0)
        self._core = compile_core(self.state, self.tables)
        self.guard = GuardedPolicy(policy, self.state, self.tables, self.config.decision_budget_ms)
        self.observers: list[Observer] = []
        self.ledger = Ledger(self.observers)
        self.offered, self.ended = self.ledger.offered, self.ledger.ended
        self.batches = 0
        self.start_ms = time.perf_counter() * 1e3
        self._bind()
        self._requests = self.ledger.inside
        self._flights: list[Flight | None] = [None] * executor.streams
        self._accepting = False
        self._alarm = Alarm(self.now_ms, self._pump)
        self._together = Together(self._pump)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: set[str] = set()
        self._left: dict[str, asyncio.Event] = {}

    def _bind(self) -> None:
        """Views of single fields: reading one through a record array costs twenty times as much."""
        st = self.state
        self._n_ended, self._n_queued, self._n_free = (
            st.scheduler["n_ended"],
            st.scheduler["n_queued"],
            st.scheduler["n_free"],
        )
        self._ended_id, self._ended_outcome = st.ended["id"][0], st.ended["outcome"][0]
        self._member = st.member["id"][0]
        self._stream = st.stream[0].view(np.ndarray).view(np.dtype((np.void, st.stream.dtype)))  # not as np.record
        self._defer = n_actions(st, self.tables) - 1

    def now_ms(self) -> float:
        """The engine's clock: ms since it was made."""
        return time.perf_counter() * 1e3 - self.start_ms

    @property
    def queued(self) -> int:
        """Requests in all queues."""
        return int(self._n_queued[0])

    @property
    def in_flight(self) -> int:
        """Streams with a batch."""
        return self.executor.streams - int(self._n_free[0])

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: started, and not stopping."""
        return self._accepting

    async def start(self, warm_executor: bool = True) -> None:
        """Compile and warm up everything that a request will meet, then take requests.

        Args:
            warm_executor: False where every model has run at every batch size on every stream.
        """
        self._loop = asyncio.get_running_loop()
        policies = (self.guard.policy, self.guard.fallback)
        await self._loop.run_in_executor(None, warm_up, self.tables, self.executor.streams, policies)
        for name in self.models if warm_executor else ():
            await self._loop.run_in_executor(None, self.executor.warm_up, name, self.profile.batch_sizes)
        self.executor.on_result = self._from_worker
        self._accepting = True

    # A request's way in and out.

    async def submit(self, model: str, priority: int, deadline_ms: float, values: np.ndarray) -> Outcome:
        """Serve one request; when the calling task is cancelled, so is the request. Arguments as in `offer`."""
        return (await self.submit_all(model, priority, deadline_ms, [values]))[0]

    async def submit_all(
        self, model: str, priority: int, deadline_ms: float, values: Sequence[np.ndarray]
    ) -> list[Outcome]:
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
        values: Sequence[np.ndarray],
        arrival_ms: float | None = None,
        refusal: str = "",
    ) -> list[Request]:
        """Hand in requests that arrive together; their ends come in their `future`. Call on the engine's loop.

        Args:
            model: name of a served model.
            priority: 0 (high) or 1 (low).
            deadline_ms: relative to the arrival.
            values: one input a request, of the model's input shape.
            arrival_ms: when they arrived, if not now.
            refusal: why they are not let in, as their deadline is out of reach; empty if they are.

        Raises:
            KeyError: no such model.
        """
        assert self._loop is not None, "start the engine first"
        m = self._index[model]
        if model in self._leaving:
            raise KeyError(model)
        now = self.now_ms()
        arrival = now if arrival_ms is None else min(arrival_ms, now)
        requests = []
        for one in values:
            request = self.ledger.open(
                m, model, priority, arrival, arrival + deadline_ms, now, one, self._loop.create_future()
            )
            requests.append(request)
            if refusal or not self._accepting:
                reason, message = (UNREACHABLE, refusal) if refusal else (STOPPING, "the server is stopping")
                self.ledger.close(request, DROPPED, reason, message, now)
            elif not self._core.arrive(
                self.state, self.tables, 0, now, arrival, priority, m, request.id, request.deadline_ms
            ):
                message = f"the queue of model {model!r} is full ({self.config.queue_places} requests)"
                self._collect(now, FULL, message)
        # A trace's arrivals are decided on one by one, as in the simulator; so is what would not fit into one batch.
        if arrival_ms is not None or self._n_queued[0] >= self.tables.size[-1]:
            self._pump()
        else:
            self._together.came()
        return requests

    def ahead(self, priority: int, due_ms: float) -> tuple[int, float]:
        """Queued requests of a priority that are due no later, and their work in ms; see `serving.engine.compiled.ahead`."""
        return self._core.ahead(self.state, self.tables, 0, priority, due_ms)

    def cancel(self, request: Request) -> None:
        """Give a request up: at once when it is queued; its result is discarded when it is in flight."""
        if request.id not in self._requests:
            return
        if self._core.cancel(self.state, 0, request.priority, request.model, request.id):
            self._collect(self.now_ms(), LEFT, "cancelled in the queue")
            self._arm()
        else:
            request.discarded = True

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Take no more requests, finish those inside for at most `timeout_s`, then end the rest as dropped or failed."""
        self._accepting = False
        if self._requests:
            try:
                await asyncio.wait_for(self.ledger.empty(), timeout_s)
            except TimeoutError:
                log.warning("stopping with %d requests queued and %d batches in flight", self.queued, self.in_flight)
        now = self.now_ms()
        self._core.drop_all(self.state, 0)
        self._collect(now, STOPPING, "the server is stopping")
        for request in list(self._requests.values()):
            self.ledger.close(request, FAILED, STOPPING, "the server is stopping", now)
        self._alarm.set(math.inf)

    # Changes while serving. Requests of other models, queued or in flight, notice nothing.

    async def reload_policy(self, policy: Policy, tell: Callable[[Tables], Tables] = lambda tables: tables) -> None:
        """Let another policy decide from now on; the predictor keeps what it learned. Arguments as for the engine."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, warm_up, tell(self.profile.tables()), self.executor.streams, (policy,))
        self._tell, self.tables = tell, tell(self.profile.tables())
        self.guard.install(policy)
        self.guard.bind(self.state, self.tables)
        invalidate_forecast(self.state, 0)
        self._pump()

    def put_model(self, told: Profile, loaded_as: str) -> None:
        """Serve a further model, or another one in place of that of its name. Call on the engine's loop.

        What is in flight ends on the model that it began on. What is queued goes to the new one, if that takes its input.

        Args:
            told: what the scheduler is told of it. loaded_as: its name in the executor, which has warmed it up; changed.

        Raises:
            InputError: the batch sizes differ.
        """
        (name,) = told.models
        profile = join_profiles(self.profile, told)
        self.executor.rename(loaded_as, name)
        self._drop_queued(name, self.executor.models[name])
        self._change_models(profile)

    async def remove_model(self, name: str) -> None:
        """Serve a model no more: what is queued is dropped, what is in flight ends first.

        Raises:
            InputError: it is not served, or it is the only one.
        """
        if name not in self._index or name in self._leaving:
            raise InputError(f"model {name!r} is not served; served are {', '.join(self.models)}")
        if len(self.models) - len(self._leaving) == 1:
            raise InputError(f"model {name!r} is the only one left; load another before it is unloaded")
        self._leaving.add(name)
        try:
            self._drop_queued(name)
            if any(flight is not None and flight.model == name for flight in self._flights):
                left = self._left[name] = asyncio.Event()
                await left.wait()
            self._change_models(self.profile.select([other for other in self.models if other != name]))
        finally:
            self._leaving.discard(name)
            self._left.pop(name, None)

    def _drop_queued(self, name: str, new: ServedModel | None = None) -> None:
        """Drop what is queued for a model, but for inputs that the new one of its name takes."""
        for r in self._requests.values():
            if r.name == name and r.batch_id < 0 and (new is None or r.values is None or not new.takes(r.values)):
                self._core.cancel(self.state, 0, r.priority, r.model, r.id)
        self._collect(self.now_ms(), UNLOADED, f"model {name!r} was unloaded")

    def _change_models(self, profile: Profile) -> None:
        tables = self._tell(profile.tables())
        self.state = move_state(self.state, tables, [self._index.get(name, -1) for name in profile.models])
        self.tables, self.profile, self.models = tables, profile, profile.models
        self._index = {name: m for m, name in enumerate(self.models)}
        for request in self._requests.values():
            request.model = self._index[request.name]
        self._bind()
        # A policy's memory may be about models by their old indices.
        self.guard.policy.reset(1)
        self.guard.fallback.reset(1)
        self.guard.bind(self.state, self.tables)
        self._pump()

    # Events.

    def _from_worker(self, result: BatchResult) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._on_result, result)
        except RuntimeError:  # the loop is closed: the server stopped without this batch, whose requests have ended
            log.info("batch %d ended after the server stopped", result.batch_id)

    def _on_result(self, result: BatchResult) -> None:
        flight = self._flights[result.stream]
        assert flight is not None, f"stream {result.stream} reports batch {result.batch_id}, which is not in flight"
        self._take(flight, result)
        if not self._run(result.stream, flight):
            self._pump()

    def _take(self, flight: Flight, result: BatchResult) -> None:
        self.batches += 1
        if self.observers:
            record = flight.record(result, self.start_ms, self.now_ms())
            for observer in self.observers:
                observer.batch_ended(record)
        flight.take(result)
        if result.error is not None:
            log.warning("batch %d of %s failed: %s", flight.batch_id, flight.model, result.error)

    # The decision loop.

    def _pump(self) -> None:
        """Ask the policy until it defers or nothing can be dispatched."""
        st, tb, grace = self.state, self.tables, self.config.grace_ms
        while True:
            now = self.now_ms()
            ready = self._core.poll(st, tb, 0, now, self.guard.drop, grace)
            if self._n_ended[0]:
                self._collect(now, UNREACHABLE, "")
            if not ready:
                break
            action, wake = self.guard.decide()
            if action == self._defer:
                self._core.defer(st, 0, wake)
                break
            self._launch(self._core.dispatch(st, tb, 0, action))
            if not self._n_queued[0]:
                break
        self._arm()

    def _launch(self, k: int) -> None:
        """The state has a new batch on stream k: hand it to the executor."""
        s = self._stream[k]
        members = self._member[k, : int(s["n"])].tolist()
        flight = Flight.of(s, [self._requests[id_] for id_ in members])
        self._flights[k] = flight
        self._run(k, flight)

    def _run(self, k: int, flight: Flight) -> bool:
        """Start the next part of a batch, or end the batch; returns whether it goes on."""
        while (part := flight.next_part()) is not None:
            try:
                result = self.executor.run_here(k, part)
                if result is None:
                    self.executor.submit(k, part)
                    return True
                self._take(flight, result)
            except ValueError as error:
                log.error("batch %d of %s was refused: %s", flight.batch_id, flight.model, error)
                flight.refuse(str(error))
        self._flights[k] = None
        now = self.now_ms()
        self._core.finish(self.state, self.tables, 0, now, k, flight.exec_ms if flight.teaches else -1.0)
        self._collect(now, FAULT, "")
        left = self._left.get(flight.model)
        if left is not None and not any(other is not None and other.model == flight.model for other in self._flights):
            left.set()
        return False

    # Ends.

    def _collect(self, now: float, reason: str, message: str) -> None:
        """Resolve the requests that ended in the state since the last look."""
        n = int(self._n_ended[0])
        if n == 0:
            return
        ended = list(zip(self._ended_id[:n].tolist(), self._ended_outcome[:n].tolist()))
        self._n_ended[0] = 0
        for id_, outcome in ended:
            request = self._requests.get(id_)
            if request is None:
                continue  # it ended as the server stopped
            if reason == UNLOADED:  # taken out of the queue as if it were cancelled, but not by its client
                outcome = DROPPED
            elif reason == UNREACHABLE:
                message = unreachable(request, self.tables, now)
            self.ledger.end(request, outcome, reason, message, now)

    def _arm(self) -> None:
        """Ring when something is to be done even if nothing happens before."""
        args = self.state, self.tables, 0, self.guard.drop, self.config.grace_ms
        self._alarm.set(self._core.next_timer(*args) if self._n_queued[0] else math.inf)
