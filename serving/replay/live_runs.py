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
from envs.profiles.profile import Profile
from serving.engine.engine import Engine
from serving.engine.request import Observer
from serving.executors.executor import Executor
from serving.executors.factory import make_executor
from serving.models.load import load_buckets, spec_of
from serving.models.served import ServedModel
from serving.observers.output import saving
from serving.observers.report import result_of
from serving.observers.tensorboard import TensorBoardWriter
from serving.profiling.calibrate import SHIPPED, SoloRun, machine_of
from serving.profiling.device_models import DeviceModels
from serving.replay.replay import Inputs, live_capacity, make_inputs, replay
from traces.machine import MachineInfo, ModelInfo
from traces.workload import Workload


@dataclass
class Machine:
    """A device with models loaded, and what was measured of it.

    Attributes:
        executor: with the models loaded.
        profile: as fitted to this machine.
        inputs: pool of inputs by model.
        solo: the runs of each model alone that it was fitted to.
    """

    executor: Executor
    profile: Profile
    inputs: Inputs
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
    models: Sequence[str | ServedModel],
    streams: int = 4,
    device: str = "auto",
    base: Profile | None = None,
    seed: int = 0,
) -> Machine:
    """Load models, and measure their solo latencies; interference is that of the base profile.

    Args:
        models: built-in names, NAME=SOURCE, or models that are loaded already.
        streams: batches in flight.
        device: see `serving.executors.factory.make_executor`.
        base: profile to fit to this machine; None: the one that ships.
        seed: of inputs.

    Raises:
        InputError: an unknown model or device.
    """
    served: list[ServedModel] = []
    for model in models:
        served += (model,) if isinstance(model, ServedModel) else load_buckets(spec_of(model))
    executor = make_executor(device, streams)
    try:
        base = base if base is not None else Profile.load(SHIPPED)
        on_device = DeviceModels(executor, base, base.batch_sizes)
        for model in served:
            on_device.load([model])
        profile = on_device.measure([model.name for model in served])
        return Machine(executor, profile, make_inputs(executor, seed), on_device.solo)
    except BaseException:
        executor.close()
        raise


def capacity_rps(machine: Machine, duration_s: float = 5.0, seed: int = 0) -> float:
    """The live capacity of a machine: the median of three runs.

    A shared machine may be slow for some seconds, and every load is a share of this.
    """

    async def once(seed: int) -> float:
        # `open_machine` warmed the executor.
        return await live_capacity(
            machine.executor, machine.profile, machine.inputs, duration_s / 2, seed=seed, warm_executor=False
        )

    return float(np.median([asyncio.run(once(seed + i)) for i in range(3)]))


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
        machine: to run on.
        policy: a name that `agents.learned.names.resolve` knows.
        workload: what is offered, in real time.
        logdir: folder for TensorBoard.
        observers: see each end.
        facts: put in front of the result.

    Returns:
        The record of `serving.observers.report.result_of`, and one row per request.
    """

    async def serve() -> tuple[dict[str, Any], pd.DataFrame]:
        chosen, adjust_tables = resolve(policy, profile=SERVED)
        engine = Engine(machine.executor, machine.profile, chosen, adjust_tables=adjust_tables)
        settings: dict[str, object] = {"policy": policy, "workload": workload.name}
        outputs = [] if logdir is None else [TensorBoardWriter(logdir, engine, settings)]
        await engine.start(warm_executor=False)  # `open_machine` did
        engine.observers += [*observers, *outputs]
        async with saving(outputs, every_s=2.0):
            table = await replay(engine, workload, machine.inputs)
            await engine.stop()
        facts_of_run = {"policy": policy, "fallbacks": engine.guard.fallbacks, "batches": engine.batches}
        return result_of(table, (facts or {}) | facts_of_run, engine.guard.decision_us), table

    return asyncio.run(serve())
