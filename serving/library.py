"""The engine as a library: models on a device behind a policy, without addresses, signals or files.

async with open_engine(["bert", "resnet"], policy="strait") as engine:
    result = await engine.infer("bert", {"input": values}, priority=HIGH, deadline_ms=50.0)
    print(result.outcome, engine.quote("bert", HIGH, 50.0).probability, engine.state().queued)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.scheduling.state import HIGH, LOW, PRIORITIES
from serving.api.dataplane import DataPlane
from serving.api.infer_call import left_out, same_size
from serving.api.model_view import ModelView
from serving.api.processes.steps import SteppedModel
from serving.api.refusal import Kind, Refusal
from serving.api.tensors import encoded
from serving.choosing import policy_for
from serving.config import ServeConfig
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.quotes import Quote
from serving.engine.request import STOPPING, UNREACHABLE, RequestResult
from serving.engine.scheduler import AdjustTables
from serving.executors.factory import make_executor
from serving.models.listing import Entry, initial_entries
from serving.models.repository import ModelRepository
from serving.models.tensors import Item, TensorSpec, objects, split_bucket
from serving.profiling.calibrate import SHIPPED
from serving.profiling.device_models import DeviceModels
from serving.reload import Reloader, resolve_policy
from serving.residency import Evicted, in_turn, load_all
from traces.errors import InputError

__all__ = ["HIGH", "LOW", "EngineState", "LibraryEngine", "base_profile", "open_engine", "open_models"]

log = logging.getLogger("serving")

# Settings of `open_engine` beside the models. The others of a server are about addresses, files or replays.
SETTINGS = (
    *(f.name for f in fields(EngineConfig)),
    *("policy", "candidates", "seed", "device", "streams", "profile", "batch_sizes", "memory_limit"),
    *("step_processes", "replicas", "replica_number", "drain_timeout"),
)
CLOSED = "the engine is closed"


def base_profile(config: ServeConfig, models: Sequence[str]) -> Profile:
    """The profile that the settings name, which knows these models; for "auto" the shipped one, to be measured on this machine.

    Raises:
        InputError: there is none, it lacks a model, or it has no batch size for a lone request.
    """
    auto = config.profile == "auto"
    profile = Profile.load(SHIPPED if auto else config.profile)
    known = {split_bucket(name)[0] for name in profile.models}
    if not auto and (unknown := [name for name in models if name not in known]):
        profile.select(unknown)  # which says what it lacks
    if profile.batch_sizes[0] != 1:
        sizes = list(profile.batch_sizes)
        raise InputError(
            f"--profile {config.profile}: batch sizes are {sizes}; they must begin with 1, for lone requests"
        )
    return profile


class OpenModels(NamedTuple):
    """Models on a device.

    Attributes:
        models: those that are loaded.
        profile: what is known of them.
        evicted: models that did not fit the memory limit beside these.
    """

    models: DeviceModels
    profile: Profile
    evicted: dict[str, Evicted]


def open_models(config: ServeConfig, entries: Mapping[str, Entry], base: Profile) -> OpenModels:
    """Load the models and learn their latencies. Takes seconds, so call it off the loop.

    Args:
        config: settings.
        entries: the models.
        base: from `base_profile`.

    Raises:
        InputError: a model cannot be loaded, does not fit the memory limit, or fails.
    """
    executor = make_executor(config.device, config.streams)
    try:
        log.info("device %s, %d streams", executor.device.name, config.streams)
        sizes, recorded = config.batch_sizes or base.batch_sizes, config.record is not None
        models = DeviceModels(executor, base, sizes, config.memory_bytes, recorded)
        entries = in_turn(entries, config.replica_number, config.replicas)
        known = None if config.profile == "auto" else base
        names, evicted = load_all(entries, models, known)
        if evicted and config.replay is not None:
            raise InputError("--replay needs all models in memory; raise --memory_limit or serve fewer")
        return OpenModels(models, models.know(names, known), evicted)
    except BaseException:
        executor.close(1.0)
        raise


class EngineParts(NamedTuple):
    """An engine, not started yet, and what changes its models.

    Attributes:
        engine: it.
        reloader: changes its models and its policy.
        repository: of its models.
        plane: answers by it; its `observers` must observe the engine.
    """

    engine: Engine
    reloader: Reloader
    repository: ModelRepository
    plane: DataPlane


def make_engine(
    config: ServeConfig, entries: Mapping[str, Entry], opened: OpenModels, policy: Policy, adjust_tables: AdjustTables
) -> EngineParts:
    """An engine over loaded models, which brings those back that are out of memory when they are asked for."""
    engine = Engine(opened.models.executor, opened.profile, policy, config, adjust_tables)
    reloader = Reloader(config, opened.models, engine, entries, opened.evicted)
    engine.observers.append(reloader.last_use)
    repository = ModelRepository(
        config.model_sources, reloader.served_models, reloader.add_model, reloader.remove_model
    )
    repository.evicted = reloader.evicted
    return EngineParts(engine, reloader, repository, DataPlane(engine, config, repository))


class EngineState(NamedTuple):
    """What is inside an engine now.

    Attributes:
        queued: requests in the queues, by priority.
        in_flight: batches on the device.
        free_streams: streams without one.
        ended: requests that ended, by priority and outcome.
    """

    queued: dict[str, int]
    in_flight: int
    free_streams: int
    ended: dict[str, dict[str, int]]


class LibraryEngine:
    """An engine that serves requests of this process; made by `open_engine`.

    Attributes:
        engine: the engine itself, to observe it or to change its models.
        plane: answers by it as HTTP and gRPC would, e.g. for a replica of a cluster.
    """

    def __init__(self, parts: EngineParts, close_device: Callable[[float], None], drain_timeout_s: float) -> None:
        self.engine = parts.engine
        self.plane = parts.plane
        self._reloader = parts.reloader
        self._close_device = close_device
        self._drain_timeout_s = drain_timeout_s
        self._closed = False

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are served."""
        return tuple(self.plane.views)

    def inputs(self, model: str) -> tuple[TensorSpec, ...]:
        """The inputs of a model. Raises InputError: no such model."""
        return self._view(model).inputs

    async def infer(
        self, model: str, values: Mapping[str, np.ndarray] | np.ndarray, priority: int = LOW, deadline_ms: float = 100.0
    ) -> RequestResult:
        """Serve one request; when the calling task is cancelled, so is the request.

        Args:
            model: name of a served model.
            values: its inputs by name, without batch dimension, those that are optional as you like; or its only input.
            priority: HIGH or LOW.
            deadline_ms: from now; inside, it is an absolute time, so that no wait is given to a request again.

        Returns:
            How it ended: `outcome`, `outputs`, and times; a request that is refused or dropped has no outputs and says why.

        Raises:
            InputError: no such model, an input that it does not take, or a deadline that is no number above 0.
        """
        self._check(priority, deadline_ms)
        whole = self._view(model)
        item, size = _item(whole, values)
        if self._closed:
            return self._never_offered(whole, priority, deadline_ms, self.engine.now_ms(), CLOSED, STOPPING)
        stepped = self.plane.stepped(whole)
        if stepped is not None:
            return await self._infer_stepped(stepped, item, size, priority, deadline_ms)
        return await self._infer(whole.bucket(size), item, priority, deadline_ms)

    async def _infer_stepped(
        self, stepped: SteppedModel, item: Item, size: int | None, priority: int, deadline_ms: float
    ) -> RequestResult:
        """Serve a request of a model with steps on the host. Raises InputError: a step refuses it, or fails."""
        arrival_ms = self.engine.now_ms()
        try:
            values, size = await stepped.before(tuple(one[np.newaxis] for one in item), size, deadline_ms)
            view = stepped.inner.bucket(size)
            left_ms = arrival_ms + deadline_ms - stepped.after_ms(1) - self.engine.now_ms()
            if left_ms <= 0.0:
                return self._never_offered(view, priority, deadline_ms, arrival_ms, "its preprocess took too long")
            result = await self._infer(view, tuple(one[0] for one in values), priority, left_ms)
            if result.outputs is None:
                return result
            outputs = await stepped.after(tuple(one[np.newaxis] for one in result.outputs))
        except Refusal as refusal:
            if self._closed:  # and with it the processes of the steps
                return self._never_offered(stepped.inner, priority, deadline_ms, arrival_ms, CLOSED, STOPPING)
            if refusal.kind is Kind.UNREACHABLE:
                return self._never_offered(stepped.inner, priority, deadline_ms, arrival_ms, str(refusal))
            raise InputError(str(refusal)) from None
        ended_ms = self.engine.now_ms()
        outcome = "met" if ended_ms <= arrival_ms + deadline_ms else "late"
        return replace(
            result, outputs=tuple(one[0] for one in outputs), outcome=outcome, arrival_ms=arrival_ms,
            deadline_ms=arrival_ms + deadline_ms, finish_ms=ended_ms,
        )  # fmt: skip

    def _never_offered(
        self,
        view: ModelView,
        priority: int,
        deadline_ms: float,
        arrival_ms: float,
        message: str,
        reason: str = UNREACHABLE,
    ) -> RequestResult:
        """How a request ended that never came to the engine."""
        return RequestResult(
            id=-1, model=view.scheduled, priority=priority, outcome="dropped", reason=reason, message=message,
            arrival_ms=arrival_ms, deadline_ms=arrival_ms + deadline_ms, offered_ms=arrival_ms,
            finish_ms=self.engine.now_ms(),
        )  # fmt: skip

    async def _infer(self, view: ModelView, item: Item, priority: int, deadline_ms: float) -> RequestResult:
        loading_ms = 0.0
        if not self.engine.serves(view.scheduled):
            arrival = self.engine.now_ms()
            try:
                loading_ms = await self.plane.bring_back(view, deadline_ms)
            except Refusal as refusal:
                return self._never_offered(view, priority, deadline_ms, arrival, str(refusal))
        return await self.engine.submit(view.scheduled, priority, deadline_ms - loading_ms, item)

    def quote(self, model: str, priority: int = LOW, deadline_ms: float = 100.0, size: int | None = None) -> Quote:
        """What such a request could expect if it came now; nothing is offered.

        Args:
            model: as of `infer`, as the rest and the errors.
            priority: see there.
            deadline_ms: see there.
            size: that varies of its inputs; None stands for the largest.
        """
        self._check(priority, deadline_ms)
        if self._closed:
            raise InputError(CLOSED)
        view = self._view(model)
        if size is not None:
            if not isinstance(size, (int, np.integer)):
                raise InputError(f"size is {size!r}; it must be an integer")
            view.check_size(size, "size")
        return self.plane.quote(view.bucket(size), priority, deadline_ms)

    def _view(self, model: str) -> ModelView:
        if not isinstance(model, str):
            raise InputError(f"model is {model!r}; it must be a name: one of {', '.join(self.models)}")
        try:
            return self.plane.model(model)
        except Refusal as refusal:
            raise InputError(str(refusal)) from None

    def _check(self, priority: int, deadline_ms: float) -> None:
        if not isinstance(priority, (int, np.integer)) or isinstance(priority, bool) or priority not in (HIGH, LOW):
            raise InputError(f"priority is {priority!r}; it must be {HIGH} (high) or {LOW} (low)")
        number = isinstance(deadline_ms, (int, float, np.number)) and not isinstance(deadline_ms, np.timedelta64)
        if not number or not deadline_ms > 0:
            raise InputError(f"deadline_ms is {deadline_ms!r}; it must be a number above 0")

    def state(self) -> EngineState:
        """What is inside now, and what has ended."""
        scheduler = self.engine.scheduler
        queued = scheduler.queue_lengths.sum(axis=1)
        return EngineState(
            queued={name: int(queued[number]) for number, name in enumerate(PRIORITIES)},
            in_flight=self.engine.in_flight,
            free_streams=scheduler.streams - self.engine.in_flight,
            ended=self.engine.ledger.counts(),
        )

    async def close(self) -> None:
        """Take no more requests, let those inside end, and close the device. May be called twice."""
        if self._closed:
            return
        self._closed = True
        await self.engine.stop(self._drain_timeout_s)
        self.plane.close()
        self._reloader.close()
        await asyncio.get_running_loop().run_in_executor(None, self._close_device, 1.0)


@asynccontextmanager
async def open_engine(models: Sequence[str] | str = (), **settings: Any) -> AsyncIterator[LibraryEngine]:
    """Load models, start an engine, and close it at the end.

    Args:
        models: as of `ServeConfig.models`.
        settings: those of `SETTINGS`, as `ServeConfig` explains them, e.g. policy="edf", streams=2.

    Raises:
        InputError: a setting is unknown or out of range, or a model cannot be loaded.
    """
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        raise InputError(f"open_engine: {unknown[0]} is no setting of an engine; it takes {', '.join(SETTINGS)}")
    try:
        config = ServeConfig(models=models if isinstance(models, str) else list(models), **settings)
    except TypeError as error:
        raise InputError(f"open_engine: {error}") from None
    entries = initial_entries(config.model_sources)
    resolve_policy(config)  # an unknown name is told before anything is loaded
    base = base_profile(config, list(entries))
    on_device = await _open_apart(config, entries, base)
    try:
        policy, adjust_tables, _ = await policy_for(config, on_device.profile)
        parts = make_engine(config, entries, on_device, policy, adjust_tables)
    except BaseException:
        on_device.models.executor.close(1.0)
        raise
    opened = LibraryEngine(parts, on_device.models.executor.close, config.drain_timeout)
    try:
        await parts.engine.start()
        yield opened
    finally:
        await opened.close()


async def _open_apart(config: ServeConfig, entries: Mapping[str, Entry], base: Profile) -> OpenModels:
    """`open_models` on a thread; where the caller is cancelled, the device is closed again once it is there."""

    def close(opening: Future[OpenModels]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().models.executor.close(1.0)

    pool = ThreadPoolExecutor(1, "open")
    opening = pool.submit(open_models, config, entries, base)
    pool.shutdown(wait=False)
    try:
        return await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close)
        raise


def _item(view: ModelView, values: Mapping[str, np.ndarray] | np.ndarray) -> tuple[Item, int | None]:
    """The inputs of a request in the model's order, those that were left out filled; and the size that varies."""
    given = values if isinstance(values, Mapping) else {view.inputs[0].name: values}
    names = ", ".join(spec.name for spec in view.inputs)
    if unknown := set(given) - {spec.name for spec in view.inputs}:
        raise InputError(f"model {view.name!r} has no input {min(map(str, unknown))!r}; it takes {names}")
    arrays, size = {}, None
    for name, one in given.items():
        try:
            arrays[name] = np.asarray(one)
        except ValueError as error:  # lists of several lengths
            raise InputError(f"{name}: {error}") from None
    for spec in view.inputs:
        array = arrays.get(spec.name)
        if array is None:
            continue
        if not spec.takes(array):
            takes = f"{spec.datatype} {list(spec.shape)}"
            raise InputError(f"{spec.name}: model {view.name!r} takes {takes}; got {array.dtype} {list(array.shape)}")
        if spec.varies:
            size = same_size(spec, array.shape, size, view)
    item = []
    for spec in view.inputs:
        if spec.name in arrays:
            made = np.asarray(arrays[spec.name], spec.dtype)
            if spec.datatype == "BYTES":
                made = objects([encoded(one, spec.name) for one in made.ravel().tolist()], made.shape)
        else:
            made = left_out(spec, (), size)
        view.check_values(spec, made)
        item.append(made)
    return tuple(item), size
