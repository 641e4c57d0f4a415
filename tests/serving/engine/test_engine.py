"""The live engine on the real CPU executor: every request ends once, rightly, whatever goes wrong."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from api_server import BLOCKS, until

from agents.policies.base import Policy
from agents.policies.registry import kinds, make_policy
from envs.profiles.profile import Profile, synthetic_profile
from envs.scheduling.state import CANCELLED, DROPPED, HIGH, LOW, n_actions
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.request import BatchRecord, Observer, RequestResult
from serving.executors.base import Batch
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec

NAMES = ("double", "slow", "faulty", "wide")
X = np.arange(4, dtype=np.float32)
SIMULATED_ONLY = {"preempt", "preempt-instant"}
AT_THE_LAST_MOMENT = {"symphony"}  # it waits on purpose for as long as it can, and a busy machine may then be late


def toy_profile(names: tuple[str, ...] = NAMES) -> Profile:
    """Told latencies of about 1 ms: the models are faster, so that requests with a normal deadline are met."""
    made = synthetic_profile(len(names))
    return replace(made, models=names, solo_ms=np.ones_like(made.solo_ms) * np.array(made.batch_sizes) ** 0.5)


@pytest.fixture(scope="module")
def executor() -> Any:
    made = CpuExecutor(2)
    for name in NAMES:
        made.load(load_model(ModelSpec(name, f"toy_models:{name}", (4,), "float32", compiled=False)))
    yield made
    made.close()


@asynccontextmanager
async def running(
    executor: CpuExecutor, policy: Policy | None = None, config: EngineConfig | None = None
) -> AsyncIterator[Engine]:
    engine = Engine(executor, toy_profile(), policy or make_policy("edf"), config)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(5.0)
        assert engine.offered.sum() == engine.ended.sum()


@asynccontextmanager
async def blocked(
    executor: CpuExecutor, policy: Policy | None = None, config: EngineConfig | None = None
) -> AsyncIterator[Engine]:
    """An engine whose two streams are busy until the gate is open."""
    async with running(executor, policy, config) as engine:
        blockers = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        yield engine
        assert {(await blocker).outcome for blocker in blockers} == {"met"}


@dataclass
class Log(Observer):
    """Keeps all that it observes."""

    def __post_init__(self) -> None:
        self.results: list[RequestResult] = []
        self.batches: list[BatchRecord] = []

    def request_ended(self, result: RequestResult) -> None:
        self.results.append(result)

    def batch_ended(self, batch: BatchRecord) -> None:
        self.batches.append(batch)


async def test_answers_with_the_models_output(executor: CpuExecutor) -> None:
    async with running(executor) as engine:
        outcome = await engine.submit("double", 0, 5000.0, X)
        assert outcome.outcome == "met"
        assert outcome.output is not None
        np.testing.assert_array_equal(outcome.output, 2 * X)
        assert 0 <= outcome.queue_ms <= outcome.latency_ms <= 5000.0
        assert outcome.batch_size == 1 and outcome.predicted_ms > 0


@pytest.mark.parametrize("policy", ["fifo", "edf", "priority-edf", "clockwork", "strait"])
async def test_each_request_gets_its_own_output_under_every_policy(executor: CpuExecutor, policy: str) -> None:
    rng = np.random.default_rng(0)
    async with running(executor, make_policy(policy)) as engine:
        log = Log()
        engine.observers.append(log)
        inputs = [rng.standard_normal(4).astype(np.float32) for _ in range(120)]
        jobs = [engine.submit(("double", "faulty")[i % 2], i % 2, 1e5, x) for i, x in enumerate(inputs)]
        for x, outcome in zip(inputs, await asyncio.gather(*jobs)):
            assert outcome.outcome == "met", outcome
            np.testing.assert_array_equal(outcome.output, 2 * x)
    assert sorted(o.id for o in log.results) == list(range(120))
    assert sum(b.batch_size for b in log.batches) == 120
    assert any(b.batch_size > 1 for b in log.batches), "requests that wait together are batched"


@pytest.mark.parametrize("policy", sorted(set(kinds()) - SIMULATED_ONLY - AT_THE_LAST_MOMENT))
async def test_an_idle_device_starts_what_is_queued_under_every_policy(executor: CpuExecutor, policy: str) -> None:
    async with running(executor, make_policy(policy)) as engine:
        for gap_s in (0.0, 0.03, 0.3):
            assert (await engine.submit("double", HIGH, 500.0, X)).outcome == "met"
            await asyncio.sleep(gap_s)
            for model in ("wide", "double"):
                result = await engine.submit(model, LOW, 500.0, X)
                assert result.outcome == "met", f"{result}, {gap_s} s after a high-priority request"


async def test_what_arrives_in_one_tick_of_the_loop_shares_batches(executor: CpuExecutor) -> None:
    async with running(executor, make_policy("edf")) as engine:
        log = Log()
        engine.observers.append(log)
        requests = [engine.offer("double", 0, 1e5, [X])[0] for _ in range(6)]
        assert engine.in_flight == 1 and engine.queued == 5, (
            "the first does not wait; the others wait for the end of the tick"
        )
        await asyncio.gather(*(request.future for request in requests))
        assert sorted(b.batch_size for b in log.batches) == [1, 1, 4], log.batches
        # A trace's arrivals are decided on one by one, as in the simulator.
        traced = [engine.offer("double", 0, 1e5, [X], arrival_ms=engine.now_ms())[0] for _ in range(2)]
        assert engine.in_flight == 2 and engine.queued == 0
        await asyncio.gather(*(request.future for request in traced))


async def test_a_mixed_batch_answers_both_priorities_and_counts_each_as_its_own(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    log = Log()
    async with blocked(executor, make_policy("edf", mixed_batches=True)) as engine:
        engine.observers.append(log)
        good = [engine.submit("faulty", priority, 1e4 + priority, X + priority) for priority in (LOW, HIGH, LOW)]
        jobs = [*good, engine.submit("faulty", LOW, 2e4, np.full(4, 666, np.float32))]
        waiting = asyncio.gather(*jobs)
        await until(lambda: engine.queued == 4)
        gate.set()
        *outcomes, bad = await waiting
    assert len({o.batch_id for o in (*outcomes, bad)}) == 1, "one of high and three of low priority share a batch"
    for priority, outcome in zip((LOW, HIGH, LOW), outcomes, strict=True):
        assert (outcome.outcome, outcome.priority) == ("met", priority)
        np.testing.assert_array_equal(outcome.output, 2 * (X + priority))
    assert bad.outcome == "failed" and "cursed" in bad.message
    assert engine.ended.sum(1).tolist() == [3, 3]
    parts = [b for b in log.batches if b.model == "faulty"]
    assert (parts[0].priority, parts[0].batch_size, parts[0].n_high) == (HIGH, 4, 1)
    assert sum(b.batch_size for b in parts if not b.error) == 3, "run again in parts, the bad request stands alone"


async def test_a_late_answer_is_still_an_answer(executor: CpuExecutor) -> None:
    async with running(executor, make_policy("edf", drop=0.0)) as engine:
        outcome = await engine.submit("slow", 0, 5.0, np.full(4, 30, np.float32))
        assert outcome.outcome == "late"
        assert outcome.output is not None and outcome.output[0] == 60


async def test_out_of_reach_is_dropped_at_once_and_says_why(executor: CpuExecutor) -> None:
    async with running(executor) as engine:
        outcome = await engine.submit("double", 0, 0.1, X)
        assert (outcome.outcome, outcome.reason) == ("dropped", "deadline out of reach")
        assert "predicted finish" in outcome.message
        assert outcome.latency_ms < 1000


async def test_a_queued_request_is_dropped_when_its_time_is_up_though_nothing_else_happens(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    async with blocked(executor) as engine:
        outcome = await engine.submit("double", 1, 50.0, X)
        assert outcome.reason == "deadline out of reach"
        assert engine.in_flight == 2, "it did not wait for a stream"
        gate.set()


async def test_a_full_queue_refuses_at_once(executor: CpuExecutor, gate: threading.Event) -> None:
    async with blocked(executor, config=EngineConfig(queue_places=8)) as engine:
        requests = engine.offer("double", 1, 1e5, [X] * 11)
        refused = [request.future.result() for request in requests if request.future.done()]
        assert [(o.outcome, o.reason) for o in refused] == 3 * [("dropped", "queue full")]
        gate.set()
        outcomes = await asyncio.gather(*(request.future for request in requests))
        assert Counter(o.outcome for o in outcomes) == {"met": 8, "dropped": 3}


async def test_cancelling_leaves_the_queue_and_discards_what_is_in_flight(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    async with running(executor, make_policy("edf", max_batch=1)) as engine:
        log = Log()
        engine.observers.append(log)
        jobs = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(3)]
        await until(lambda: engine.in_flight == 2 and engine.queued == 1)
        jobs[0].cancel()
        jobs[2].cancel()
        await until(lambda: engine.queued == 0)
        gate.set()
        assert (await jobs[1]).outcome == "met"
        await engine.stop(5.0)
        assert sorted(o.outcome for o in log.results) == ["cancelled", "cancelled", "met"]
        assert engine.ended[HIGH, CANCELLED] == 2


async def test_a_model_that_raises_fails_its_batch_and_nothing_else(executor: CpuExecutor) -> None:
    async with running(executor) as engine:
        bad = await engine.submit("faulty", 0, 1e5, np.full(4, 666, np.float32))
        assert (bad.outcome, bad.reason) == ("failed", "fault")
        assert "this input is cursed" in bad.message
        assert (await engine.submit("faulty", 0, 1e5, X)).outcome == "met"
        assert engine.in_flight == 0


@pytest.mark.parametrize(
    ("fault", "alone", "message"),
    [(666, "failed", "cursed"), (668, "failed", "SystemExit: a model that ends its thread"), (667, "met", "")],
    ids=["raises", "ends its thread", "out of memory unless alone"],
)
@pytest.mark.parametrize("bad", [{0}, {2}, {1, 3}, {0, 1, 2, 3}])
async def test_a_failed_batch_is_split_until_bad_requests_stand_alone(
    executor: CpuExecutor, gate: threading.Event, fault: float, alone: str, message: str, bad: set[int]
) -> None:
    async with blocked(executor) as engine:
        values = [np.full(4, fault if place in bad else place, np.float32) for place in range(4)]
        requests = engine.offer("faulty", 0, 1e5, values)
        gate.set()
        for place, request in enumerate(requests):
            result = await request.future
            assert result.outcome == (alone if place in bad else "met")
            assert message in result.message if place in bad else not result.message
            if result.outcome == "met":
                np.testing.assert_array_equal(result.output, 2 * values[place])
        await until(lambda: engine.in_flight == 0)


async def test_no_model_runs_on_the_loop_however_quick_it_was(executor: CpuExecutor) -> None:
    executor.load(load_model(ModelSpec("rounds", "toy_models:rounds", (4,))))
    engine = Engine(executor, toy_profile(("rounds",)), make_policy("edf"))
    await engine.start()
    for _ in range(3):
        request = engine.offer("rounds", 0, 1e5, [X])[0]
        assert not request.future.done(), "it waits for another thread"
        assert (await request.future).outcome == "met"
    await engine.stop()


async def test_what_is_tried_before_it_is_served_holds_no_stream_up(gate: threading.Event) -> None:
    with CpuExecutor(1) as one:
        one.load(load_model(ModelSpec("double", "toy_models:double", (4,), compiled=False)))
        gate.set()
        one.load(load_model(ModelSpec("gated", "toy_models:gated", (4,), compiled=False)))
        gate.clear()
        done = threading.Event()
        one.on_result = lambda result: done.set()
        tries = [threading.Thread(target=one.warm_up, args=("gated", [1], True)),
                 threading.Thread(target=one.time_alone, args=("gated", 1, 2))]  # fmt: skip
        for trying in tries:
            trying.start()
        one.submit(0, Batch(0, "double", 0, [(X,)]))
        assert done.wait(20.0) and tries[0].is_alive()
        gate.set()
        for trying in tries:
            trying.join()


class Broken(Policy):
    """A policy with a fault."""

    def __init__(self, answer: Any) -> None:
        super().__init__(make_policy("edf").kind)
        self.answer = answer
        self.calls = 0

    def decide(self, st: Any, tb: Any, e: int = 0) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("bug"), (math.nan, math.inf), (0, math.nan), (10**6, math.inf), (-1, math.inf), None, (3, math.inf)],
    ids=["raises", "NaN action", "NaN wake", "too large", "negative", "None", "invalid candidate"],
)
async def test_a_policy_that_fails_is_replaced_by_strait(executor: CpuExecutor, answer: Any) -> None:
    policy = Broken(answer)
    async with running(executor, policy) as engine:
        for _ in range(6):
            assert (await engine.submit("double", 0, 1e5, X)).outcome == "met"
        assert engine.guard.replaced is not None
        assert engine.guard.name == "strait"
        assert engine.guard.fallbacks >= 6
        assert policy.calls <= 4, "it is not asked any more"


async def test_a_policy_that_overruns_its_budget_is_replaced(executor: CpuExecutor) -> None:
    class Sluggish(Policy):
        def decide(self, st: Any, tb: Any, e: int = 0) -> tuple[int, float]:
            time.sleep(0.004)
            return super().decide(st, tb, e)

    async with running(executor, Sluggish(make_policy("edf").kind), EngineConfig(decision_budget_ms=2.0)) as engine:
        for _ in range(10):
            assert (await engine.submit("double", 0, 1e5, X)).outcome == "met"
        assert engine.guard.overruns >= 5
        assert engine.guard.replaced is not None and "2 ms" in engine.guard.replaced


async def test_a_policy_that_never_dispatches_cannot_hold_a_request_forever(executor: CpuExecutor) -> None:
    class Idle(Policy):
        def decide(self, st: Any, tb: Any, e: int = 0) -> tuple[int, float]:
            return n_actions(st, tb) - 1, math.inf

    policy = Idle(make_policy("edf").kind, drop=0.0)
    engine = Engine(executor, toy_profile(), policy, EngineConfig(grace_ms=20.0))
    await engine.start()
    outcome = await asyncio.wait_for(engine.submit("double", 0, 30.0, X), 5.0)
    assert outcome.outcome == "dropped" and outcome.latency_ms > 50.0 - 1e-6
    await engine.stop()


async def test_stopping_finishes_what_is_inside_and_refuses_the_rest(
    executor: CpuExecutor, gate: threading.Event
) -> None:
    engine = Engine(executor, toy_profile(), make_policy("edf"))
    await engine.start()
    jobs = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(6)]
    await until(lambda: engine.in_flight == 2)
    stopping = asyncio.ensure_future(engine.stop(5.0))
    await asyncio.sleep(0)
    refused = await engine.submit("double", 0, 1e5, X)
    assert (refused.outcome, refused.reason) == ("dropped", "stopping")
    gate.set()
    await stopping
    assert {(await job).outcome for job in jobs} == {"met"}


async def test_stopping_ends_what_does_not_finish_in_time(executor: CpuExecutor, gate: threading.Event) -> None:
    engine = Engine(executor, toy_profile(), make_policy("edf", max_batch=1))
    await engine.start()
    jobs = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(5)]
    await until(lambda: engine.in_flight == 2)
    await engine.stop(0.02)
    outcomes = await asyncio.gather(*jobs)
    assert Counter((o.outcome, o.reason) for o in outcomes) == {("failed", "stopping"): 2, ("dropped", "stopping"): 3}
    assert engine.offered.sum() == engine.ended.sum() == 5
    gate.set()
    await asyncio.sleep(0.1)  # what was given up ends
    assert engine.ended.sum() == 5


async def test_the_predictor_learns_from_live_batches(executor: CpuExecutor) -> None:
    async with running(executor) as engine:
        before = (
            engine.scheduler.state.weight.copy(),
            engine.scheduler.state.bias.copy(),
            engine.scheduler.state.scale.copy(),
        )
        await asyncio.gather(*(engine.submit("wide", 0, 1e5, X) for _ in range(40)))
        after = engine.scheduler.state.weight, engine.scheduler.state.bias, engine.scheduler.state.scale
        assert any(not np.array_equal(a, b) for a, b in zip(before, after))


async def test_a_refused_request_is_counted_and_observed_once_and_never_queued(executor: CpuExecutor) -> None:
    async with running(executor) as engine:
        log = Log()
        engine.observers.append(log)
        engine.refuse("double", LOW, 50.0, 3, "too late")
        assert [(r.outcome, r.reason, r.message, r.batch_id) for r in log.results] == 3 * [
            ("dropped", "deadline out of reach", "too late", -1)
        ]
        assert engine.offered.tolist() == [0, 3] and engine.ended[LOW, DROPPED] == 3
        assert engine.queued == 0 and not engine.ledger.inside
        with pytest.raises(KeyError):
            engine.refuse("nowhere", LOW, 50.0, 1, "too late")
        assert (await engine.submit("double", LOW, 1e5, X)).id == 3, "numbers go on"


async def test_each_decision_of_the_policy_is_shown_before_its_effect(executor: CpuExecutor) -> None:
    queued: list[int] = []
    async with running(executor, make_policy("edf", max_batch=1)) as engine:
        engine.guard.on_decision = lambda policy, state, tables: queued.append(int(state.queue["length"].sum()))
        engine.offer("double", LOW, 1e5, [X] * 2)
        await until(lambda: engine.queued == 0)
        assert queued[:2] == [2, 1] and len(queued) == engine.guard.decisions
        engine.guard.policy = Broken(RuntimeError("bug"))
        await engine.submit("double", LOW, 1e5, X)
        assert len(queued) < engine.guard.decisions, "those of the fallback are not"
