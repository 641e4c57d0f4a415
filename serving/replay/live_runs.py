"""Policies live on one machine: the same models, the same requests, one engine after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.learned.names import SERVED, resolve
from agents.policies.base import make_policy
from envs.profiles.profile import Profile
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.request import Observer
from serving.executors.base import Executor
from serving.executors.factory import make_executor
from serving.models.load import load_model, spec_of
from serving.observers.report import result_of
from serving.observers.tensorboard import Telemetry
from serving.profiling.calibrate import SHIPPED, SoloRun, calibrated, machine_of, measure_solo
from serving.replay.replay import make_inputs, measure_capacity, replay
from traces.machine import MachineInfo, ModelInfo
from traces.workload import Workload


@dataclass
class Machine:
    """A device with models loaded, and what was measured of it.

    Attributes:
        executor: with the models loaded. profile: as fitted to this machine. inputs: pool of inputs by model.
        solo: the runs of each model alone that it was fitted to.
    """

    executor: Executor
    profile: Profile
    inputs: dict[str, list[np.ndarray]]
    solo: list[SoloRun] = field(default_factory=list)

    @property
    def info(self) -> MachineInfo:
        """The description of the machine, models in the order of its profile."""
        loaded = self.executor.models
        described = [ModelInfo(**loaded[name].describe()) for name in self.profile.models]
        return machine_of(self.executor, described, self.profile.batch_sizes)

    def close(self) -> None:
        """Stop the device's threads."""
        self.executor.close()


def open_machine(
    models: Sequence[str], streams: int = 4, device: str = "auto", base: Profile | None = None, seed: int = 0
) -> Machine:
    """Load models, and measure their solo latencies; interference is that of the base profile.

    Args:
        models: built-in names, or NAME=SOURCE.
        streams: batches in flight.
        device: see ``serving.executors.factory.make_executor``.
        base: profile to fit to this machine; None: the one that ships.
        seed: of inputs.

    Raises:
        InputError: an unknown model or device.
    """
    served = [load_model(spec_of(name)) for name in models]
    executor = make_executor(device, streams)
    try:
        base = base if base is not None else Profile.load(SHIPPED)
        for model in served:
            executor.load(model)
        runs = measure_solo(executor, [model.name for model in served], base.batch_sizes)
        described = [ModelInfo(**model.describe()) for model in served]
        profile = calibrated(base, machine_of(executor, described, base.batch_sizes), runs)
        return Machine(executor, profile, make_inputs(executor, seed), runs)
    except BaseException:
        executor.close()
        raise


def capacity_rps(machine: Machine, duration_s: float = 5.0, seed: int = 0) -> float:
    """Requests per second that this machine completes when its queues are never empty: the median of three runs.

    A shared machine may be slow for some seconds, and every load is told as a share of this.
    """
    executor, profile, inputs = machine.executor, machine.profile, machine.inputs
    runs = [asyncio.run(capacity_of(executor, profile, inputs, duration_s / 2, seed=seed + i)) for i in range(3)]
    return float(np.median(runs))


async def capacity_of(
    executor: Executor,
    profile: Profile,
    inputs: dict[str, list[np.ndarray]],
    duration_s: float,
    share: np.ndarray | None = None,
    seed: int = 0,
    config: EngineConfig | None = None,
    drain_s: float = 10.0,
) -> float:
    """The same on an engine of its own, so that the one that is judged starts without having learned.

    Args:
        executor: with the profile's models loaded. profile: of them. inputs: pool of inputs by model.
        duration_s, share, seed: see ``serving.replay.replay.measure_capacity``.
        config: of the engine. drain_s: longest time that it is given to finish what is inside.
    """
    engine = Engine(executor, profile, make_policy("fifo"), config)
    await engine.start()
    capacity = await measure_capacity(engine, inputs, duration_s, share, seed)
    await engine.stop(drain_s)
    return capacity


def run_live(
    machine: Machine,
    policy: str,
    workload: Workload,
    logdir: Path | None = None,
    observers: Sequence[Observer] = (),
    facts: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Serve a workload live under one policy, on an engine that starts without having learned.

    Args:
        machine: to run on. policy: a name that ``agents.learned.names.resolve`` knows. workload: what is offered, in real time.
        logdir: folder for TensorBoard. observers: told of each end. facts: put in front of the result.

    Returns:
        The record of ``serving.observers.report.result_of``, and one row a request.
    """

    async def serve() -> tuple[dict[str, Any], pd.DataFrame]:
        chosen, tell = resolve(policy, profile=SERVED)
        engine = Engine(machine.executor, machine.profile, chosen, EngineConfig(), tell)
        await engine.start(warm_executor=False)  # ``open_machine`` did
        engine.observers.extend(observers)
        telemetry = None
        if logdir is not None:
            telemetry = Telemetry(logdir, engine, {"policy": policy, "workload": workload.name})
            engine.observers.append(telemetry)
            ticking = asyncio.ensure_future(_every(2.0, telemetry.write))
        table = await replay(engine, workload, machine.inputs)
        await engine.stop()
        if telemetry is not None:
            ticking.cancel()
            telemetry.close()
        told = {"policy": policy, "fallbacks": engine.guard.fallbacks, "batches": engine.batches}
        return result_of(table, (facts or {}) | told, engine.guard.decision_us), table

    return asyncio.run(serve())


async def _every(seconds: float, what: Any) -> None:
    while True:
        await asyncio.sleep(seconds)
        what()
