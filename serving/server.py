"""Wires models, profile, policy, engine, doors and observers together, and sees them through a server's life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.scheduling.state import Tables
from serving.api.listen import Door, check_addresses, open_doors, tls_context
from serving.collector import settle
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.request import table_of
from serving.executors.base import Executor
from serving.executors.factory import make_executor
from serving.models.load import load_model
from serving.models.repository import Entry, Repository, check_memory, read_entries
from serving.models.served import ServedModel
from serving.observers.explain import explained, require_learned
from serving.observers.logs import RequestLog
from serving.observers.prometheus import Metrics
from serving.observers.recorder import Recorder
from serving.observers.report import Collector, result_of
from serving.observers.tensorboard import Telemetry
from serving.observers.timeline import Tracer
from serving.profiling.calibrate import SHIPPED, SoloRun, calibrated, machine_of, measure_solo
from serving.replay.live_runs import capacity_of
from serving.replay.replay import make_inputs, replay
from serving.replay.workload import DEFAULT_LOAD, lay_out, mix_of, needs_load, read_source
from traces.errors import InputError
from traces.machine import MachineInfo, ModelInfo
from traces.workload import WorkloadConfig

log = logging.getLogger("serving")

CAPACITY_S = 3.0
WRITE_S = 5.0
NEXT = " (next)"  # behind the name of a model that is loaded, but not served yet; no name may hold it


class Server:
    """One engine with everything around it.

    What a user may have got wrong is forecast_valid at first, before a model is loaded or a file is written.

    Args:
        config: settings.

    Raises:
        InputError: an unknown policy, model or workload, a malformed file, ...
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.entries = read_entries(config.model_sources)
        self.policy, self.tell = resolve_policy(config)
        self.source = None if config.replay is None else read_source(config.replay, list(self.entries), config.seed)
        self.base = Profile.load(SHIPPED if config.profile == "auto" else config.profile)
        if config.profile != "auto":
            self.base = self.base.select(list(self.entries))
        self.tls = tls_context(config)
        if self.source is None:
            check_addresses(config)
        self.executor: Executor | None = None
        self.engine: Engine | None = None
        self.repository: Repository | None = None
        self.solo: list[SoloRun] = []
        self.described: dict[str, ModelInfo] = {}
        self.doors: list[Door] = []
        self.metrics: Metrics | None = None
        self.telemetry: Telemetry | None = None
        self.recorder: Recorder | None = None
        self.tracer: Tracer | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._check_outputs()

    def _check_outputs(self) -> None:
        """Refuse now what could not be written later."""
        if self.config.explain:
            explained(require_learned(self.policy), lambda: self.engine.models if self.engine else ())
        for flag in ("logdir", "record"):
            path = getattr(self.config, flag)
            if path is not None and Path(path).exists() and not Path(path).is_dir():
                raise InputError(f"--{flag} {path}: it is a file; a folder is wanted")
        if self.config.trace is not None and not (parent := Path(self.config.trace).resolve().parent).is_dir():
            raise InputError(f"--trace {self.config.trace}: there is no folder {parent}")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes that batches may have."""
        return tuple(self.config.batch_sizes) or self.base.batch_sizes

    # Coming up.

    def open(self) -> Profile:
        """Load the models and learn their latencies; takes seconds, so call it off the loop.

        Raises:
            InputError: a model cannot be loaded, does not fit the memory limit, or fails.
        """
        config = self.config
        self.executor = make_executor(config.device, config.streams)
        log.info("device %s, %d streams", self.executor.device.name, config.streams)
        for name, entry in self.entries.items():
            self._load(load_model(entry.spec))
            log.info("model %s is loaded from %s", name, entry.spec.source)
        return self._profile(tuple(self.entries)) if config.profile == "auto" else self.base

    def _load(self, model: ServedModel, suffix: str = "") -> None:
        """Load a model into the executor, its name with a suffix there."""
        assert self.executor is not None
        self._check_memory(model, suffix)
        self.executor.load(replace(model, name=model.name + suffix))
        self.described[model.name] = ModelInfo(**model.describe())

    def _check_memory(self, model: ServedModel, suffix: str = "") -> None:
        assert self.executor is not None
        others = [other for other in self.executor.models.values() if other.name != model.name + suffix]
        check_memory(others, model, self.batch_sizes[-1], self.config.memory_bytes)

    def _profile(self, names: tuple[str, ...], suffix: str = "") -> Profile:
        """Measure loaded models alone and fit the shipped profile to that; arguments as in `_load`."""
        assert self.executor is not None
        measured = measure_solo(self.executor, [name + suffix for name in names], self.batch_sizes)
        runs = [replace(run, model=run.model.removesuffix(suffix)) for run in measured]
        self.solo = [run for run in self.solo if run.model not in names] + runs
        profile = calibrated(self.base, self._machine(names), runs)
        for name, solo in zip(names, profile.solo_latency_ms):
            log.info("model %s takes %.2f ms alone", name, solo)
        return profile

    def _machine(self, names: Iterable[str]) -> MachineInfo:
        assert self.executor is not None
        return machine_of(self.executor, [self.described[name] for name in names], self.batch_sizes)

    async def start(self, profile: Profile) -> None:
        """Start the engine and, without --replay, the doors.

        Raises:
            InputError: an address is taken, or a file or folder to write cannot be made.
        """
        assert self.executor is not None
        config = self.config
        self.engine = Engine(self.executor, profile, self.policy, config, self.tell)
        self.engine.observers.append(RequestLog())
        self.repository = Repository(
            config.model_sources, lambda: self.engine.models if self.engine else (), self.add_model, self.remove_model
        )
        await self.engine.start()
        self.metrics = Metrics(self.engine)
        log.info("policy %s serves %s", self.engine.guard.name, ", ".join(self.engine.models))
        if self.source is None:
            self.doors = await open_doors(config, self.engine, self.repository, self.metrics.render, self.tls)
        self._observe(self.engine)  # last: when the address is taken, nothing has been written
        settle()

    def _observe(self, engine: Engine) -> None:
        config = self.config
        if config.record is not None:
            self.recorder = Recorder(config.record, lambda: self._machine(list(self.described)), lambda: self.solo)
            engine.observers.append(self.recorder)
        if config.trace is not None:
            self.tracer = Tracer(config.trace)
            engine.observers.append(self.tracer)
        if config.logdir is not None:
            self.telemetry = Telemetry(config.logdir, engine, asdict(config) | {"token": bool(config.token)})
            engine.observers.append(self.telemetry)
        self._ticking = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        """Write what is kept up to date on the disk."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WRITE_S)
            try:
                if self.telemetry is not None:
                    self.telemetry.write()
                if self.recorder is not None:
                    await loop.run_in_executor(None, self.recorder.flush)
                if self.tracer is not None and (latest := self.tracer.latest()) is not None:
                    await loop.run_in_executor(None, self.tracer.write, *latest)
            except Exception:  # serving must go on, and so must the other outputs
                log.exception("telemetry failed")

    # Changes while serving.

    async def add_model(self, entry: Entry) -> None:
        """Load a model, warm it up, measure it, and serve it, while others are served; until then one of its name is.

        Where the memory limit has no room for both, the old one ends first.

        Raises:
            InputError: it cannot be loaded, does not fit, or the profile lacks it; one of its name is then still served.
        """
        assert self.engine is not None and self.executor is not None
        loop = asyncio.get_running_loop()
        name = entry.spec.name
        told = None if self.config.profile == "auto" else Profile.load(self.config.profile).select([name])
        model = await loop.run_in_executor(None, load_model, entry.spec)
        if name in self.engine.models and not self._has_room_beside(model):
            log.warning("model %s ends before it is loaded again: the memory limit has no room for both", name)
            await self.remove_model(name)
        before = self.described.get(name)
        try:
            await loop.run_in_executor(None, self._load, model, NEXT)
            if told is None:
                told = await loop.run_in_executor(None, self._profile, (name,), NEXT)
            else:
                await loop.run_in_executor(None, self.executor.warm_up, name + NEXT, self.batch_sizes)
            self.engine.put_model(told, name + NEXT)
        except Exception:
            if name + NEXT in self.executor.models:
                self.executor.unload(name + NEXT)
            self.described.pop(name, None)
            if before is not None:
                self.described[name] = before
            raise
        log.info("model %s is served", name)

    def _has_room_beside(self, model: ServedModel) -> bool:
        """Whether a model fits beside all that are loaded.

        Raises:
            InputError: it would not even fit in place of the one of its name.
        """
        try:
            self._check_memory(model, NEXT)
        except InputError:
            self._check_memory(model)
            return False
        return True

    async def remove_model(self, name: str) -> None:
        """Serve a model no more; see `Engine.remove_model`."""
        assert self.engine is not None and self.executor is not None
        await self.engine.remove_model(name)
        self.executor.unload(name)
        log.info("model %s is unloaded", name)

    async def reload_policy(self) -> bool:
        """Read the policy again and let it decide; one that cannot be read is refused, and the present one stays."""
        assert self.engine is not None
        try:
            policy, tell = await asyncio.get_running_loop().run_in_executor(None, resolve_policy, self.config)
        except InputError as error:
            log.error("policy is not reloaded, %s stays in force: %s", self.engine.guard.name, error)
            return False
        if self.config.explain:
            explained(require_learned(policy), lambda: self.engine.models if self.engine else ())
        await self.engine.reload_policy(policy, tell)
        log.info("policy %s was reloaded", policy.name)
        return True

    # What it does.

    async def replay(self, profile: Profile, stopping: asyncio.Event) -> dict[str, Any]:
        """Offer the workload of --replay, and return what became of it."""
        assert self.executor is not None and self.source is not None
        config = self.config
        inputs = make_inputs(self.executor, config.seed)
        load = config.load if config.load is not None or not needs_load(self.source) else DEFAULT_LOAD
        capacity = None
        if load is not None:
            capacity = await self._capacity(profile, inputs, mix_of(self.source))
        mix = WorkloadConfig(high_fraction=config.high_fraction)
        rate = None if load is None or capacity is None else load * capacity
        workload = lay_out(self.source, profile, rate, config.duration, mix, config.seed)
        await self.start(profile)
        assert self.engine is not None
        log.info("offering %s", workload.describe().splitlines()[0])
        collector = Collector()
        self.engine.observers.append(collector)
        start_ms = self.engine.now_ms()
        running = asyncio.ensure_future(replay(self.engine, workload, inputs))
        stop = asyncio.ensure_future(stopping.wait())
        waited: set[asyncio.Future[Any]] = {running, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if running.done():
            running.result()  # raises what it raised
        running.cancel()
        await self.engine.stop(config.drain_timeout)
        facts = {
            "trace": workload.name,
            "policy": self.engine.guard.name,
            "device": self.executor.device.name,
            "streams": config.streams,
            "load": load,
            "capacity_rps": capacity,
            "duration_s": config.duration,
            "seed": config.seed,
            "replaced": self.engine.guard.replaced,
            "fallbacks": self.engine.guard.fallbacks,
        }
        return result_of(table_of(collector.outcomes, start_ms), facts, self.engine.guard.decision_us)

    async def _capacity(self, profile: Profile, inputs: dict[str, Any], share: np.ndarray | None) -> float:
        """Measured on an engine of its own, so that the one that is judged starts without having learned."""
        assert self.executor is not None
        config = self.config
        capacity = await capacity_of(
            self.executor, profile, inputs, CAPACITY_S, share, config.seed, config, config.drain_timeout
        )
        log.info("capacity is %.1f requests/s", capacity)
        return capacity

    async def close(self) -> None:
        """Stop taking requests, drain, and close everything."""
        limit = self.config.drain_timeout
        if self.engine is not None and self.engine.accepting:
            log.info("draining for at most %g s", limit)
            await self.engine.stop(limit)
        for door in self.doors:
            with contextlib.suppress(Exception):
                await door.close()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        for output in (self.telemetry, self.recorder, self.tracer):
            try:
                if output is not None:
                    output.close()
            except Exception:  # the other outputs, and the end of the server, must not depend on it
                log.exception("an output cannot be closed")
        if self.executor is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.executor.close, 1.0)


def resolve_policy(config: ServeConfig) -> tuple[Policy, Callable[[Tables], Tables]]:
    """The policy that the settings name, and what it changes in what the scheduler is told."""
    return resolve(config.policy, profile=SERVED)
