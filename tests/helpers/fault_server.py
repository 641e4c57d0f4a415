"""A real server process for tests of faults, and a client that keeps count of what it was answered."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "- {{name: {0}, source: '{1}:{0}', input_shape: [4], compiled: false}}\n"
UP_S = 120.0


class Served:
    """A running server.

    Attributes:
        process: its process. port: of HTTP. log: its standard error.
        answers: this client's answers by HTTP status, and items: the items in them; those that it left are not among them.
        left: requests that it sent and left, which the server may have seen or not.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.answers: Counter[int] = Counter()
        self.items: Counter[int] = Counter()
        self.left = 0
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._in_parts = 0  # items of calls that failed, of which some may have been answered

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body)
        response = connection.getresponse()
        status, data = response.status, response.read()
        connection.close()
        return status, data

    def infer(self, model: str, *firsts: float, priority: int = 1, timeout_ms: float = 20_000.0) -> tuple[int, Any]:
        """Status and JSON of an inference with one item for each of `firsts`, its first number; the answer must be its own."""
        id_ = f"request-{next(self._ids)}"
        body = infer_body(*firsts, priority=priority, timeout_ms=timeout_ms, id_=id_)
        status, data = self.ask("POST", f"/v2/models/{model}/infer", body)
        answer = json.loads(data)
        with self._lock:
            self.answers[status] += 1
            self.items[status] += len(firsts)
            self._in_parts += len(firsts) if status != 200 and len(firsts) > 1 else 0
        if status == 200:
            assert answer["id"] == id_, "this is the answer to another request"
            if model != "nan":
                assert answer["outputs"][0]["data"][::4] == [2 * first for first in firsts]
        return status, answer

    def metrics(self) -> dict[str, float]:
        """Sums of all metrics by name, and of the requests by outcome as ended_OUTCOME."""
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(self.ask("GET", "/metrics")[1].decode()):
            for sample in family.samples:
                sums[sample.name] += sample.value
                if sample.name == "strait_requests_total":
                    sums["ended_" + sample.labels["outcome"]] += sample.value
        return sums

    def is_well(self) -> None:
        """It is up and answers, nothing is inside, and what was offered has ended."""
        assert self.process.poll() is None
        self.until(lambda: (m := self.metrics())["strait_queue_length"] == m["strait_streams_busy"] == 0)
        assert self.infer("double", 3.0)[0] == 200
        self.reconcile()

    def reconcile(self) -> None:
        """What this client was answered is what the server's ledger says, request by request since it began."""
        seen, items = self.metrics(), self.items
        ended = int(seen["strait_requests_total"])
        assert ended == seen["strait_requests_offered"], "each that was offered has ended, and once"
        answered = items[200] + items[500] + items[503] + items[504]
        assert answered <= ended <= answered + self.left, "each that was answered was offered, and once"
        loose = self.left + self._in_parts
        for found, answered_so in (
            (seen["ended_met"] + seen["ended_late"], items[200]),
            (seen["ended_dropped"], items[503] + items[504]),
            (seen["ended_failed"], items[500] - self._in_parts),
            (seen["ended_cancelled"], 0),
        ):
            assert answered_so <= found <= answered_so + loose, (dict(items), self.left, self._in_parts, seen)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that takes a moment."""
        end = time.perf_counter() + 20.0
        while not condition():
            assert time.perf_counter() < end, "it does not happen"
            time.sleep(0.02)

    def logged(self, words: str) -> bool:
        """Whether the log has these words."""
        return words in self.log.read_text()

    def stop(self) -> int:
        """End it by SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def infer_body(*firsts: float, priority: int = 1, timeout_ms: float = 20_000.0, id_: str = "") -> bytes:
    """The body of an inference."""
    values = np.zeros((len(firsts), 4))
    values[:, 0] = firsts
    tensor = {"name": "input", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
    parameters = {"priority": priority, "timeout": int(timeout_ms * 1e3)}
    return json.dumps({"id": id_, "inputs": [tensor], "parameters": parameters}).encode()


def command(folder: Path, models: dict[str, str], *flags: str) -> list[str]:
    """How the server is started with models, each with the module of its factory."""
    listing = folder / "models.yaml"
    listing.write_text("".join(ENTRY.format(name, module) for name, module in models.items()))
    defaults = ("--streams=2", "--policy=fifo", "--batch_sizes=[1,2,4]", "--port=0")
    return [sys.executable, str(ROOT / "serve.py"), f"--models={listing}", *defaults, *flags]


def environment() -> dict[str, str]:
    """Where the models are found."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers"), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def served(folder: Path, models: dict[str, str], *flags: str) -> Iterator[Served]:
    """Start a server and wait until it is up; it is killed at the end if it still runs."""
    log = folder / "server.log"
    with log.open("wb") as err:
        process = subprocess.Popen(command(folder, models, *flags), env=environment(), cwd=ROOT, stderr=err)
    try:
        end = time.perf_counter() + UP_S
        while (found := re.search(r"HTTP on http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            assert process.poll() is None and time.perf_counter() < end, log.read_text()
            time.sleep(0.05)
        yield Served(process, int(found[1]), log)
    finally:
        process.kill()
        process.wait()
