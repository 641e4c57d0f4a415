"""Processes that work for the server, one job at a time each.

A process begins with the first job and ends with the server. Jobs and results go through its pipes, each a JSON head and
bytes, in system calls that hold no lock of Python's: a job of 64 MiB delays others by as much as one of 64 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import orjson

LENGTHS = struct.Struct("=QQ")

Buffer = bytes | bytearray | memoryview
Job = tuple[dict[str, Any], Buffer]


@dataclass(slots=True)
class _Running:
    """A job: who works on it, and whether that took too long."""

    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        if self.process is not None:
            self.process.kill()


class WorkerProcesses:
    """Runs jobs.

    Args:
        module: whose function ``main`` a process runs, which calls `work`.
        count: most processes.
        what: they are for, as errors say.
    """

    def __init__(self, module: str, count: int, what: str) -> None:
        self._module = module
        self._what = what
        self._threads = ThreadPoolExecutor(count, module.rpartition(".")[2])
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    async def run(
        self, head: dict[str, Any], data: Buffer, limit_s: float | None = None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Have a job done.

        Args:
            head: JSON.
            data: bytes.
            limit_s: after which the process is ended; None: never.

        Raises:
            RuntimeError: the process ended, by itself or by the limit.
        """
        loop, job = asyncio.get_running_loop(), _Running()
        timer = None if limit_s is None else loop.call_later(limit_s, job.stop)
        try:
            return await loop.run_in_executor(self._threads, self._run_here, job, head, data)
        except EOFError as error:
            raise self._failed(job, error, limit_s) from None
        finally:
            if timer is not None:
                timer.cancel()

    def run_now(self, head: dict[str, Any], data: Buffer, limit_s: float) -> tuple[dict[str, Any], np.ndarray]:
        """The same without a loop: wait for it here."""
        job = _Running()
        timer = threading.Timer(limit_s, job.stop)
        timer.start()
        try:
            return self._run_here(job, head, data)
        except EOFError as error:
            raise self._failed(job, error, limit_s) from None
        finally:
            timer.cancel()

    def warm_up(self, head: dict[str, Any]) -> None:
        """Start all processes with a job, whose results are not looked at."""
        for _ in range(self._threads._max_workers):
            self._threads.submit(self._run_here, _Running(), head, b"")

    def close(self) -> None:
        """End the processes; what they work on is lost."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()

    def _failed(self, job: _Running, error: EOFError, limit_s: float | None) -> RuntimeError:
        ended = f"was ended after {limit_s:g} s" if job.stopped else f"ended with {error}"
        return RuntimeError(f"a process for {self._what} {ended}")

    def _run_here(self, job: _Running, head: dict[str, Any], data: Buffer) -> tuple[dict[str, Any], np.ndarray]:
        process = job.process = getattr(self._own, "process", None) or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            if job.stopped:
                raise EOFError  # it had waited too long for others
            _send(process.stdin, head, data)
            return _receive(process.stdout)
        except (OSError, EOFError):
            process.kill()
            self._all.remove(process)
            self._own.process = None
            raise EOFError(f"status {process.wait()}") from None

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._own.process = subprocess.Popen(
            [sys.executable, "-c", f"from {self._module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # the terminal's Ctrl-C is for the server, which drains
        )
        self._all.append(process)
        return process


def work(do: Callable[[dict[str, Any], np.ndarray], Job]) -> None:
    """In a process: write what ``do`` makes of each job on standard input to standard output, until there are no more."""
    # A user's code may print: what it prints goes to the server's log.
    jobs, results = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(EOFError), open(jobs, "rb", 0) as source, open(results, "wb", 0) as target:
        while True:
            _send(target, *do(*_receive(source)))


def _send(pipe: IO[bytes], head: dict[str, Any], data: Buffer) -> None:
    text = orjson.dumps(head)
    for part in (LENGTHS.pack(len(text), len(data)), text, memoryview(data)):
        while part:
            part = part[pipe.write(part) :]


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], np.ndarray]:
    n_head, n_data = LENGTHS.unpack(_read(pipe, LENGTHS.size).data)
    return orjson.loads(_read(pipe, n_head).data), _read(pipe, n_data)


def _read(pipe: IO[bytes], n: int) -> np.ndarray:
    made = np.empty(n, np.uint8)  # whose memory is not touched before the bytes come
    rest = made.data
    while rest:
        got = pipe.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        rest = rest[got:]
    return made
