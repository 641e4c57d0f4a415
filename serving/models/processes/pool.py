"""Processes that work for the server, one job at a time each.

A process begins with the first job, or is started beforehand, and ends with the server. Jobs and results go through its pipes,
each a JSON head and bytes, in system calls that hold no lock of Python's: a job of 64 MiB delays others by as much as one of 64
bytes. What a process leaves behind (children that it forked) ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import orjson

from serving.models.tensors import TensorSpec, from_bytes, to_bytes

FRAME = struct.Struct("=QQQ")  # number of the job, bytes of its head, bytes
CHUNK = 64 * 1024  # bytes that a pipe holds, and that are read at once
LOOK_MS = 200  # between looks at whether a process that says nothing still lives
FOREVER_S = 86_400.0

Buffer = bytes | bytearray | memoryview
Job = tuple[dict[str, Any], Buffer]
Named = Mapping[str, tuple[str, np.ndarray]]  # the protocol's type, and values, by the tensor's name


class Broken(Exception):
    """A process ended, was ended, or does not keep to the protocol; the message says which."""


class WorkerProcesses:
    """Runs jobs.

    Args:
        module: whose function ``main`` a process runs, which calls `work`.
        count: most processes.
        what: they are for, as errors say.
    """

    def __init__(self, module: str, count: int, what: str) -> None:
        self.count = count
        self.unfinished = 0  # jobs that run or wait
        self._module = module
        self._what = what
        self._threads = ThreadPoolExecutor(count, module.rpartition(".")[2])
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []  # started for threads that have not asked yet
        self._jobs = 0
        self._closed = False

    async def run(
        self, head: dict[str, Any], data: Buffer, limit_s: float = FOREVER_S
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Have a job done. Where the caller is cancelled, a job that waits for a process is not begun.

        Args:
            head: JSON.
            data: bytes.
            limit_s: of running, after which the process is ended.

        Raises:
            RuntimeError: the process ended, by itself or by the limit.
        """
        self.unfinished += 1
        try:
            # Cancelled before it has begun, it is dropped.
            return await asyncio.get_running_loop().run_in_executor(self._threads, self.run_now, head, data, limit_s)
        finally:
            self.unfinished -= 1

    def run_now(self, head: dict[str, Any], data: Buffer, limit_s: float) -> tuple[dict[str, Any], np.ndarray]:
        """The same without a loop: wait for it here."""
        if self._closed:
            raise RuntimeError("nobody waits for it")
        process = getattr(self._own, "process", None) or self._take()
        try:
            return self._have_done(process, head, data, limit_s)
        except RuntimeError:
            self._own.process = None
            raise

    def _take(self) -> subprocess.Popen[bytes]:
        """A process for the calling thread."""
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._start()  # which runs where this thread does
        else:
            _work_as_here(process)
        self._own.process = process
        return process

    def _have_done(
        self, process: subprocess.Popen[bytes], head: dict[str, Any], data: Buffer, limit_s: float
    ) -> tuple[dict[str, Any], np.ndarray]:
        assert process.stdin is not None and process.stdout is not None
        self._jobs += 1
        number = self._jobs
        try:
            _send(process.stdin, number, head, data)
            return _receive(process.stdout, number, process, limit_s)
        except (OSError, EOFError, ValueError, MemoryError, Broken) as error:
            _end(process)
            self._all.remove(process)
            ended = str(error) if isinstance(error, Broken) else f"ended with status {process.returncode}"
            raise RuntimeError(f"a process for {self._what} {ended}") from None

    def start(self, count: int, head: dict[str, Any]) -> None:
        """Start processes for threads that will call `run_now`, and wait until each has done a job.

        Raises:
            RuntimeError: one ended.
        """
        for process in [self._start() for _ in range(count)]:
            self._have_done(process, head, b"", FOREVER_S)
            self._idle.append(process)

    def warm_up(self, head: dict[str, Any]) -> None:
        """Start all processes with a job, whose results are not looked at."""
        for _ in range(self.count):
            self._threads.submit(self.run_now, head, b"", FOREVER_S)

    def close(self) -> None:
        """End the processes; what they work on is lost."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._all):
            _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {self._module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            # The terminal's Ctrl-C is for the server, which drains; and what it forks can be ended with it.
            start_new_session=True,
        )
        self._all.append(process)
        if self._closed:  # in the meantime
            _end(process)
        return process


def _work_as_here(process: subprocess.Popen[bytes]) -> None:
    """Let a process run where the calling thread does, and stand back as it does."""
    with contextlib.suppress(AttributeError, OSError):  # another system, or another user
        os.sched_setaffinity(process.pid, os.sched_getaffinity(threading.get_native_id()))
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what it has forked."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def work(do: Callable[[dict[str, Any], np.ndarray], Job]) -> None:
    """In a process: write what ``do`` makes of each job on standard input to standard output, until there are no more.

    A user's code has neither: it reads nothing, and what it prints goes where errors go, to the server's log.
    """
    source, target = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    own = os.getpid()
    with contextlib.suppress(EOFError), open(source, "rb", 0) as jobs, open(target, "wb", 0) as results:
        while True:
            number, head, data = _receive_any(jobs)
            made = do(head, data)
            if os.getpid() != own:  # a fork of the user's code came back
                os._exit(0)
            _send(results, number, *made)


def pack_tensors(tensors: Named) -> tuple[list[dict[str, Any]], Buffer]:
    """Tensors as a job has them: for its head, and their bytes."""
    parts = [to_bytes(array) for _, array in tensors.values()]
    heads = [
        {"name": name, "datatype": datatype, "shape": array.shape, "length": len(part)}
        for (name, (datatype, array)), part in zip(tensors.items(), parts)
    ]
    return heads, b"".join(parts)


def unpack_tensors(heads: Sequence[Mapping[str, Any]], data: np.ndarray) -> Named:
    """The reverse of `pack_tensors`."""
    found, at = {}, 0
    for one in heads:
        spec = TensorSpec(one["name"], one["datatype"], ())
        found[spec.name] = spec.datatype, from_bytes(data.data[at : at + one["length"]], spec, tuple(one["shape"]))
        at += one["length"]
    return found


def _send(pipe: IO[bytes], number: int, head: dict[str, Any], data: Buffer) -> None:
    text = orjson.dumps(head)
    start = FRAME.pack(number, len(text), len(data)) + text
    # Around each system call Python's lock is given up and asked for again, so that small jobs go in one.
    for part in (start + data,) if len(data) <= CHUNK else (start, data):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def _receive_any(pipe: IO[bytes], wait: Callable[[], None] = lambda: None) -> tuple[int, dict[str, Any], np.ndarray]:
    start = np.empty(CHUNK, np.uint8)
    have = 0
    while have < FRAME.size:
        have += _read_into(pipe, start.data[have:], wait)
    number, n_head, n_data = FRAME.unpack_from(start.data)
    rest = start[FRAME.size : have]
    head, data = (_filled(pipe, part, n, wait) for part, n in ((rest[:n_head], n_head), (rest[n_head:], n_data)))
    return number, orjson.loads(head.data), data


def _filled(pipe: IO[bytes], begun: np.ndarray, n: int, wait: Callable[[], None]) -> np.ndarray:
    """An array of n bytes, of which the first are here and the others come."""
    made = np.empty(n, np.uint8)  # whose memory is not touched before the bytes come
    made[: len(begun)] = begun
    rest = made.data[len(begun) :]
    while rest:
        rest = rest[_read_into(pipe, rest, wait) :]
    return made


def _read_into(pipe: IO[bytes], room: memoryview, wait: Callable[[], None]) -> int:
    wait()
    got: int = pipe.readinto(room)  # type: ignore[attr-defined]
    if not got:
        raise EOFError
    return got


def _receive(
    pipe: IO[bytes], expected: int, process: subprocess.Popen[bytes], limit_s: float
) -> tuple[dict[str, Any], np.ndarray]:
    """The result of a job.

    Raises:
        EOFError: the process ended.
        Broken: it takes too long, or answers something else.
    """
    until_s, ready = time.monotonic() + limit_s, select.poll()
    ready.register(pipe, select.POLLIN)

    def wait() -> None:
        # Not just a read: what the process has forked may hold the pipe open when it has ended.
        while not ready.poll(LOOK_MS):
            if process.poll() is not None:
                raise EOFError
            if time.monotonic() >= until_s:
                raise Broken(f"was ended after {limit_s:g} s")

    number, head, data = _receive_any(pipe, wait)
    if number != expected:
        raise Broken("answered something else, and was ended")
    return head, data
