"""Replays a workload against the live engine in real time, open loop: requests arrive when the trace says, answered or not."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pandas as pd

from serving.engine.engine import Engine
from serving.engine.request import Outcome, table_of
from serving.executors.base import Executor
from traces.workload import Workload

POOL = 16  # different inputs a model


def make_inputs(executor: Executor, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """A small pool of example inputs for each loaded model."""
    rng = np.random.default_rng(seed)
    return {name: [model.example(rng) for _ in range(POOL)] for name, model in executor.models.items()}


async def replay(engine: Engine, workload: Workload, inputs: dict[str, list[np.ndarray]]) -> pd.DataFrame:
    """Offer every request of the workload at its time and wait until all have ended.

    Args:
        engine: started. workload: its models must be served. inputs: pool of inputs by model.

    Returns:
        One row a request, in the columns that ``agents.evaluation.summary.summarise`` reads; times on the clock of the
        workload.
    """
    start_ms = engine.now_ms()
    requests = []
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
    outcomes: list[Outcome] = [await request.future for request in requests]
    return table_of(outcomes, start_ms)


async def measure_capacity(
    engine: Engine,
    inputs: dict[str, list[np.ndarray]],
    duration_s: float = 5.0,
    share: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Requests per second that the live executor completes when its queues are never empty.

    Args:
        engine: started, under a work-conserving policy that batches (fifo).
        inputs: pool of inputs by model.
        duration_s: time to measure for, after a fifth of it to fill up.
        share: (M,) share of each model; None: equal.
        seed: of the mix.
    """
    rng = np.random.default_rng(seed)
    names = list(engine.models)
    done = 0
    counting = False

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            name = names[int(rng.choice(len(names), p=share))]
            outcome = await engine.submit(name, 1, 1e9, inputs[name][int(rng.integers(POOL))])
            if counting and outcome.answered:
                done += 1

    now = time.perf_counter()
    begin, end = now + 0.2 * duration_s, now + 1.2 * duration_s
    # Enough clients that every model's queue can fill its largest batch.
    clients = [asyncio.create_task(client()) for _ in range(len(names) * engine.profile.batch_sizes[-1])]
    await asyncio.sleep(begin - time.perf_counter())
    counting = True
    await asyncio.sleep(max(end - time.perf_counter(), 0.0))
    counting = False
    await asyncio.gather(*clients)
    return done / duration_s
