"""A server's life as five verbs: open, start, serve (or replay), drain, close. `run_server` has them in this order.

Each phase is a class that has all that the phase needs: `Server` knows its settings, `OpenServer` has models on a device, and
`RunningServer` has an engine that takes requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from agents.evaluation.choose import Choice
from serving.api.listen import check_addresses, listen, tls_context
from serving.choosing import ShadowComparison, policy_for
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.request import Request, result_table
from serving.engine.warmup import freeze_garbage
from serving.library import OpenModels, base_profile, make_engine, open_models
from serving.models.listing import initial_entries
from serving.models.load import may_vary
from serving.models.repository import ModelRepository
from serving.observers.explain import DecisionLog
from serving.observers.logs import RequestLog
from serving.observers.otel import SpanWriter, otlp_exporter
from serving.observers.output import Output, saving
from serving.observers.prometheus import Metrics
from serving.observers.recorder import Recorder
from serving.observers.report import print_replay, result_of
from serving.observers.tensorboard import TensorBoardWriter
from serving.observers.timeline import TimelineWriter
from serving.reload import Reloader, resolve_policy
from serving.replay.replay import Inputs, live_capacity, make_inputs, replay
from serving.replay.workload import DEFAULT_LOAD, Source, lay_out, mix_of, needs_load, read_source
from serving.signals import Signals, done_before
from traces.errors import InputError
from traces.workload import Workload, WorkloadConfig

log = logging.getLogger("serving")

CAPACITY_S = 3.0


class Server:
    """A server whose settings are read and checked; nothing is loaded or written yet.

    Args:
        config: settings.

    Raises:
        InputError: an unknown policy, model or workload, a malformed file, ...
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        config.read_token()
        self.entries = initial_entries(config.model_sources)
        resolve_policy(config)  # an unknown name is told before anything is loaded
        # A model that may vary is scheduled as buckets, which are known once it is loaded.
        names = [name for name, entry in self.entries.items() if not may_vary(entry.spec)]
        self.source: Source | None = None
        if config.replay is not None and len(names) == len(self.entries):
            self.source = read_source(config.replay, names, config.seed)
        self.profile = base_profile(config, list(self.entries))
        self.tls = tls_context(config)
        if config.replay is None:
            check_addresses(config, config.peer_port)
        self._check_outputs()
        endpoint = config.otel_endpoint
        self.span_exporter = None if endpoint is None else otlp_exporter(endpoint)

    def _check_outputs(self) -> None:
        """Refuse now what could not be written later."""
        folders = {
            flag: Path(path) for flag in ("logdir", "record") if (path := getattr(self.config, flag)) is not None
        }
        for flag, folder in folders.items():
            if folder.exists() and not folder.is_dir():
                raise InputError(f"--{flag} {folder}: it is a file; it must be a folder")
        if self.config.timeline is not None:
            parent = folders["timeline"] = Path(self.config.timeline).resolve().parent
            if not parent.is_dir():
                raise InputError(f"--timeline {self.config.timeline}: there is no folder {parent}")
        for flag, folder in folders.items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise InputError(
                    f"--{flag} {getattr(self.config, flag)}: it cannot be written: {error.strerror}"
                ) from None

    def open(self) -> OpenServer:
        """Load the models and learn their latencies. Takes seconds, so call it off the loop.

        Raises:
            InputError: a model cannot be loaded, does not fit the memory limit, or fails.
        """
        return OpenServer(self, open_models(self.config, self.entries, self.profile))


class Replay(NamedTuple):
    """What a server replays in place of listening.

    Attributes:
        workload: the requests.
        inputs: pool of inputs by model.
        facts: what is said beside the metrics of the result.
    """

    workload: Workload
    inputs: Inputs
    facts: dict[str, Any]


@dataclass
class OpenServer:
    """A server with its models on the device.

    Attributes:
        server: with the settings.
        opened: the models.
    """

    server: Server
    opened: OpenModels

    async def prepare_replay(self) -> Replay | None:
        """Lay out the workload of --replay, at a share of the capacity, which is measured; None without --replay.

        Raises:
            InputError: nothing arrives in the time.
        """
        config, source = self.server.config, self.server.source
        if config.replay is None:
            return None
        if source is None:
            source = read_source(config.replay, self.opened.profile.models, config.seed)
        executor = self.opened.models.executor
        inputs = make_inputs(executor, config.seed)
        load = config.load if config.load is not None or not needs_load(source) else DEFAULT_LOAD
        capacity = None
        if load is not None:
            capacity = await live_capacity(
                executor, self.opened.profile, inputs, CAPACITY_S, mix_of(source), config.seed, config
            )
            log.info("capacity is %.1f requests/s", capacity)
        mix = WorkloadConfig(high_fraction=config.high_fraction)
        rate = None if load is None or capacity is None else load * capacity
        workload = lay_out(source, self.opened.profile, rate, config.duration, mix, config.seed)
        facts = {
            "trace": workload.name,
            "device": executor.device.name,
            "streams": config.streams,
            "load": load,
            "capacity_rps": capacity,
            "duration_s": config.duration,
            "seed": config.seed,
        }
        return Replay(workload, inputs, facts)

    async def start(self, listening: bool = True) -> RunningServer:
        """Start the engine and, unless it is for a replay, listen.

        Raises:
            InputError: an address is taken, or a file or folder to write cannot be made.
        """
        config, server = self.server.config, self.server
        policy, adjust_tables, chosen = await policy_for(config, self.opened.profile)
        engine, reloader, repository, plane = make_engine(config, server.entries, self.opened, policy, adjust_tables)
        metrics = Metrics(engine)
        plane.metrics = metrics.render
        outputs = self._outputs(engine)
        # Whatever observes the engine is in this list.
        engine.observers += [RequestLog(), metrics, *outputs, *(plane.observers if listening else ())]
        if config.explain:
            engine.guard.on_decision = DecisionLog(lambda: engine.models)
        if chosen is not None:
            plane.why_policy = partial(_found, chosen)
        replica = peer_port = None
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(saving(outputs))
            parts.callback(plane.close)
            await engine.start()
            log.info("policy %s serves %s", engine.guard.name, ", ".join(engine.models))
            if listening:
                plane.prepare()
                listeners = await listen(plane, server.tls)
                if config.peer_port is not None:
                    replica = Replica(plane)
                    doors = await listen_for_doors(replica, config.peer_port, server.tls)
                    listeners.append(doors)
                    peer_port = doors.port
                for listener in listeners:
                    parts.push_async_callback(listener.close)
            if chosen is not None and listening and config.compare_s > 0:
                shadow = ShadowComparison(
                    config, lambda: (engine.profile, engine.scheduler.high_weight), reloader.install_policy, chosen
                )
                engine.observers.append(shadow)
                metrics.differences = lambda: shadow.choice.differences
                plane.why_policy = lambda: _found(shadow.choice)
                parts.callback(asyncio.ensure_future(shadow.run()).cancel)
            freeze_garbage()
            return RunningServer(config, engine, repository, reloader, parts.pop_all(), replica, peer_port)

    def _outputs(self, engine: Engine) -> list[Output]:
        config, models = self.server.config, self.opened.models
        outputs: list[Output] = []
        if config.record is not None:
            outputs.append(Recorder(config.record, models.info, lambda: models.solo))
        if config.timeline is not None:
            outputs.append(TimelineWriter(config.timeline))
        if self.server.span_exporter is not None:
            where = str(config.otel_endpoint)
            outputs.append(SpanWriter(self.server.span_exporter, config.otel_ratio, where))
            log.info("traces go to %s: those that clients record, and %g of the others", where, config.otel_ratio)
        if config.logdir is not None:
            settings = asdict(config) | {"token": bool(config.token)}
            outputs.append(TensorBoardWriter(config.logdir, engine, settings))
        return outputs

    async def close(self) -> None:
        """Close the device."""
        await asyncio.get_running_loop().run_in_executor(None, self.opened.models.executor.close, 1.0)


@dataclass
class RunningServer:
    """A server that takes requests.

    Attributes:
        config: settings.
        engine: started.
        repository: of its models.
        reloader: changes its models and its policy.
        parts: what is closed at the end: listeners, then outputs.
        replica: takes the requests of doors; None: there are none.
        peer_port: where it does.
    """

    config: ServeConfig
    engine: Engine
    repository: ModelRepository
    reloader: Reloader
    parts: AsyncExitStack
    replica: Replica | None = None
    peer_port: int | None = None

    async def serve(self, stopping: asyncio.Event) -> None:
        """Answer requests until `stopping` is set."""
        await stopping.wait()

    async def replay(self, replayed: Replay, stopping: asyncio.Event) -> dict[str, Any]:
        """Offer the requests of a workload until they have ended, or `stopping` is set, and drain.

        Returns:
            What became of them; see `serving.observers.report.result_of`.
        """
        log.info("offering %s", replayed.workload.describe().splitlines()[0])
        offered: list[Request] = []
        start_ms, guard = self.engine.now_ms(), self.engine.guard
        running = asyncio.ensure_future(replay(self.engine, replayed.workload, replayed.inputs, offered))
        if await done_before(stopping, running):
            running.result()  # raises what it raised
        running.cancel()
        await self.drain()
        facts = replayed.facts | {"policy": guard.name, "replaced": guard.replaced, "fallbacks": guard.fallbacks}
        table = result_table([request.future.result() for request in offered], start_ms)
        return result_of(table, facts, guard.decision_us)

    async def drain(self) -> None:
        """Take no more requests, and let those inside end, for at most `drain_timeout` seconds."""
        if self.engine.accepting:
            log.info("draining for at most %g s", self.config.drain_timeout)
            if self.replica is not None:
                self.replica.drain()
            await self.engine.stop(self.config.drain_timeout)

    async def close(self) -> None:
        """Listen no more, and write the rest."""
        try:
            await self.parts.aclose()
        except Exception:  # the end of the server must not depend on it
            log.exception("the server did not close cleanly")


async def run_server(config: ServeConfig) -> None:
    """Serve until the process is stopped, or replay a workload and print the result.

    SIGINT and SIGTERM drain, a second one ends at once; SIGHUP reloads the policy.

    Raises:
        InputError: see `Server`.
    """
    server = Server(config)
    signals = Signals()
    beginning = asyncio.ensure_future(_begin(server, signals))
    if not await done_before(signals.stopping, beginning):
        log.info("stopped while it was starting; nothing was served")
        os._exit(0)  # a thread compiles a model, or compares policies, which cannot be interrupted
    opened, replayed, running = beginning.result()
    result = None
    try:
        try:
            if replayed is None:
                await running.serve(signals.stopping)
            else:
                result = await running.replay(replayed, signals.stopping)
        finally:
            await running.drain()
            await running.close()
    finally:
        await opened.close()
    if result is not None:
        print_replay(result, Console(file=sys.stdout, width=110))
        print(json.dumps(result), flush=True)


async def _begin(server: Server, signals: Signals) -> tuple[OpenServer, Replay | None, RunningServer]:
    """All that comes before the first request, which may take minutes; from then on SIGHUP reloads the policy."""
    opened = await asyncio.get_running_loop().run_in_executor(None, server.open)
    try:
        replayed = await opened.prepare_replay()
        running = await opened.start(listening=replayed is None)
        signals.on_reload = running.reloader.reload_policy
        return opened, replayed, running
    except BaseException:
        await opened.close()
        raise


def _found(choice: Choice) -> str:
    """What --policy auto found, for the status page."""
    return f"--policy auto: {choice.describe()}"
