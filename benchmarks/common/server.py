"""A server in a process of its own, and the least client that asks it: connections that stay open, whole messages as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

SERVE = Path(__file__).resolve().parents[2] / "serve.py"
POLL_S = 0.2


def serve_command(*flags: str) -> list[str]:
    """The words that start our own server with these flags."""
    return [sys.executable, str(SERVE), "--log_level", "warning", *flags]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and its children with it.

    Args:
        command: program and arguments.
        folder: where it runs.
        environment: variables beside those of this process.
        log: file for what it prints; None: it prints where this process does.
    """
    with contextlib.ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=out,
            stderr=out if out is None else subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def wait_until_up(
    process: subprocess.Popen[bytes], ask: Callable[[], Awaitable[object]], name: str, within_s: float
) -> None:
    """Return when ``ask`` succeeds.

    Raises:
        RuntimeError: it does not in time, or the process has ended.
    """
    last = time.monotonic() + within_s
    while True:
        try:
            await asyncio.wait_for(ask(), 5.0)
            return
        except Exception as error:  # each library has its own for a server that is not up yet
            if time.monotonic() > last or process.poll() is not None:
                raise RuntimeError(f"{name} does not answer: {error!r}") from None
            await asyncio.sleep(POLL_S)


async def wait_until_ready(process: subprocess.Popen[bytes], port: int, name: str, within_s: float) -> None:
    """Return when a server of the Open Inference Protocol takes requests; raises as `wait_until_up`."""

    async def ask() -> None:
        with contextlib.closing(await Connection.open(port)) as connection:
            status, _ = await connection.ask(http_message("/v2/health/ready"))
        if status != 200:
            raise RuntimeError(f"it answers {status}")

    await wait_until_up(process, ask, name, within_s)


async def closed_loops(calls: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> tuple[list[float], float]:
    """Make each call again and again, all of them side by side: latencies in ms, and the seconds that it took."""
    latencies_ms: list[float] = []

    async def loop(call: Callable[[], Awaitable[object]]) -> None:
        while (begin := time.perf_counter()) < end:
            await call()
            latencies_ms.append((time.perf_counter() - begin) * 1e3)

    begin = time.perf_counter()
    end = begin + seconds
    await asyncio.gather(*(loop(call) for call in calls))
    return latencies_ms, time.perf_counter() - begin


def http_message(path: str, body: bytes = b"", headers: Sequence[str] = ()) -> bytes:
    """A whole HTTP request: POST with a body, else GET."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost", *headers]
    lines += [f"Content-Length: {len(body)}"] * bool(body)
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One HTTP connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.closed = False

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._writer.write(message)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        begin = head.index(b"\r\ncontent-length:") + 17
        body = await self._reader.readexactly(int(head[begin : head.index(b"\r", begin)]))
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Close it."""
        self.closed = True
        self._writer.close()
