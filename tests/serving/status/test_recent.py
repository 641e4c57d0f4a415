"""What the status page is told of the last seconds: correct, only what is new, and in bounded memory."""

from __future__ import annotations

import itertools

import orjson
import pytest

from serving.engine.request import UNNAMED, BatchRecord, Refused, RequestResult
from serving.status.recent import LONGEST_MESSAGE, MOST_BATCHES, MOST_REFUSALS, TICK_MS, WINDOW_MS, Recent
from traces.measurements import Phases


class World:
    """A clock that is set, queues that are set, and what happens by both."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.queued: dict[str, list[int]] = {}
        self.recent = Recent(lambda: self.now_ms, lambda: dict(self.queued))
        self._number = itertools.count()

    def batch(self, model: str = "m", error: str | None = None) -> None:
        t = self.now_ms
        phases = Phases(t - 8, t - 7, t - 6, t - 6, t - 2, t - 1)
        self.recent.batch_ended(
            BatchRecord(
                batch_id=next(self._number), stream=1, model=model, priority=0, batch_size=2, n_high=1, error=error,
                phases=phases, decided_ms=t - 9, seen_ms=t, predicted_ms=6.0, co_runners=0,
            )
        )  # fmt: skip

    def end(
        self, outcome: str = "met", priority: int = 0, reason: str = "", message: str = "", model: str = "m"
    ) -> None:
        self.recent.request_ended(
            RequestResult(
                id=next(self._number), model=model, priority=priority, outcome=outcome, reason=reason, message=message,
                arrival_ms=self.now_ms - 9, deadline_ms=self.now_ms, offered_ms=self.now_ms - 9, finish_ms=self.now_ms,
            )
        )  # fmt: skip


@pytest.fixture
def world() -> World:
    return World()


def test_each_answer_has_what_is_new_since_the_one_before(world: World) -> None:
    since, models, ends = 0.0, [], 0
    for number in range(200):
        world.now_ms += 37.0
        world.batch(str(number))
        world.end()
        if number % 3 == 0:
            world.now_ms += 1.0
            answer = world.recent.answer(since)
            models += [batch["model"] for batch in answer["batches"]]
            # The tick that `since` lies in was not over then.
            new = {tick["start_ms"]: tick["ends"]["high"].get("met", 0) for tick in answer["ticks"]}
            assert since == 0.0 or min(new) <= since
            ends += sum(count for start, count in new.items() if start + TICK_MS <= world.now_ms // TICK_MS * TICK_MS)
            since = answer["now_ms"]
    assert models == [str(number) for number in range(199)], "each batch once, in its order"
    whole = world.recent.answer(0.0)
    assert sum(tick["ends"]["high"].get("met", 0) for tick in whole["ticks"]) == 200


def test_ends_are_counted_by_priority_and_outcome_in_their_quarter_of_a_second(world: World) -> None:
    for priority, outcome in itertools.product((0, 1), ("met", "late", "dropped", "failed", "cancelled")):
        world.end(outcome, priority)
    world.end("late", 1)
    world.now_ms = TICK_MS
    world.end()
    first, second = world.recent.answer(0.0)["ticks"]
    assert first["ends"]["high"] == dict.fromkeys(("met", "late", "dropped", "failed", "cancelled"), 1)
    assert first["ends"]["low"] == first["ends"]["high"] | {"late": 2}
    assert second["ends"] == {"high": {"met": 1}, "low": {}}


def test_queues_are_looked_at_as_a_tick_begins(world: World) -> None:
    world.queued = {"m": [2, 5]}
    world.end()
    world.queued = {}
    world.end()
    world.now_ms = TICK_MS
    ticks = world.recent.answer(0.0)["ticks"]
    assert [tick["queued"] for tick in ticks] == [{"m": [2, 5]}, {}]


def test_refusals_are_told_by_reason_with_their_number_and_the_last_message(world: World) -> None:
    world.end("dropped", 1, "queue full", "the queue of model 'm' is full")
    world.now_ms = 5.0
    world.end("dropped", 0, "deadline out of reach", "predicted finish at 9 ms", model="m@128")
    world.end("dropped", 1, "queue full", "the queue of model 'm' is full, again")
    world.end("cancelled", 1, "client left", "cancelled in the queue")
    world.now_ms = 6.0
    world.recent.request_refused(Refused("http", "bad_input", "x" * 2 * LONGEST_MESSAGE, "10.0.0.1", UNNAMED))
    refusals = world.recent.answer(0.0)["refusals"]
    assert [(one["reason"], one["model"], one["priority"], one["count"], one["last_ms"]) for one in refusals] == [
        ("bad_input", "", "", 1, 6.0),
        ("queue full", "m", "low", 2, 5.0),
        ("deadline out of reach", "m", "high", 1, 5.0),
    ]
    assert [one["message"] for one in refusals[1:]] == [
        "the queue of model 'm' is full, again",
        "predicted finish at 9 ms",
    ]
    assert refusals[0]["message"] == "x" * LONGEST_MESSAGE
    assert "10.0.0.1" not in str(refusals), "whoever sees the page need not see who calls"


def test_memory_is_bounded_and_only_the_last_seconds_are_told(world: World) -> None:
    for number in range(3 * MOST_BATCHES):
        world.now_ms += 5.0
        world.batch()
        world.end("dropped", 0, "queue full", model=f"model {number}")
    answer = world.recent.answer(0.0)
    assert len(answer["batches"]) == MOST_BATCHES
    assert len(answer["ticks"]) <= WINDOW_MS / TICK_MS + 1
    assert [one["model"] for one in answer["refusals"]] == [
        f"model {number}" for number in range(3 * MOST_BATCHES - 1, 3 * MOST_BATCHES - 1 - MOST_REFUSALS, -1)
    ]
    world.now_ms += WINDOW_MS + TICK_MS
    answer = world.recent.answer(0.0)
    assert not answer["batches"] and len(answer["ticks"]) == 1


def test_an_answer_is_json(world: World) -> None:
    world.now_ms = 10.0
    world.batch(error="it failed")
    (batch,) = orjson.loads(orjson.dumps(world.recent.answer(0.0)))["batches"]
    assert batch == {
        "stream": 1, "model": "m", "size": 2, "high": 1, "priority": "high", "start_ms": 1.0, "end_ms": 9.0,
        "predicted_ms": 6.0, "error": "it failed",
    }  # fmt: skip
