"""The engine as a library: models on a device behind a policy, without addresses, signals or files.

async with open_engine(["bert", "resnet"], policy="strait") as engine:
    result = await engine.infer("bert", values, priority=HIGH, deadline_ms=50.0)
    print(result.outcome, engine.quote("bert", HIGH, 50.0).probability, engine.state().queued)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling.state import HIGH, LOW, PRIORITIES
from serving.choosing import policy_for
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.quotes import Quote
from serving.engine.request import RequestResult
from serving.executors.factory import make_executor
from serving.models.load import load_model
from serving.models.repository import Entry, read_entries
from serving.profiling.calibrate import SHIPPED
from serving.profiling.device_models import DeviceModels
from serving.reload import resolve_policy
from traces.errors import InputError

__all__ = ["HIGH", "LOW", "EngineState", "LibraryEngine", "base_profile", "open_engine", "open_models"]

log = logging.getLogger("serving")


def base_profile(config: ServeConfig, models: Sequence[str]) -> Profile:
    """The profile that the settings name, with these models; for "auto" the shipped one, to be measured on this machine.

    Raises:
        InputError: there is none, it lacks a model, or it has no batch size for a lone request.
    """
    auto = config.profile == "auto"
    profile = Profile.load(SHIPPED if auto else config.profile)
    if not auto:
        profile = profile.select(list(models))
    if profile.batch_sizes[0] != 1:
        sizes = list(profile.batch_sizes)
        raise InputError(
            f"--profile {config.profile}: batch sizes are {sizes}; they must begin with 1, for lone requests"
        )
    return profile


def open_models(config: ServeConfig, entries: Mapping[str, Entry], base: Profile) -> tuple[DeviceModels, Profile]:
    """Load the models and learn their latencies. Takes seconds, so call it off the loop.

    Args:
        config: settings.
        entries: the models.
        base: from `base_profile`.

    Returns:
        The models on their device, and what is known of them.

    Raises:
        InputError: a model cannot be loaded, does not fit the memory limit, or fails.
    """
    executor = make_executor(config.device, config.streams)
    try:
        log.info("device %s, %d streams", executor.device.name, config.streams)
        models = DeviceModels(executor, base, config.batch_sizes or base.batch_sizes, config.memory_bytes)
        for entry in entries.values():
            models.load(load_model(entry.spec))
        return models, models.measure(tuple(entries)) if config.profile == "auto" else base
    except BaseException:
        executor.close(1.0)
        raise


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
    """

    def __init__(self, engine: Engine, models: DeviceModels, drain_timeout_s: float) -> None:
        self.engine = engine
        self._models = models
        self._drain_timeout_s = drain_timeout_s
        self._closed = False

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are served."""
        return self.engine.models

    async def infer(
        self, model: str, values: np.ndarray, priority: int = LOW, deadline_ms: float = 100.0
    ) -> RequestResult:
        """Serve one request; when the calling task is cancelled, so is the request.

        Args:
            model: name of a served model.
            values: its input, without batch dimension.
            priority: HIGH or LOW.
            deadline_ms: from now; inside, it is an absolute time, so that no wait is given to a request again.

        Returns:
            How it ended: `outcome`, `output`, and times; a request that is refused or dropped has no output and says why.

        Raises:
            InputError: no such model, an input that it does not take, or a deadline that is no number above 0.
        """
        self._check(model, priority, deadline_ms)
        served = self.engine.served()[model]
        if not served.takes(np.asarray(values)):
            raise InputError(
                f"model {model!r} takes {served.input_dtype} {served.input_shape}; "
                f"got {np.asarray(values).dtype} {np.shape(values)}"
            )
        return await self.engine.submit(model, priority, deadline_ms, np.asarray(values, served.input_dtype))

    def quote(self, model: str, priority: int = LOW, deadline_ms: float = 100.0) -> Quote:
        """What such a request could expect if it came now; nothing is offered. Arguments and errors as of `infer`."""
        self._check(model, priority, deadline_ms)
        return self.engine.quotes.quote(model, priority, deadline_ms)

    def _check(self, model: str, priority: int, deadline_ms: float) -> None:
        if model not in self.engine.models:
            raise InputError(f"model {model!r} is not served; served are {', '.join(self.engine.models)}")
        if priority not in (HIGH, LOW):
            raise InputError(f"priority is {priority!r}; it must be {HIGH} (high) or {LOW} (low)")
        if not deadline_ms > 0:
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
        await asyncio.get_running_loop().run_in_executor(None, self._models.executor.close, 1.0)


@asynccontextmanager
async def open_engine(models: Sequence[str] | str = (), **settings: Any) -> AsyncIterator[LibraryEngine]:
    """Load models, start an engine, and close it at the end.

    Args:
        models: as of `ServeConfig.models`.
        settings: any other of `ServeConfig` that is about models, device, policy and engine, e.g. policy="edf", streams=2.

    Raises:
        InputError: a setting is unknown or out of range, or a model cannot be loaded.
    """
    try:
        config = ServeConfig(models=models if isinstance(models, str) else list(models), **settings)
    except TypeError as error:
        raise InputError(f"open_engine: {error}") from None
    entries = read_entries(config.model_sources)
    resolve_policy(config)  # an unknown name is told before anything is loaded
    base = base_profile(config, list(entries))
    loop = asyncio.get_running_loop()
    on_device, profile = await loop.run_in_executor(None, open_models, config, entries, base)
    policy, adjust_tables, _ = await policy_for(config, profile)
    engine = Engine(on_device.executor, profile, policy, config, adjust_tables)
    opened = LibraryEngine(engine, on_device, config.drain_timeout)
    try:
        await engine.start()
        yield opened
    finally:
        await opened.close()
