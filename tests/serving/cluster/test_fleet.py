"""What keeps replicas on Ray, without Ray: its actors are objects of this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from api_server import until

import serve
from serving.config import ServeConfig
from serving.ray import fleet
from serving.ray.fleet import Fleet, Resources
from serving.ray.run import replica_config, resources_of
from traces.errors import InputError


class Reference(NamedTuple):
    """A result that may come."""

    result: Future[Any]

    def future(self) -> Future[Any]:
        return self.result


class Method:
    """A remote method, which answers, raises or (None) never returns."""

    def __init__(self, answer: Callable[[], Any] | None) -> None:
        self.answer = answer
        self.given: tuple[Any, ...] = ()

    def remote(self, *args: Any) -> Reference:
        self.given = args
        future: Future[Any] = Future()
        if self.answer is not None:
            try:
                future.set_result(self.answer())
            except Exception as error:
                future.set_exception(error)
        return Reference(future)


class Actor:
    """A replica: at a port of its own, and sound until a test changes that."""

    def __init__(self, number: int) -> None:
        self.number, self.is_accepting, self.stopped = number, True, False
        self.process, self.serve = Method(lambda: number), Method(None)
        self.start = Method(lambda: ("node", 9000 + number))
        self.accepting, self.stop = Method(lambda: self.is_accepting), Method(self._stop)

    def _stop(self) -> None:
        self.stopped = True


class Ray:
    """The part of the package that a fleet takes."""

    def __init__(self, change: Callable[[Actor], None] = lambda actor: None) -> None:
        self.made: list[Actor] = []
        self.killed: list[int] = []
        self.asked: dict[str, Any] = {}
        self._change = change

    def options(self, **asked: Any) -> Ray:
        self.asked = asked
        return self

    def remote(self, *_: Any) -> Any:
        if _:
            return self
        self.made.append(Actor(len(self.made)))
        self._change(self.made[-1])
        return self.made[-1]

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor.number)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"HEALTH_S": 0.01, "HANG_S": 0.3, "FIRST_WAIT_S": 0.01, "LAST_WAIT_S": 0.02}.items():
        monkeypatch.setattr(fleet, name, seconds)


class Kept:
    """A fleet on such a Ray, and where its replicas are."""

    def __init__(self, ray: Ray, size: int = 2) -> None:
        self.ray = ray
        self.at: dict[int, Any] = {}
        self.fleet = Fleet(ray, ServeConfig(), Resources(1.0, 0.5, 2**30), self.at.__setitem__)
        self.fleet.resize(size)


def hang(actor: Actor) -> None:
    actor.accepting = Method(None)


def refuse(actor: Actor) -> None:
    actor.is_accepting = False


def die(actor: Actor) -> None:
    actor.accepting = Method(lambda: 1 / 0)


def test_each_replica_is_told_its_place_and_keeps_it_when_it_is_started_again() -> None:
    async def scenario() -> None:
        kept = Kept(Ray(), size=3)
        await until(lambda: len(kept.at) == 3 and None not in kept.at.values())
        die(kept.ray.made[1])
        await until(lambda: kept.at[1] == ("node", 9003))
        assert [actor.start.given[0].replica_number for actor in kept.ray.made] == [0, 1, 2, 1]
        await kept.fleet.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", [hang, refuse, die])
def test_a_replica_that_fails_is_killed_and_started_again_at_a_new_address(fails: Callable[[Actor], None]) -> None:
    async def scenario() -> None:
        kept = Kept(Ray())
        await until(lambda: kept.at == {0: ("node", 9000), 1: ("node", 9001)})
        fails(kept.ray.made[0])
        await until(lambda: kept.at == {0: ("node", 9002), 1: ("node", 9001)})
        assert kept.ray.killed == [0]
        await kept.fleet.close()
        assert [actor.stopped for actor in kept.ray.made] == [False, True, True]
        assert sorted(kept.ray.killed) == [0, 1, 2] and kept.at == {0: None, 1: None}

    asyncio.run(scenario())


def test_a_replica_that_does_not_start_is_tried_again() -> None:
    def change(actor: Actor) -> None:
        if actor.number < 3:
            actor.start = Method(lambda: 1 / 0)

    async def scenario() -> None:
        kept = Kept(Ray(change), 1)
        await until(lambda: kept.at.get(0) == ("node", 9003))
        assert kept.ray.killed == [0, 1, 2] and not kept.fleet.failed.done()
        await kept.fleet.close()

    asyncio.run(scenario())


def test_wrong_settings_are_told_and_not_only_tried_again() -> None:
    class TaskError(Exception):
        cause = InputError("model 'x' has no file")

    def change(actor: Actor) -> None:
        def start() -> None:
            raise TaskError("a traceback\nof many lines")

        actor.start = Method(start)

    async def scenario() -> None:
        kept = Kept(Ray(change), 1)
        with pytest.raises(InputError, match="model 'x' has no file"):
            await asyncio.wait_for(kept.fleet.failed, 5.0)
        await kept.fleet.close()

    asyncio.run(scenario())


def test_a_fleet_that_shrinks_drains_its_last_replicas_and_starts_new_ones_when_it_grows() -> None:
    async def scenario() -> None:
        kept = Kept(Ray(), 3)
        await until(lambda: len(kept.at) == 3 and None not in kept.at.values())
        kept.fleet.resize(1)
        await until(lambda: sorted(kept.ray.killed) == [1, 2])
        assert [actor.stopped for actor in kept.ray.made] == [False, True, True]
        assert kept.at == {0: ("node", 9000), 1: None, 2: None} and kept.fleet.size == 1
        kept.fleet.resize(2)
        await until(lambda: kept.at[1] == ("node", 9003))
        await kept.fleet.close()

    asyncio.run(scenario())


def test_replicas_are_placed_by_accelerator_cores_and_memory() -> None:
    config = ServeConfig(device="cuda", cpus_per_replica=2.0, memory_per_replica="4G")
    assert resources_of(config, 0.0) == (2.0, 1.0, 4 * 2**30)
    assert resources_of(config, 0.0).options() == {
        "num_cpus": 2.0, "num_gpus": 1.0, "memory": 4 * 2**30, "max_restarts": 0, "scheduling_strategy": "SPREAD",
    }  # fmt: skip
    assert resources_of(ServeConfig(device="auto"), 0.0).gpus == 0.0
    assert resources_of(ServeConfig(device="auto"), 8.0).gpus == 1.0
    assert resources_of(ServeConfig(device="auto", gpus_per_replica=0.25), 8.0).gpus == 0.25
    assert "memory" not in resources_of(ServeConfig(), 0.0).options()


def test_a_replica_takes_doors_only_and_asks_for_the_token() -> None:
    config = replica_config(ServeConfig(cluster="local", port=8000, grpc=True, policy="edf"), "secret")
    assert (config.cluster, config.peer_port, config.port, config.grpc) == (None, 0, 0, False)
    assert (config.token, config.policy) == ("secret", "edf")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster", "here"], "--cluster: 'here'; it must be local, auto or ray://HOST:PORT"),
        (["--cluster", "ray://host"], "it must be local, auto or ray://HOST:PORT"),
        (["--cluster", "local", "--peers", "[a:1]"], "does not go with --peers or --peer_port"),
        (["--cluster", "local", "--record", "run"], "--record is for a server with a device of its own"),
        (["--memory_per_replica", "much"], "--memory_per_replica: 'much'; it must be a number of bytes"),
        (["--cluster", "local", "--replicas", "0"], "--replicas: 0; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_get_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(flags) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert serve.main(["--cluster", "local", "--port", "0", "--policy", "edf"]) == 2
    error = capsys.readouterr().err
    assert "--cluster: the package ray is not here; install strait-rl[ray]" in error and "Traceback" not in error
