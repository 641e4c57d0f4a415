"""A replica in the process of a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

from serving.config import ServeConfig
from serving.observers.logs import set_up_logging
from serving.server import OpenServer, RunningServer, Server
from traces.ray_session import node_address

log = logging.getLogger("serving")


class ReplicaActor:
    """Serves requests of doors. It starts with nothing loaded, so that it can say where it is before it takes long."""

    def __init__(self) -> None:
        os.dup2(2, 1)  # whatever a model prints belongs to standard error
        self._opened: OpenServer | None = None
        self._running: RunningServer | None = None

    async def process(self) -> int:
        """Its process id; that it answers says that it has been placed."""
        return os.getpid()

    async def start(self, config: ServeConfig) -> tuple[str, int]:
        """Load the models, start an engine and listen.

        Args:
            config: of the replica; it listens on this machine's address and a free port.

        Returns:
            Host and port for doors.

        Raises:
            InputError: see `serving.server.Server`.
        """
        set_up_logging(config.log_level, config.log_json)
        config = replace(config, host=node_address())
        server = Server(config)
        self._opened = await asyncio.get_running_loop().run_in_executor(None, server.open)
        self._running = await self._opened.start()
        assert self._running.peer_port is not None
        return config.host, self._running.peer_port

    async def serve(self) -> None:
        """Never returns; Ray ends the call when the process is lost."""
        await asyncio.Event().wait()

    async def accepting(self) -> bool:
        """Whether the engine takes requests."""
        return self._running is not None and self._running.engine.accepting

    async def stop(self) -> None:
        """Tell the doors, let the requests inside end, and close the device."""
        if self._running is not None and self._opened is not None:
            await self._running.drain()
            await self._running.close()
            await self._opened.close()
