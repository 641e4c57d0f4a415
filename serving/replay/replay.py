"""Replays a workload against the live engine in real time, open loop: requests arrive when the trace says, answered or not."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pandas as pd

from agents.policies.registry import make_policy
from envs.profiles.profile import Profile
from envs.scheduling.state import LOW
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.request import Request, result_table
from serving.executors.executor import Executor
from serving.models.tensors import Item
from traces.workload import Workload

POOL = 16  # different inputs per model
Inputs = dict[str, list[Item]]


def make_inputs(executor: Executor, seed: int = 0) -> Inputs:
    """A small pool of example inputs for each loaded model."""
    rng = np.random.default_rng(seed)
    return {name: [model.example(rng) for _ in range(POOL)] for name, model in executor.models.items()}


async def replay(
    engine: Engine, workload: Workload, inputs: Inputs, offered: list[Request] | None = None
) -> pd.DataFrame:
    """Offer every request of the workload at its time and wait until all have ended.

    Args:
        engine: started.
        workload: its models must be served.
        inputs: pool of inputs by model.
        offered: the requests are appended to it, so that they are known if this is cancelled.

    Returns:
        One row per request, in the columns that `agents.evaluation.summary.summarise` reads; times on the clock of the
        workload.
    """
    start_ms = engine.now_ms()
    requests = [] if offered is None else offered
    for i in range(len(workload.arrival_ms)):
        due = start_ms + float(workload.arrival_ms[i])
        ahead_s = (due - engine.now_ms()) / 1e3
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        name = workload.models[int(workload.model[i])]
        # The deadline counts from when the request was due to arrive, so a late driver cannot flatter the scheduler.
        requests += engine.offer(
            name, int(workload.priority[i]), float(workload.deadline_ms[i]), [inputs[name][i % POOL]], arrival_ms=due
        )
        if i % 64 == 0:
            await asyncio.sleep(0)
    return result_table([await request.future for request in requests], start_ms)


async def live_capacity(
    executor: Executor,
    profile: Profile,
    inputs: Inputs,
    duration_s: float,
    share: np.ndarray | None = None,
    seed: int = 0,
    config: EngineConfig | None = None,
    warm_executor: bool = True,
) -> float:
    """Requests per second that an executor completes when its queues are never empty.

    It is measured on an engine of its own, so that one which is compared starts without having learned, and under a
    work-conserving policy that batches.

    Args:
        executor: with the profile's models loaded.
        profile: of them.
        inputs: pool of inputs by model.
        duration_s: time to measure for, after a fifth of it to fill up.
        share: (M,) share of each model; None: equal.
        seed: of the mix.
        config: of the engine.
        warm_executor: as `Engine.start` has it.
    """
    engine = Engine(executor, profile, make_policy("fifo"), config)
    await engine.start(warm_executor)
    rng = np.random.default_rng(seed)
    names = list(engine.models)
    now = time.perf_counter()
    begin, end = now + 0.2 * duration_s, now + 1.2 * duration_s
    completed = 0

    async def client() -> None:
        nonlocal completed
        while time.perf_counter() < end:
            name = names[int(rng.choice(len(names), p=share))]
            result = await engine.submit(name, LOW, 1e9, inputs[name][int(rng.integers(POOL))])
            completed += result.answered and begin <= time.perf_counter() < end

    # Enough clients that every model's queue can fill its largest batch.
    await asyncio.gather(*(client() for _ in range(len(names) * profile.batch_sizes[-1])))
    await engine.stop()
    return completed / duration_s
