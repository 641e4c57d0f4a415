"""Replicas on a Ray cluster: placed, started, watched, and started again when they are lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from serving.config import ServeConfig
from serving.ray.actor import ReplicaActor
from traces.errors import InputError

log = logging.getLogger("serving")

Address = tuple[str, int]

HEALTH_S = 0.5  # between questions
HANG_S = 10.0  # a process that has not answered for so long hangs; doors send it nothing long before
START_S = 600.0  # models may be measured
PLACE_S = 30.0  # between log lines of what waits for a machine
FIRST_WAIT_S, LAST_WAIT_S = 0.1, 10.0


class Resources(NamedTuple):
    """What Ray keeps for one replica.

    Attributes:
        cpus: cores.
        gpus: accelerators, or a share of one.
        memory_bytes: of the machine; 0 where it does not matter.
    """

    cpus: float
    gpus: float
    memory_bytes: int

    def options(self) -> dict[str, Any]:
        """As Ray takes them; Ray starts nothing again itself, since a replica needs its settings and tells its address."""
        asked = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        return asked | ({"memory": self.memory_bytes} if self.memory_bytes else {})

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:g} GiB" if self.memory_bytes else ""
        return f"{self.gpus:g} GPUs, {self.cpus:g} CPUs{memory}"


class Fleet:
    """Keeps replicas, each in a place by number.

    Args:
        ray: the package, connected; see `traces.ray_session`.
        config: of each replica.
        resources: of each replica.
        on_address: called with a place and where its replica takes doors now; None: nowhere.

    Attributes:
        failed: has the error of a replica whose settings are wrong, before any has started.
    """

    def __init__(
        self,
        ray: Any,
        config: ServeConfig,
        resources: Resources,
        on_address: Callable[[int, Address | None], None],
    ) -> None:
        self._ray, self._config, self._resources = ray, config, resources
        self._on_address = on_address
        self._make = ray.remote(ReplicaActor).options(**resources.options())
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._some_started = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def size(self) -> int:
        """How many replicas are kept."""
        return len(self._keepers)

    def resize(self, size: int) -> None:
        """Keep so many replicas: start those that lack, or drain and end the last ones."""
        for place in range(self.size, size):
            self._keepers[place] = asyncio.ensure_future(self._keep(place))
        for place in range(size, self.size):
            self._keepers.pop(place).cancel()

    async def close(self) -> None:
        """End all replicas; requests inside end first."""
        keepers = list(self._keepers.values())
        self.resize(0)
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep(self, place: int) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            actor, started = self._make.remote(), False
            try:
                address = await self._start(place, actor)
                started = True
                self._on_address(place, address)
                wait_s = FIRST_WAIT_S
                why = await self._watch(actor)
            except asyncio.CancelledError:
                if started:
                    await self._drain(actor)
                raise
            except InputError as error:  # of its settings
                why = str(error)
                if not self._some_started and not self.failed.done():
                    self.failed.set_exception(error)
            except _StartError as error:
                why = str(error)
            finally:
                self._on_address(place, None)
                self._ray.kill(actor)
            log.warning("replica %d is started again: %s", place, why)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    async def _start(self, place: int, actor: Any) -> Address:
        """Wait until the actor has a machine, and start the replica there.

        Raises:
            InputError: settings are wrong, in the words of the replica.
            _StartError: it cannot start for another reason.
        """
        placed = self._future(actor.process.remote())
        while not (await asyncio.wait({placed}, timeout=PLACE_S))[0]:
            log.warning("replica %d waits for a machine with %s", place, self._resources)
        started = self._future(actor.start.remote(replace(self._config, replica_number=place)))
        await asyncio.wait({placed, started}, timeout=START_S, return_when=asyncio.ALL_COMPLETED)
        if not started.done():
            raise _StartError(f"it has not started for {START_S:g} s")
        error = placed.exception() or started.exception()
        if error is not None:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, InputError) else _StartError(_line(error))
        self._some_started = True
        host, port = started.result()
        log.info("replica %d is at %s:%d, process %d", place, host, port, placed.result())
        return host, port

    async def _watch(self, actor: Any) -> str:
        """Ask until the replica is lost, hangs, or takes no requests; returns which."""
        lost = self._future(actor.serve.remote())
        while True:
            asked = self._future(actor.accepting.remote())
            await asyncio.wait({lost, asked}, timeout=HANG_S, return_when=asyncio.FIRST_COMPLETED)
            for ended in (lost, asked):
                if ended.done() and (error := ended.exception()) is not None:
                    return _line(error)
            if not asked.done():
                return f"it has not answered for {HANG_S:g} s"
            if not asked.result():
                return "its engine takes no requests"
            await asyncio.wait({lost}, timeout=HEALTH_S)

    async def _drain(self, actor: Any) -> None:
        """Let a replica end what it has, as long as it may take."""
        await asyncio.wait({self._future(actor.stop.remote())}, timeout=self._config.drain_timeout + 1.0)

    @staticmethod
    def _future(reference: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.wrap_future(reference.future())
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be of no interest any more
        return future


class _StartError(Exception):
    """A replica did not start."""


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Error: " in lines[-1] else lines[0]  # the end of a traceback, where there is one
