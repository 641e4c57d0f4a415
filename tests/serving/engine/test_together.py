"""Requests that come in one turn of the loop go together; a lone one does not wait."""

from __future__ import annotations

import asyncio

from serving.engine.together import Together


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_lone_one_does_not_wait_and_a_crowd_goes_at_the_end_of_its_turn() -> None:
    waiting, groups = 0, []

    def act() -> None:
        nonlocal waiting
        groups.append(waiting)
        waiting = 0

    together = Together(act)

    def come(n: int) -> None:
        nonlocal waiting
        for _ in range(n):
            waiting += 1
            together.came()

    for _ in range(3):
        come(1)
        assert waiting == 0, "alone, at once"
        await turns(2)
    assert groups == [1, 1, 1]
    come(5)
    assert groups == [1, 1, 1, 1] and waiting == 4, "the first is taken for a lone one"
    await turns(1)
    assert groups == [1, 1, 1, 1, 4]
    come(3)
    assert waiting == 3, "after a crowd the first waits, too"
    await turns(3)
    assert groups == [1, 1, 1, 1, 4, 3], "once each, and nothing when nothing came"
    come(1)
    assert waiting == 0, "the crowd is over"
