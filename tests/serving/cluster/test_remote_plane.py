"""A door and its replicas in one process: clients see what they see of one server; nothing is lost or answered twice."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from api_server import LINK, X, call_of, cluster, says, until
from toy_models import GATE

from agents.routing.registry import router
from serving.api.refusal import Kind, Refusal
from serving.cluster.frames import LENGTH, RefusalFrame, Told, open_frame, pong_frame
from serving.cluster.greeting import Greeting
from serving.cluster.link import Link
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.replica import Replica, listen_for_doors
from serving.config import ServeConfig
from serving.door import addresses
from serving.executors.cpu import CpuExecutor
from traces.errors import InputError


def test_a_door_serves_what_its_replicas_serve(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            assert set(c.door.views) == set(c.planes[0].views)
            for name in c.door.views:
                assert c.door.model(name).metadata() == c.planes[0].model(name).metadata()
                assert c.door.model(name).deadline_ms == c.planes[0].model(name).deadline_ms
            for _ in range(6):
                np.testing.assert_array_equal(await c.double(), 2 * X)
            assert [int(plane.engine.offered.sum()) for plane in c.planes] == [6, 6]  # two items each, in turn
            assert c.door.count["answered"] == 6
            assert c.door.model_statistics("double")[0]["inference_stats"]["success"]["count"] == 12
            assert b'strait_door_requests_total{event="answered"} 6.0' in c.door.metrics()[0]

    asyncio.run(scenario())


def test_the_status_page_of_a_door_shows_ends_and_refusals_and_says_what_it_does_not(
    executors: list[CpuExecutor],
) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            await c.double()
            with pytest.raises(Refusal):
                await c.double(deadline_ms=1e-4)
            shown = c.door.status()
            (ends,) = [tick["ends"]["high"] for tick in shown["ticks"] if tick["ends"]["high"]]
            assert ends == {"met": 2, "dropped": 2} and shown["batches"] == []
            (refused,) = shown["refusals"]
            assert (refused["model"], refused["count"]) == ("double", 2) and refused[
                "reason"
            ] == "deadline out of reach"
            server = shown["server"]
            assert server["policy"] == "router round_robin" and "2 take requests" in server["note"]
            assert "not shown here" in server["note"]

    asyncio.run(scenario())


def test_replicas_with_other_batch_sizes_answer_in_each_others_place(
    executors: list[CpuExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first = Replica.greeting, []

    def greeting(replica: Replica) -> Greeting:
        first.append(replica)
        said = whole(replica)
        if replica is first[0]:
            return said
        total_ms, share = ({name: row[:2] for name, row in of.items()} for of in (said.total_ms, said.share))
        return said._replace(batch_sizes=said.batch_sizes[:2], total_ms=total_ms, share=share)

    monkeypatch.setattr(Replica, "greeting", greeting)

    async def scenario() -> None:
        async with cluster(executors) as c:
            for _ in range(4):
                np.testing.assert_array_equal(await c.double(), 2 * X)
            assert all(len(plane.engine.scheduler.tables.size) > 2 for plane in c.planes)
            assert c.door.ledger is not None and c.door.ledger.ledger.replica["up"].tolist() == [[1, 1]]

    asyncio.run(scenario())


def test_refusals_mean_the_same_through_a_door(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            fails = np.full((1, 4), 666.0, np.float32)
            for model, deadline_ms, kind in (("faulty", 5000.0, Kind.FAULT), ("double", 1e-4, Kind.UNREACHABLE)):
                refusals = []
                for plane in (c.planes[0], c.door):
                    with pytest.raises(Refusal) as caught:
                        await plane.infer(plane.model(model), call_of(fails), 0, deadline_ms)
                    refusals.append(caught.value)
                assert [one.kind for one in refusals] == [kind, kind]
            with pytest.raises(Refusal, match="is not served"):
                c.door.model("no-such")

    asyncio.run(scenario())


def test_what_a_lost_replica_had_is_answered_by_the_other_once(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            GATE.clear()
            try:
                slow = c.slow(4)
                await until(lambda: all(plane.engine.in_flight for plane in c.planes))
                await c.lose(0)
                await until(lambda: c.door.count["retried"] == 2)
            finally:
                GATE.set()
            answers = await asyncio.gather(*slow)
            assert len(answers) == 4
            assert c.door.count["answered"] == 4
            np.testing.assert_array_equal(await c.double(), 2 * X)
            known = c.door.ledger.ledger  # type: ignore[union-attr]
            assert known.replica["up"][0].tolist() == [0, 1]
            assert (known.count == 0).all()

    asyncio.run(scenario())


def test_without_a_replica_requests_are_refused_at_once_and_one_that_comes_back_is_used(
    executors: list[CpuExecutor],
) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            for place in (0, 1):
                await c.lose(place)
            await until(lambda: not c.door.ready)
            with pytest.raises(Refusal, match="no replica takes requests"):
                await c.double()
            _, port = c.door.links[1].address  # type: ignore[misc]
            again = await listen_for_doors(c.replicas[1], port, None)
            await until(lambda: c.door.ready)
            np.testing.assert_array_equal(await c.double(), 2 * X)
            await again.close()

    asyncio.run(scenario())


def test_a_replica_that_moves_is_followed_and_what_it_had_is_sent_again(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            GATE.clear()
            try:
                slow = c.slow(4)
                await until(lambda: all(plane.engine.in_flight for plane in c.planes))
                link = c.door.links[0]
                link.move(None)
                await until(lambda: c.door.count["retried"] == 2 and not link.accepting)
                assert b'strait_replica_up{replica="that is' not in c.door.metrics()[0]
                again = await listen_for_doors(c.replicas[0], 0, None)
                link.move(("127.0.0.1", again.port))
                await until(lambda: link.accepting)
            finally:
                GATE.set()
            assert len(await asyncio.gather(*slow)) == 4
            await c.lose(1)
            await until(lambda: not c.door.links[1].accepting)
            np.testing.assert_array_equal(await c.double(), 2 * X)
            await again.close()

    asyncio.run(scenario())


def test_a_door_quotes_each_call_once_for_those_that_ask(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            quoted: list[float] = []
            c.door.on_quote = quoted.append
            await c.double()
            await c.double()
            assert len(quoted) == 2 and all(0.5 < one <= 1.0 for one in quoted)

    asyncio.run(scenario())


def test_a_draining_replica_loses_nothing_and_gets_nothing_more(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            c.replicas[0].drain()
            await c.planes[0].engine.stop(5.0)
            await until(lambda: not c.door.links[0].accepting)
            before = int(c.planes[0].engine.offered.sum())
            for _ in range(4):
                np.testing.assert_array_equal(await c.double(), 2 * X)
            assert int(c.planes[0].engine.offered.sum()) == before

    asyncio.run(scenario())


def test_a_client_that_leaves_takes_its_request_out_of_the_replica(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            GATE.clear()
            try:
                slow = c.slow(12)
                await until(lambda: sum(plane.engine.queued for plane in c.planes) > 0)
                for one in slow:
                    one.cancel()
                await asyncio.gather(*slow, return_exceptions=True)
                await until(lambda: sum(plane.engine.queued for plane in c.planes) == 0)
            finally:
                GATE.set()
            assert not c.door._clients

    asyncio.run(scenario())


def test_a_silent_replica_is_lost(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors, link=LINK._replace(silence_s=0.4)) as c:
            for door in c.replicas[0].doors:
                door.write = lambda parts: None  # type: ignore[method-assign]  # it hears, and says nothing
            await until(lambda: not c.door.links[0].accepting)
            np.testing.assert_array_equal(await c.double(), 2 * X)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        LENGTH.pack(2**31),
        b"".join(bytes(part) for part in open_frame("wrong")),
        LENGTH.pack(3) + b"\x07ab",
    ],
    ids=["HTTP", "too long", "wrong token", "no greeting"],
)
def test_who_is_no_door_is_shown_out_and_the_doors_go_on(executors: list[CpuExecutor], sent: bytes) -> None:
    async def scenario() -> None:
        async with cluster(executors, link=LINK._replace(token="right"), token="right") as c:
            reader, writer = await asyncio.open_connection("127.0.0.1", c.listeners[0].port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 10.0) == b""
            writer.close()
            np.testing.assert_array_equal(await c.double(), 2 * X)

    asyncio.run(scenario())


def test_a_replica_that_closes_before_it_says_what_it_serves_is_named_once_and_asked_ever_less_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(4))  # as one of another version does
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            link = Link(server.sockets[0].getsockname(), LINK, lambda link: None, lambda link, told: None)
            await until(lambda: len(asked) >= 3)
            await asyncio.sleep(0.2)
            await link.close()
            assert len(asked) <= 5

    with caplog.at_level("WARNING"):
        asyncio.run(scenario())
    assert sum("another version or token" in record.message for record in caplog.records) == 1


def test_what_a_replica_tells_is_noted_in_the_order_it_was_told() -> None:
    noted: list[Told] = []

    async def scenario() -> None:
        link = Link(None, LINK, lambda link: None, lambda link, told: noted.append(told))
        refusal = RefusalFrame(1, 0, False, Told(0.5, 0, 0.0, b""), "late").pack()
        for frame in (refusal, pong_frame(True, Told(0.25, 0, 0.0, b""))):
            link._on_frame(memoryview(b"".join(frame))[LENGTH.size :])
        await asyncio.sleep(0)
        await link.close()

    asyncio.run(scenario())
    assert [told.log_slowdown for told in noted] == [0.5, 0.25]


@pytest.mark.parametrize("peer", ["host", "host:", ":80", "host:0", "host:99999", "host:x"])
def test_malformed_peers_are_refused(peer: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"):
        addresses([peer])


def test_a_peer_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        addresses(["a:1", "a:1"])


def test_a_door_quotes_what_its_replicas_could_do(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            view = c.door.model("double")
            sure, never = c.door.quote(view, 0, 5000.0), c.door.quote(view, 0, 0.01)
            assert sure.probability > 0.9 > 0.1 > never.probability
            assert sure.finish_ms[0.5] < sure.finish_ms[0.9] < sure.finish_ms[0.95]
            assert c.planes[0].quote(view, 0, 5000.0).probability > 0.9
            assert all(plane.engine.offered.sum() == 0 for plane in c.planes)  # nothing is offered

    asyncio.run(scenario())


def test_a_door_refuses_what_no_replica_is_likely_to_have_in_time(executors: list[CpuExecutor]) -> None:
    async def scenario() -> None:
        async with cluster(executors) as c:
            c.door.config.least_quote = 0.5
            with pytest.raises(Refusal, match=r"quoted 0.0 % in time, at least 50.0 % is expected \(--least_quote\)"):
                await c.double(deadline_ms=0.01)
            assert all(plane.engine.offered.sum() == 0 for plane in c.planes)
            assert c.door.model_statistics("double")[0]["inference_stats"]["fail"]["count"] == 2
            np.testing.assert_array_equal(await c.double(), 2 * X)

    asyncio.run(scenario())


async def test_a_door_serves_what_most_of_its_replicas_do(caplog: pytest.LogCaptureFixture) -> None:
    door = RemotePlane(ServeConfig(port=0), [None] * 4, router("quote"), LINK, retries=1)

    with caplog.at_level("INFO"):
        assert says(door, 0, "a", "b") == ("a", "b")
        assert says(door, 1, "c") == ("a", "b"), "one is not more than one"
        warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert warned == ["replica host:1 serves other models (c); it gets no requests"]
        assert [door.is_used(place) for place in range(4)] == [True, False, False, False]
        assert "of which 1 take requests" in door.in_force()["note"]
        assert says(door, 2, "a", "b") == ("a", "b")
        assert says(door, 2, "c") == says(door, 3, "c") == ("c",), "a rolling update: most have the new ones"
        assert says(door, 0, "c") == ("c",)
        assert [says(door, place) for place in (1, 2, 3)] == [("c",)] * 3
        assert door.repository_index()[0]["state"] == "READY"
        assert says(door, 0) == ("c",) and not door.ready
        assert [row["state"] for row in door.repository_index()] == ["UNAVAILABLE"]
        assert says(door, 3, "a") == ("a",), "nobody serves what was served"
    assert [record.message for record in caplog.records if record.message.startswith("the replicas serve")] == [
        f"the replicas serve {names}" for names in ("a, b", "c", "a")
    ]
    await door.close()


async def test_a_door_counts_what_it_answered_as_triton_does(executors: list[CpuExecutor]) -> None:
    async with cluster(executors) as both:
        for _ in range(3):
            await both.double()
        (found,) = both.door.model_statistics("double")
        assert found["inference_count"] == found["inference_stats"]["success"]["count"] == 3 * len(X)
