"""Models are loaded and unloaded through a door on each replica, on those that were away as soon as they are there."""

from __future__ import annotations

import asyncio

import pytest
from api_server import LINK, cluster, greeting_of, says, until

from agents.routing.registry import router
from serving.api.refusal import Kind, Refusal
from serving.cluster.link import Link, Lost
from serving.cluster.remote_plane import RemotePlane
from serving.config import ServeConfig
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError


def test_models_are_loaded_on_every_replica(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            await c.door.load("other", {})
            assert [plane.repository.calls for plane in c.planes] == [[("load", "other")]] * 2  # type: ignore[union-attr]
            with pytest.raises(Refusal) as caught:
                await c.door.unload("nowhere", {})
            assert caught.value.kind is Kind.NOT_FOUND
            assert {row["name"] for row in c.door.repository_index()} == {"double", "other"}

    asyncio.run(scenario())


async def test_a_load_that_fails_half_way_names_the_replica_that_serves_something_else_now(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = RemotePlane(ServeConfig(port=0), [None] * 3, router("quote"), LINK, retries=1)
    for place, link in enumerate(door.links):
        link.address, link.greeting, link.accepting = ("host", place), greeting_of("a"), True
    door.agree()

    async def change(link: Link, load: bool, name: str, version: str) -> None:
        if link is door.links[1]:
            raise Refusal(Kind.BAD_INPUT, "no such file")
        link.greeting = greeting_of("a", name)
        door._on_change(link)

    monkeypatch.setattr(Link, "change", change)
    with caplog.at_level("WARNING"), pytest.raises(InputError, match="replica host:1: no such file"):
        await door.repository.load("b")
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["replica host:0 serves other models (a, b); it gets no requests"]
    await door.close()


async def test_a_load_that_no_replica_can_hear_is_no_fault_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    door = RemotePlane(ServeConfig(port=0), [None] * 3, router("quote"), LINK, retries=1)
    for change_it in (door.repository.load, door.repository.unload):
        with pytest.raises(Refusal, match="no replica is there") as caught:
            await change_it("b")
        assert caught.value.kind is Kind.STOPPING
    with pytest.raises(Refusal, match="no replica is there") as caught:
        await door.load("b", {})
    assert caught.value.kind is Kind.STOPPING, "503 to a client"
    says(door, 0, "a")

    async def change(link: Link, load: bool, name: str, version: str) -> None:
        raise Lost("replica host:0 is lost")

    monkeypatch.setattr(Link, "change", change)
    with pytest.raises(Refusal, match="host:0 is lost; load model 'b' again") as caught:
        await door.repository.load("b")
    assert caught.value.kind is Kind.STOPPING
    await door.close()


async def test_a_replica_is_told_what_it_missed_once_it_is_there(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = RemotePlane(ServeConfig(port=0), [None] * 3, router("quote"), LINK, retries=1)
    caplog.set_level("INFO")
    asked: list[tuple[str, bool, str]] = []
    dying: list[Link] = []

    async def change(link: Link, load: bool, name: str, version: str) -> None:
        await asyncio.sleep(0)
        if link in dying:
            link.greeting, link.accepting = None, False
            door._on_change(link)
            raise Lost("it is lost")
        asked.append((link.name, load, name))
        assert link.greeting is not None
        names = [one for one in link.greeting.views if one != name] + [name] * load
        says(door, door.links.index(link), *sorted(names))

    monkeypatch.setattr(Link, "change", change)
    for place in (0, 1):
        says(door, place, "a", "b")
    dying.append(door.links[1])
    await door.repository.load("b")  # again: its file has changed
    await door.repository.load("c")
    await door.repository.unload("a")
    assert asked == [("host:0", True, "b"), ("host:0", True, "c"), ("host:0", False, "a")]
    assert [
        f"load b: replica {name} is away; it is told once it is there" in caplog.text
        for name in ("host:1", door.links[2].name)
    ] == [True, True]

    asked.clear()
    says(door, 1, "a", "b")  # is lost again while it is told
    await asyncio.sleep(0.01)
    dying.clear()
    says(door, 1, "a", "b")
    await until(lambda: door.is_used(1))
    assert asked == [("host:1", True, "b"), ("host:1", True, "c"), ("host:1", False, "a")]
    assert set(door.views) == {"b", "c"}

    asked.clear()
    says(door, 1)
    says(door, 1, "b", "c")  # it was told before, and has it: a connection was lost, no more
    says(door, 2, "b", "c")  # it missed them, and others of today may be in its files
    await until(lambda: len(asked) == 2)
    assert asked == [("host:2", True, "b"), ("host:2", True, "c")]
    says(door, 2)
    says(door, 2, "a", "b")  # begun anew, with the models of its list
    await until(lambda: door.is_used(2))
    assert asked[2:] == [("host:2", True, "c"), ("host:2", False, "a")]
    assert "serves other models" not in caplog.text
    await door.close()
