"""How a door's calls end: each is counted once, a door that stops loses none, and what is no door is shown out."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from api_server import LINK, X, call_of, cluster, greeting_of, until

from agents.routing.registry import router
from serving.api.plane import DIRECT
from serving.api.refusal import Kind, Refusal
from serving.cluster import replica as replicas
from serving.cluster.frames import open_frame
from serving.cluster.link import Link
from serving.cluster.remote_plane import ENDS, RemotePlane
from serving.config import ServeConfig
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError


async def test_each_call_is_counted_by_the_one_way_in_which_it_ended(
    executors: list[CpuExecutor], gate: threading.Event
) -> None:
    ends = {*ENDS.values(), "answered", "refused", "left"}
    async with cluster(executors) as c:

        def rest() -> dict[str, int]:
            found = {name: c.door.count[name] for name in ends if c.door.count[name]}
            assert c.door.count["sent"] == sum(found.values())
            return found

        for _ in range(3):
            await c.double()
        assert rest() == {"answered": 3}
        with pytest.raises(Refusal):
            await c.double(deadline_ms=1e-4)
        with pytest.raises(Refusal, match="not served any more"):
            view = c.door.model("double")
            c.door._places.pop(view.scheduled)
            await c.double()
        c.door.refuse(view, 0, 5.0, 1, "its quote is low", DIRECT)
        assert rest() == {"answered": 3, "unreachable": 2, "refused": 1}
        slow = c.slow(2)
        await until(lambda: sum(plane.engine.in_flight for plane in c.planes) == 2)
        slow[0].cancel()
        await asyncio.wait({slow[0]})
        gate.set()
        await asyncio.wait(slow)
        assert rest() == {"answered": 4, "unreachable": 2, "refused": 1, "left": 1}
        for place in (0, 1):
            await c.lose(place)
        await until(lambda: not c.door.ready)
        with pytest.raises(Refusal, match="no replica takes requests"):
            await c.door.infer(c.door.model("slow"), call_of(X), 0, 5000.0)
        assert rest() == {"answered": 4, "unreachable": 2, "refused": 1, "left": 1, "unavailable": 1}


async def test_a_door_that_stops_answers_what_it_has_and_refuses_the_rest(
    executors: list[CpuExecutor], gate: threading.Event
) -> None:
    async with cluster(executors) as c:
        await c.double()  # nothing was inside after it, once
        slow = c.slow(3)
        await until(lambda: sum(plane.engine.in_flight for plane in c.planes) > 0)
        draining = asyncio.ensure_future(c.door.drain(20.0))
        await asyncio.sleep(0.01)
        assert not c.door.ready and not draining.done()
        with pytest.raises(Refusal) as caught:
            await c.double()
        assert caught.value.kind is Kind.STOPPING
        gate.set()
        await draining
        for answer in await asyncio.gather(*slow):
            assert answer.parameters["outcome"] == "met"
        await c.door.drain(20.0)  # nothing is left to wait for


async def test_a_door_does_not_wait_longer_than_it_may(executors: list[CpuExecutor], gate: threading.Event) -> None:
    async with cluster(executors) as c:
        slow = c.slow(1)
        await until(lambda: sum(plane.engine.in_flight for plane in c.planes) > 0)
        await c.door.drain(0.05)
        assert not slow[0].done()
        gate.set()
        await asyncio.wait(slow)


@pytest.mark.parametrize("first", [b"", b"".join(map(bytes, open_frame(None)))], ids=["says nothing", "does not ping"])
async def test_who_says_nothing_is_shown_out_and_the_doors_go_on(
    executors: list[CpuExecutor], first: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replicas, "OPEN_S", 0.2)
    monkeypatch.setattr(replicas, "SILENCE_S", 1.0)
    async with cluster(executors) as c:
        opened = [await asyncio.open_connection("127.0.0.1", c.listeners[0].port) for _ in range(20)]
        for _, writer in opened:
            writer.write(first)
        for reader, writer in opened:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                while await asyncio.wait_for(reader.readexactly(1), 20.0):
                    pass
            writer.close()
        assert all(link.accepting for link in c.door.links) and len(c.replicas[0].doors) == 1
        for _ in range(2):
            np.testing.assert_array_equal(await c.double(), 2 * X)
    warned = [one.message for one in caplog.records if "is closed" in one.message]
    assert 1 <= len(warned) <= 5, "of many in short time, one is logged"


async def test_models_are_unloaded_where_they_are_and_a_load_names_who_does_not_know_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = RemotePlane(ServeConfig(port=0), [None] * 3, router("quote"), LINK, retries=1)
    for place, link in enumerate(door.links):
        link.address, link.greeting, link.accepting = ("host", place), greeting_of("a"), True
    asked = []

    async def change(link: Link, load: bool, name: str, version: str) -> None:
        asked.append(link)
        if link is door.links[0] or name == "nowhere":
            raise Refusal(Kind.NOT_FOUND, "it has none of that name")

    monkeypatch.setattr(Link, "change", change)
    await door.repository.unload("b")
    assert asked == list(door.links)
    with pytest.raises(InputError, match="host:0 of 3 replicas do not know model 'b'; the others have it"):
        await door.repository.load("b")
    for verb in (door.repository.load, door.repository.unload):
        with pytest.raises(KeyError):
            await verb("nowhere")
    await door.close()
