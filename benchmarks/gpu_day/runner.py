"""Runs the steps one after the other; what one of them does, or fails to do, costs the others nothing.

Each is a process with a limit and a log. After each, its group's files are packed into GROUP.zip, the ends of all logs into
logs.txt, and summary.json says how far the day has come. All of these appear whole or not at all, so that the folder can be
read at any time, also after the machine was taken away.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_day.step import RESULT
from benchmarks.gpu_day.steps import Step, limit_s, share_s
from traces.files import atomic_path, atomic_write_text

ROOT = Path(__file__).resolve().parents[2]
SUMMARY, LOGS = "summary.json", "logs.txt"
WAITING, RUNNING, DONE, FAILED, TIMED_OUT, SKIPPED = "waiting", "running", "done", "failed", "timed out", "skipped"
COMPILE = "from benchmarks.gpu_day.compile import main; main()"
CHILD = "from benchmarks.gpu_day.step import main; main()"
LOG_BYTES = 200_000  # of the end of each log
MOST_BYTES = 16 << 20  # of one file
RESERVE_S = 3.0  # for what comes after the last step
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass
class Record:
    """How one step went: `state` is one of the words above, `figures` what it returned."""

    step: Step
    state: str = WAITING
    planned_s: float = 0.0
    took_s: float = 0.0
    error: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What holds for all steps.

    Attributes:
        device: cpu or cuda:N.
        seconds: of the whole day.
        patience: how many times as long steps may take as planned on a machine of its own.
        models: to serve; none: see `benchmarks.gpu_day.networks.load_networks`.
    """

    device: str
    seconds: float
    patience: float = 1.0
    models: tuple[str, ...] = ()


class Day:
    """All steps, their files and their summary.

    Args:
        steps: in order.
        out: folder of what comes back; a few files.
        work: folder of everything.
        terms: of all steps.
    """

    def __init__(self, steps: Sequence[Step], out: Path, work: Path, terms: Terms) -> None:
        self.records = [Record(step) for step in steps]
        self.out, self.work, self.terms = out, work, terms
        self.begun = time.monotonic()
        self.state = RUNNING
        self._group = ""
        self._kept: set[int] = set()

    @property
    def left_s(self) -> float:
        """Seconds left for steps, on a clock that patience slows down."""
        return self.terms.seconds - RESERVE_S - (time.monotonic() - self.begun) / self.terms.patience

    def run(self) -> None:
        """Run all steps. Whatever ends this early, the summary says how far it came."""
        self.out.mkdir(parents=True, exist_ok=True)
        _adopt_orphans()
        try:
            with self._compiling():
                for place, record in enumerate(self.records):
                    self._one(record, [later.step for later in self.records[place:]])
            self.state = DONE
        except BaseException:
            self.state = "stopped"
            raise
        finally:
            self._end_children(set())
            for record in self.records:
                if record.state == RUNNING:
                    record.state, record.error = FAILED, "the day was stopped"
                    self._pack(record.step.group)
            self._write()

    def _one(self, record: Record, coming: Sequence[Step]) -> None:
        left_s, step = self.left_s, record.step
        if left_s < step.least_s:
            record.state, record.error = SKIPPED, f"{left_s:.0f} s were left; it needs {step.least_s:.0f}"
            self._write()
            return
        record.state, record.planned_s = RUNNING, share_s(left_s, coming)
        self._write()
        begun = time.monotonic()
        try:
            self._run_process(record, self.terms.patience * limit_s(left_s, record.planned_s))
        except OSError as error:  # no process, or no room for its log
            record.state, record.error = FAILED, str(error)
        record.took_s = time.monotonic() - begun
        self._pack(step.group)
        self._write()
        print(f"{time.monotonic() - self.begun:5.0f} s  {step.name}: {record.state} {record.error}", flush=True)

    def _run_process(self, record: Record, limit: float) -> None:
        step = record.step
        folder = self.work / step.group / step.name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "work": step.work,
            "device": self.terms.device,
            "models": self.terms.models,
            "seconds": record.planned_s,
            "limit_s": limit,
            "day": str(self.work),
            "folder": str(folder),
        }
        log = self._log(step)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with process:
            try:
                status = process.wait(limit)
                record.state = FAILED if status else DONE
                record.error = _why(status, log) if status else ""
            except subprocess.TimeoutExpired:
                record.state, record.error = TIMED_OUT, f"ended after {limit:.0f} s"
            finally:
                self._end_children(self._kept)
        with contextlib.suppress(OSError, ValueError):  # none, or half a file of a full disk
            record.figures = json.loads((folder / RESULT).read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """Beside the first steps, which need the GPU, compile what the later ones run on the CPU."""
        if not any(record.step.compiles for record in self.records):
            yield
            return
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "compile.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", COMPILE], cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._kept = {process.pid}
        with process:
            try:
                yield
            finally:
                process.kill()

    def _end_children(self, kept: set[int]) -> None:
        """End what a step has started, and what was left by those that have ended."""
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in kept]
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=5.0)

    def _log(self, step: Step) -> Path:
        return self.work / f"{step.name}.log"

    def _write(self) -> None:
        """Write summary.json and logs.txt; where that fails, the last ones stay."""
        logs = "".join(f"== {record.step.name}\n{_tail(self._log(record.step))}\n" for record in self.records)
        for name, text in ((SUMMARY, json.dumps(self.summary(), indent=1) + "\n"), (LOGS, logs)):
            try:
                atomic_write_text(self.out / name, text)
            except OSError as error:
                print(f"{name} is not written: {error}", file=sys.stderr, flush=True)

    def summary(self) -> dict[str, Any]:
        """How the day went so far."""
        return {
            "command": shlex.join(["python", "-m", "benchmarks.gpu_day", *sys.argv[1:]]),
            "device": self.terms.device,
            "models": self.terms.models,
            "seconds": self.terms.seconds,
            "spent_s": round(time.monotonic() - self.begun, 1),
            "state": self.state,
            "steps": {
                record.step.name: {
                    "state": record.state,
                    "error": record.error,
                    "planned_s": round(record.planned_s, 1),
                    "took_s": round(record.took_s, 1),
                    "figures": record.figures,
                }
                for record in self.records
            },
        }

    def _pack(self, group: str) -> None:
        """Pack the files of a group, smallest first; those that would make it too large for the way back are left out."""
        folder, total = self.work / group, 0
        try:
            files = sorted((path.stat().st_size, path) for path in folder.rglob("*") if path.is_file())
            with (
                atomic_path(self.out / f"{group}.zip") as temporary,
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed,
            ):
                for size, path in files:
                    total += size
                    if total < MOST_BYTES:
                        packed.write(path, path.relative_to(folder).as_posix())
                    else:
                        print(f"{group}.zip: no room for {path.name}, {size} bytes", file=sys.stderr, flush=True)
        except OSError as error:
            print(f"{group}.zip is not written: {error}", file=sys.stderr, flush=True)


def _why(status: int, log: Path) -> str:
    """What ended a process, in one line."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = _tail(log).strip().splitlines()
    return lines[-1][:300] if lines else f"status {status}, and nothing in its log: is the disk full?"


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")
    return ""


def _adopt_orphans() -> None:
    """Become the parent of what steps leave behind, so that it can be ended; on Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
