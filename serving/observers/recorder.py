"""Records a live run as files that the rest of the project reads: arrivals to replay, batches to learn from.

The folder holds numbered parts, each complete in itself: ``0000/arrivals.parquet`` (traces.workload) and a campaign
(traces.measurements) of batches of kind "live", with the solo runs of the calibration, so that ``envs.fit`` reads a part as
it is. ``0000/ends.parquet`` has a row for each row of arrivals, of how the request ended (`Ended`); where clients name their
requests, ``0000/clients.parquet`` has one with their id and trace. The latest part is rewritten every few seconds, each
file whole or not at all: a crash loses those seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from serving.engine.request import BatchRecord, Origin, RequestResult
from serving.observers.output import Output
from serving.profiling.calibrate import SoloRun, solo_rows
from traces.errors import InputError
from traces.files import atomic_path, make_numbered
from traces.machine import MachineInfo
from traces.measurements import PHASES, SCHEDULED, Measurements
from traces.workload import Workload

LEAST_MS = 1e-3  # of a deadline that had passed when the engine was given the request
PART_ROWS = 20_000  # of requests or batches: what one write costs is bounded


class Recorder(Output):
    """Observes an engine.

    Args:
        folder: where to write; parts of an earlier run there are kept.
        machine: describes the machine with all models that are, or were, served.
        solo: the solo runs so far.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path | str, machine: Callable[[], MachineInfo], solo: Callable[[], list[SoloRun]]
    ) -> None:
        super().__init__(f"recording {folder}")
        self.folder = Path(folder)
        self._machine = machine
        self._solo = solo
        self._arrivals: list[tuple] = []  # rows of Asked, Ended and Origin
        self._batches: list[tuple] = []
        self._changed = False
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--record {self.folder}: {error.strerror}; it must be a folder") from None
        self._part: Path | None = None

    def request_ended(self, result: RequestResult) -> None:
        """Keep when the engine was given it, which is when it arrived in the world that is learned from, and how it ended."""
        if result.arrival_ms >= 0 and result.deadline_ms > result.arrival_ms:
            self._arrivals.append((*asked(result), *ended(result), result.client_id, result.traceparent))
            self._changed = True

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep its phases, if it ended well."""
        phases = batch.phases
        # Clocks of a device may be a hair apart from ours; a batch with phases out of order teaches nothing.
        if batch.error is None and phases.dispatch_ms >= 0 and all(a <= b for a, b in zip(phases, phases[1:])):
            self._batches.append(row_of(batch))
            self._changed = True

    def save(self) -> Callable[[], None] | None:
        return self.flush

    def flush(self) -> None:
        """Write the present part, and begin the next one when it is full. Blocks; may be called on any thread."""
        with self._lock:
            if self._changed:
                self._write()

    def _write(self) -> None:
        self._changed = False
        # Appending to these lists goes on meanwhile on the engine's loop; slices are taken once, whole rows at a time.
        arrivals, batches = self._arrivals[:], self._batches[:]
        with self.written():
            # Another server may record into the same folder.
            folder = self._part = self._part or make_numbered(self.folder, digits=4)
            frame = pd.DataFrame(arrivals, columns=[*Asked._fields, *Ended._fields, *Origin._fields])
            frame = frame.sort_values("arrival_ms")
            workload_of(frame, folder.parent.name).save(folder / "arrivals.parquet")
            _save(frame[list(Ended._fields)], folder / "ends.parquet")
            if (named := frame[list(Origin._fields)]).any(axis=None):
                _save(named, folder / "clients.parquet")
            if batches:
                campaign_of(self._machine(), self._solo(), batches).save(folder)
        self._changed |= self.failed
        if max(len(arrivals), len(batches)) >= PART_ROWS:
            # Begun even when the write failed: a disk that stays full must not fill the memory.
            del self._arrivals[: len(arrivals)], self._batches[: len(batches)]
            self._part = None

    def close(self) -> None:
        self.flush()


class Asked(NamedTuple):
    """A request as it was offered.

    Attributes:
        arrival_ms: when, on the engine's clock. model: its name. priority: 0 (high) or 1 (low).
        deadline_ms: time that was left then.
    """

    arrival_ms: float
    model: str
    priority: int
    deadline_ms: float


def asked(result: RequestResult) -> Asked:
    """What a request that ended had asked for."""
    left_ms = max(result.deadline_ms - result.offered_ms, LEAST_MS)
    return Asked(result.offered_ms, result.model, result.priority, left_ms)


class Ended(NamedTuple):
    """How a request ended; see `RequestResult`. Times are ms on the engine's clock.

    Attributes:
        outcome: how. reason: why it was dropped, failed or cancelled, else "".
        start_ms: when its batch was dispatched; NaN if never. finish_ms: when it ended.
        predicted_ms: time from dispatch to finish that was predicted; NaN if it was never dispatched.
    """

    outcome: str
    reason: str
    start_ms: float
    finish_ms: float
    predicted_ms: float


def ended(result: RequestResult) -> Ended:
    """How a request ended."""
    return Ended(result.outcome, result.reason, result.start_ms, result.finish_ms, result.predicted_ms)


def _save(frame: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", index=False)


def workload_of(frame: pd.DataFrame, name: str) -> Workload:
    """Requests as rows of ``Asked``, by arrival, as a workload."""
    models, names = pd.factorize(frame["model"], sort=True)
    arrival, deadline = frame["arrival_ms"].to_numpy(float), frame["deadline_ms"].to_numpy(float)
    return Workload(arrival, models, frame["priority"].to_numpy(), deadline, tuple(map(str, names)), name)


def row_of(batch: BatchRecord) -> tuple:
    """A batch as a row for `campaign_of`."""
    phases = batch.phases
    scheduled = min(batch.decided_ms, phases.dispatch_ms), max(batch.seen_ms, phases.d2h_end_ms)
    return batch.stream, batch.priority, batch.model, batch.batch_size, *phases, *scheduled


def campaign_of(machine: MachineInfo, solo: list[SoloRun], batches: list[tuple]) -> Measurements:
    """Live batches, rows of `row_of`, as a campaign with the solo runs."""
    sizes = set(machine.batch_sizes)
    known = {model.name for model in machine.models}
    frame = solo_rows([run for run in solo if run.model in known and run.batch_size in sizes])
    # Halves of a batch that ran out of memory may have a size that the profile does not know.
    live = pd.DataFrame(batches, columns=["stream", "priority", "model", "batch_size", *PHASES, *SCHEDULED])
    live = live[live["batch_size"].isin(sizes) & live["model"].isin(known)]
    live.insert(0, "batch_id", np.arange(len(live)) + len(frame))
    live.insert(0, "kind", "live")
    live.insert(0, "run", len(frame))
    return Measurements(machine, pd.concat([frame, live], ignore_index=True) if len(frame) else live)
