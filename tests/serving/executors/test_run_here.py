"""Batches that are shorter than their hand-over to a thread run in the thread that asks, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from api_server import toy_profile

from agents.policies.registry import make_policy
from serving.engine.engine import Engine
from serving.executors.base import Batch
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec

HANDOVER_MS = 3.0  # far more than the models take alone, so that a slow machine changes nothing
ONES = [np.ones(4, np.float32)]


@pytest.fixture
def executor() -> Iterator[CpuExecutor]:
    made = CpuExecutor(2, handover_ms=HANDOVER_MS)
    made.load(load_model(ModelSpec("rounds", "toy_models:rounds", (4,), "float32")))
    made.load(load_model(ModelSpec("python", "toy_models:double", (4,), "float32", compiled=False)))
    for name in made.models:
        made.warm_up(name, [1])
    yield made
    made.close()


async def test_a_batch_shorter_than_its_hand_over_runs_where_the_engine_runs(executor: CpuExecutor) -> None:
    engine = Engine(executor, replace(toy_profile().select(["double"]), models=("rounds",)), make_policy("edf"))
    await engine.start()
    request = engine.offer("rounds", 0, 1000.0, ONES)[0]
    assert request.future.done(), "no other thread was waited for"
    result = request.future.result()
    assert result.outcome == "met" and result.output is not None and result.output.tolist() == [2.0] * 4
    assert engine.batches == 1 and engine.in_flight == 0
    await asyncio.sleep(0.01)
    request = engine.offer("rounds", 0, 1000.0, [np.ones(5, np.float32)])[0]
    assert request.future.result().outcome == "failed" and "shape" in request.future.result().message
    await engine.stop()


def test_what_runs_python_or_is_not_known_is_left_to_the_threads(executor: CpuExecutor) -> None:
    assert executor.run_here(0, Batch(1, "rounds", 0, ONES)) is not None
    assert executor.run_here(0, Batch(2, "rounds", 0, 2 * ONES)) is None, "nothing is known of that size"
    assert executor.run_here(0, Batch(3, "python", 0, ONES)) is None, "it runs Python, which may wait for anything"
    assert executor.run_here(0, Batch(4, "unknown", 0, ONES)) is None


def test_a_model_that_becomes_slow_goes_back_to_the_threads(executor: CpuExecutor) -> None:
    slow = [np.full(4, 20_000, np.float32)]
    results = [executor.run_here(0, Batch(number, "rounds", 0, slow)) for number in range(6)]
    assert results[0] is not None and results[0].phases.total_ms > 5 * HANDOVER_MS
    assert results[-1] is None, "it takes longer than it did"
