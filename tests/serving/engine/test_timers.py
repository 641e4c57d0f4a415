"""Requests that arrive in one tick of the event loop are decided on together; one that arrives alone does not wait."""

from __future__ import annotations

import asyncio

from serving.engine.timers import Coalescer


async def ticks(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_single_arrival_does_not_wait_and_a_burst_is_acted_on_at_the_end_of_its_tick() -> None:
    waiting, groups = 0, []

    def act() -> None:
        nonlocal waiting
        groups.append(waiting)
        waiting = 0

    coalescer = Coalescer(act)

    def arrive(n: int) -> None:
        nonlocal waiting
        for _ in range(n):
            waiting += 1
            coalescer.arrived()

    for _ in range(3):
        arrive(1)
        assert waiting == 0, "alone, at once"
        await ticks(2)
    assert groups == [1, 1, 1]
    arrive(5)
    assert groups == [1, 1, 1, 1] and waiting == 4, "the first of a burst looks like a single one"
    await ticks(1)
    assert groups == [1, 1, 1, 1, 4]
    arrive(3)
    assert waiting == 3, "after a burst the first waits, too"
    await ticks(3)
    assert groups == [1, 1, 1, 1, 4, 3], "once each, and nothing when nothing arrived"
    arrive(1)
    assert waiting == 0, "the burst is over"
