"""Refusals on arrival: of what the queue ahead puts out of reach, and of nothing else; and batches that need no thread."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from api_server import call_of, serving_plane, toy_profile

from envs.scheduling.state import DROPPED
from serving.api.refusal import Kind, Refusal
from serving.engine.admission import Admission
from serving.executors.cpu import CpuExecutor

PROFILE = toy_profile()
LARGEST = PROFILE.batch_sizes[-1]


class FakeScheduler:
    """A scheduler whose clock and queue are set by hand; all requests queued are due at the same time."""

    def __init__(self) -> None:
        self.tables = PROFILE.tables()
        self.index = {name: m for m, name in enumerate(PROFILE.models)}
        self.now, self.queued, self.due = 0.0, 10 * LARGEST, 1e9
        self.admission = Admission(self, lambda: self.now)  # type: ignore[arg-type]

    def ahead(self, priority: int, due_ms: float) -> tuple[int, float]:
        n = self.queued if self.due <= due_ms else 0
        return n, n * float(self.tables.solo[0, self.index["double"], -1]) / LARGEST

    def ends_batches(self, n: int, each_ms: float, error: str | None = None) -> None:
        for _ in range(n):
            self.now += each_ms
            batch = SimpleNamespace(priority=1, model="double", batch_size=4, n_high=0, error=error)
            self.admission.batch_ended(batch)  # type: ignore[arg-type]

    def refusal(self, deadline_ms: float, priority: int = 1) -> str:
        self.due = self.now
        return self.admission.refusal("double", priority, deadline_ms)


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


def test_the_wait_is_the_queue_over_the_measured_rate(scheduler: FakeScheduler) -> None:
    scheduler.ends_batches(50, 10.0)  # four requests in 10 ms
    wait = scheduler.queued / 4 * 10.0
    assert scheduler.refusal(1.2 * wait) == ""
    message = scheduler.refusal(0.8 * wait)
    assert f"{scheduler.queued} requests are ahead" in message and "predicted finish at" in message
    predicted = float(message.rsplit(" ", 2)[1])
    assert predicted == pytest.approx(wait, rel=0.02)


def test_nothing_is_refused_without_evidence_or_a_queue(scheduler: FakeScheduler) -> None:
    scheduler.ends_batches(5, 10.0)
    assert scheduler.refusal(1.0) == "", "too little was seen"
    scheduler.ends_batches(50, 10.0)
    assert scheduler.refusal(1.0) != ""
    assert scheduler.refusal(1.0, priority=0) == "", "the other priority has a rate of its own"
    scheduler.due = scheduler.now + 1e6
    assert scheduler.admission.refusal("double", 1, 1.0) == "", "those due later are not ahead"
    scheduler.queued = LARGEST - 1
    assert scheduler.refusal(1.0) == "", "it may join the next batch"


def test_idle_time_and_failed_batches_are_no_work(scheduler: FakeScheduler) -> None:
    scheduler.ends_batches(50, 10.0)
    scheduler.queued = 0
    scheduler.ends_batches(1, 10.0)
    scheduler.now += 100_000.0  # nothing to do
    scheduler.queued = 10 * LARGEST
    scheduler.ends_batches(1, 10.0)
    wait = scheduler.queued / 4 * 10.0
    assert scheduler.refusal(1.2 * wait) == ""
    scheduler.ends_batches(500, 10.0, error="it raised")
    assert scheduler.refusal(1.2 * wait) != "", "what fails makes the wait longer"


def test_a_slower_device_is_seen_within_seconds(scheduler: FakeScheduler) -> None:
    scheduler.ends_batches(300, 10.0)
    scheduler.ends_batches(100, 50.0)
    assert scheduler.refusal(2.5 * scheduler.queued / 4 * 10.0) != ""


async def test_an_overloaded_server_refuses_at_once_and_counts_it(executor: CpuExecutor) -> None:
    slow = np.full((1, 4), 80.0, np.float32)  # ms of each batch of up to four, on two streams
    async with serving_plane(executor) as plane:
        view = plane.model("slow")
        waiting = [asyncio.ensure_future(plane.infer(view, call_of(slow), 1, 800.0)) for _ in range(128)]
        await asyncio.sleep(0.4)
        begin = plane.engine.now_ms()
        with pytest.raises(Refusal, match="requests are ahead, predicted finish") as refused:
            await plane.infer(view, call_of(slow), 1, 450.0)
        assert refused.value.kind is Kind.UNREACHABLE
        assert plane.engine.now_ms() - begin < 100.0, "not when its deadline has come"
        high = asyncio.ensure_future(plane.infer(view, call_of(slow), 0, 5000.0))
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert (await high).parameters["outcome"] == "met"
        met = sum(not isinstance(end, Refusal) for end in ends)
        assert plane.engine.offered.tolist() == [1, 129]
        assert plane.engine.ended.sum() == 130 and plane.engine.ended[1, DROPPED] == 129 - met
