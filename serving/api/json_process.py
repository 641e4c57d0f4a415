"""Large JSON is parsed and written in processes of their own: here it would hold Python's lock, and so everybody, for seconds.

A process begins with the first job and ends with the server. Jobs and results go through its pipes, each a JSON head and
bytes, in system calls that hold no lock: a job of 64 MiB delays others by as much as one of 64 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import IO, Any

import numpy as np
import orjson

from serving.api.infer_call import InferCall, Wanted, read_call, read_id
from serving.api.model_view import ModelView
from serving.api.protocol.json_codec import json_numbers, read_json
from serving.api.tensors import from_bytes, plain_values, to_bytes
from serving.models.tensors import TensorSpec
from traces.errors import InputError

SMALL = 128 * 1024  # bytes of JSON that are parsed or written in a few ms at most
PROCESSES = 2  # one client's odd JSON of 64 MiB, which takes seconds, leaves one to the others
LENGTHS = struct.Struct("=QQ")

Buffer = bytes | bytearray | memoryview


class JsonProcesses:
    """Parses and writes large JSON, one job per process at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(PROCESSES, "json")
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    async def read(self, body: Buffer, view: ModelView, most: int, named: Callable[[str | None], None]) -> InferCall:
        """A request as `read_call` has it.

        Args:
            body: JSON, whole.
            view: the model.
            most: most items of one call.
            named: called with the client's id of the request, also of one that is refused.

        Raises:
            InputError: it is not what it should be.
        """
        described = asdict(replace(view, buckets=()))
        result, data = await self._run({"view": described, "most": most}, body)
        named(result["id"])
        if "error" in result:
            raise InputError(result["error"])
        values, at = [], 0
        for spec, shape, length in zip(view.inputs, result["shapes"], result["lengths"]):
            values.append(from_bytes(data.data[at : at + length], spec, tuple(shape)))
            at += length
        outputs = tuple(Wanted(*one) for one in result["outputs"])
        return InferCall(result["id"], tuple(values), result["size"], result["parameters"], outputs)

    async def write(self, array: np.ndarray, datatype: str) -> memoryview:
        """What `json_numbers` makes of an array of a type."""
        job = {"datatype": datatype, "shape": array.shape}
        _, text = await self._run(job, to_bytes(array))
        return text.data

    def close(self) -> None:
        """End the processes; what they work on is lost."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()

    async def _run(self, job: dict[str, Any], data: Buffer) -> tuple[dict[str, Any], np.ndarray]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run_here, job, data)

    def _run_here(self, job: dict[str, Any], data: Buffer) -> tuple[dict[str, Any], np.ndarray]:
        process = getattr(self._own, "process", None) or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, job, data)
            return _receive(process.stdout)
        except (OSError, EOFError):
            process.kill()
            self._all.remove(process)
            self._own.process = None
            raise RuntimeError(f"a process for large JSON ended with status {process.wait()}") from None

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._own.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # the terminal's Ctrl-C is for the server, which drains
        )
        self._all.append(process)
        return process


def main() -> None:
    """The process: jobs from standard input, results to standard output, until there are no more."""
    os.nice(5)  # behind those who send little
    gc.disable()  # which looks at millions of new lists again and again, and would find nothing
    with contextlib.suppress(EOFError), open(0, "rb", 0) as jobs, open(1, "wb", 0) as results:
        while True:
            _send(results, *_done(*_receive(jobs)))


def _done(job: dict[str, Any], data: np.ndarray) -> tuple[dict[str, Any], Buffer]:
    if "view" not in job:
        array = from_bytes(data.data, TensorSpec("", job["datatype"], ()), tuple(job["shape"]))
        return {}, json_numbers(plain_values(array, job["datatype"]))
    given = job["view"]
    specs = {
        side: tuple(TensorSpec(**one | {"shape": tuple(one["shape"])}) for one in given[side])
        for side in ("inputs", "outputs")
    }
    view = ModelView(**given | specs)
    id_ = None
    try:
        head = read_json(data.data)
        id_ = read_id(head)
        call = read_call(head, b"", view, job["most"])
    except InputError as error:
        return {"id": id_, "error": str(error)}, b""
    parts = [to_bytes(values) for values in call.values]
    described = {
        "id": id_,
        "shapes": [values.shape for values in call.values],
        "lengths": [len(part) for part in parts],
        "size": call.size,
        "parameters": call.parameters,
        "outputs": [tuple(one) for one in call.outputs],
    }
    return described, b"".join(parts)


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
