"""Refusals on arrival: of what the queue ahead puts out of reach, and of nothing else; and batches that need no thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from front_server import make_executor, serving_plane, toy_profile

from agents.policies.base import make_policy
from envs.scheduling.state import DROPPED
from serving.api.admission import Admission
from serving.api.refusal import Kind, Refusal
from serving.engine.engine import Engine
from serving.executors.base import Batch
from serving.executors.cpu import HANDOVER_MS, CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec

PROFILE = toy_profile()
LARGEST = PROFILE.batch_sizes[-1]


class FakeEngine:
    """An engine whose clock and queue are set by hand; all requests queued are due at the same time."""

    def __init__(self) -> None:
        self.profile, self.tables, self.models = PROFILE, PROFILE.tables(), PROFILE.models
        self.observers: list[Any] = []
        self.now, self.queued, self.due = 0.0, 0, 1e9

    def now_ms(self) -> float:
        return self.now

    def ahead(self, priority: int, due_ms: float) -> tuple[int, float]:
        n = self.queued if self.due <= due_ms else 0
        m = self.models.index("double")
        return n, n * float(self.tables.solo[0, m, -1]) / LARGEST

    def ends_batches(self, n: int, each_ms: float, error: str | None = None) -> None:
        for _ in range(n):
            self.now += each_ms
            batch = SimpleNamespace(priority=1, model="double", batch_size=4, error=error)
            self.observers[0].batch_ended(batch)


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    Admission(made)  # type: ignore[arg-type]
    made.queued = 10 * LARGEST
    return made


def refusal(engine: FakeEngine, deadline_ms: float, priority: int = 1) -> str:
    engine.due = engine.now
    admission: Admission = engine.observers[0]
    return admission.refusal("double", priority, deadline_ms)


def test_the_wait_is_the_queue_over_the_measured_rate(engine: FakeEngine) -> None:
    engine.ends_batches(50, 10.0)  # four requests in 10 ms
    wait = engine.queued / 4 * 10.0
    assert refusal(engine, 1.2 * wait) == ""
    message = refusal(engine, 0.8 * wait)
    assert f"{engine.queued} requests are ahead" in message and "predicted finish at" in message
    predicted = float(message.rsplit(" ", 2)[1])
    assert predicted == pytest.approx(wait, rel=0.02)


def test_nothing_is_refused_without_evidence_or_a_queue(engine: FakeEngine) -> None:
    engine.ends_batches(5, 10.0)
    assert refusal(engine, 1.0) == "", "too little was seen"
    engine.ends_batches(50, 10.0)
    assert refusal(engine, 1.0) != ""
    assert refusal(engine, 1.0, priority=0) == "", "the other priority has a rate of its own"
    engine.due = engine.now + 1e6
    assert engine.observers[0].refusal("double", 1, 1.0) == "", "those due later are not ahead"
    engine.queued = LARGEST - 1
    assert refusal(engine, 1.0) == "", "it may join the next batch"


def test_idle_time_and_failed_batches_are_no_work(engine: FakeEngine) -> None:
    engine.ends_batches(50, 10.0)
    engine.queued = 0
    engine.ends_batches(1, 10.0)
    engine.now += 100_000.0  # nothing to do
    engine.queued = 10 * LARGEST
    engine.ends_batches(1, 10.0)
    wait = engine.queued / 4 * 10.0
    assert refusal(engine, 1.2 * wait) == ""
    engine.ends_batches(500, 10.0, error="it raised")
    assert refusal(engine, 1.2 * wait) != "", "what fails makes the wait longer"


def test_a_slower_device_is_seen_within_seconds(engine: FakeEngine) -> None:
    engine.ends_batches(300, 10.0)
    engine.ends_batches(100, 50.0)
    assert refusal(engine, 2.5 * engine.queued / 4 * 10.0) != ""


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    made = make_executor()
    made.load(load_model(ModelSpec("short", "toy_models:double", (4,), "float32")))
    yield made
    made.close()


async def test_an_overloaded_server_refuses_at_once_and_counts_it(executor: CpuExecutor) -> None:
    slow = np.full((1, 4), 80.0, np.float32)  # ms of each batch of up to four, on two streams
    async with serving_plane(executor) as plane:
        view = plane.model("slow")
        waiting = [asyncio.ensure_future(plane.infer(view, slow, 1, 800.0)) for _ in range(128)]
        await asyncio.sleep(0.4)
        begin = plane.engine.now_ms()
        with pytest.raises(Refusal, match="requests are ahead, predicted finish") as refused:
            await plane.infer(view, slow, 1, 450.0)
        assert refused.value.kind is Kind.UNREACHABLE
        assert plane.engine.now_ms() - begin < 100.0, "not when its deadline has come"
        high = asyncio.ensure_future(plane.infer(view, slow, 0, 5000.0))
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert (await high).parameters["outcome"] == "met"
        met = sum(not isinstance(end, Refusal) for end in ends)
        assert plane.engine.offered.tolist() == [1, 129]
        assert plane.engine.ended.sum() == 130 and plane.engine.ended[1, DROPPED] == 129 - met


async def test_a_batch_shorter_than_its_hand_over_runs_where_the_engine_runs(executor: CpuExecutor) -> None:
    engine = Engine(executor, replace(PROFILE.select(["double"]), models=("short",)), make_policy("edf"))
    await engine.start()
    executor._loaded["short"].alone_ms = {1: 0.05}
    request = engine.offer("short", 0, 1000.0, [np.ones(4, np.float32)])[0]
    assert request.future.done(), "no other thread was waited for"
    outcome = request.future.result()
    assert outcome.outcome == "met" and outcome.output is not None and outcome.output.tolist() == [2.0] * 4
    assert engine.batches == 1 and engine.in_flight == 0
    await asyncio.sleep(0.01)
    request = engine.offer("short", 0, 1000.0, [np.ones(5, np.float32)])[0]
    assert request.future.result().outcome == "failed" and "shape" in request.future.result().message
    await engine.stop()


def test_what_runs_python_or_takes_long_is_left_to_the_threads(executor: CpuExecutor) -> None:
    ones = [np.ones(4, np.float32)]
    short = executor._loaded["short"]
    short.alone_ms = {1: 0.05}
    assert executor.run_here(0, Batch(1, "short", 0, ones)) is not None
    assert executor.run_here(0, Batch(2, "short", 0, 2 * ones)) is None, "of that size nothing is known"
    executor._loaded["double"].alone_ms = {1: 0.01}
    assert executor.run_here(0, Batch(3, "double", 0, ones)) is None, "it runs Python, which may wait for anything"
    assert executor.run_here(0, Batch(4, "unknown", 0, ones)) is None
    short.alone_ms = {1: 0.99 * HANDOVER_MS}
    forward, short.forward = short.forward, lambda batch: (_spin(2 * HANDOVER_MS), batch)[1]
    assert executor.run_here(0, Batch(5, "short", 0, ones)) is not None
    assert executor.run_here(0, Batch(6, "short", 0, ones)) is None, "it takes longer than it did"
    short.forward = forward


def _spin(ms: float) -> None:
    end = time.perf_counter() + ms / 1e3
    while time.perf_counter() < end:
        pass
