"""Measurements of a device: every executed batch with its phases, and the machine it ran on.

A campaign (solo runs, co-locations, or the log of a live server) is a folder with `machine.json` and
`batches.parquet`; the tables below are all that the predictor and the simulator learn from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from traces.errors import InputError
from traces.files import atomic_path, atomic_write_text
from traces.machine import SCHEMA, MachineInfo
from traces.tables import read_table


class Phases(NamedTuple):
    """When the phases of a batch began and ended: ms on one clock, non-decreasing in the order of the fields.

    Attributes:
        dispatch_ms: the batch was submitted to the device.
        h2d_start_ms: start of the copy to the device.
        h2d_end_ms: end of that copy.
        exec_start_ms: start of the execution.
        exec_end_ms: end of the execution.
        d2h_end_ms: end of the copy from the device, which starts when the execution ends.
    """

    dispatch_ms: float
    h2d_start_ms: float
    h2d_end_ms: float
    exec_start_ms: float
    exec_end_ms: float
    d2h_end_ms: float

    @property
    def total_ms(self) -> float:
        """From dispatch to the end of the copy back."""
        return self.d2h_end_ms - self.dispatch_ms

    def since(self, start_ms: float) -> Phases:
        """The same phases on a clock that began at `start_ms` of this one."""
        # Spelled out: a live server does this for each batch, and a generator takes three times as long.
        dispatch, h2d_start, h2d_end, exec_start, exec_end, d2h_end = self
        return Phases(
            dispatch - start_ms,
            h2d_start - start_ms,
            h2d_end - start_ms,
            exec_start - start_ms,
            exec_end - start_ms,
            d2h_end - start_ms,
        )


KINDS = ("solo", "colocation", "live")
PHASES = Phases._fields
SCHEDULED = ("decided_ms", "seen_ms")  # present where a scheduler dispatched the batches
COLUMN_TYPES: dict[str, str] = {
    "run": "int32",
    "kind": "category",
    "batch_id": "int64",
    "stream": "int8",
    "priority": "int8",
    "model": "category",
    "batch_size": "int16",
    **dict.fromkeys(PHASES, "float64"),
}


@dataclass(frozen=True, eq=False)
class Measurements:
    """A measurement campaign.

    Attributes:
        machine: the device, its streams and the models that ran.
        batches: one row per batch, columns of `COLUMN_TYPES`: run (batches of one run share the device and a clock), kind
            (one of `KINDS`), batch_id (unique), stream, priority (0 high, 1 low), model, batch_size, and the `PHASES`
            in ms since the recording started, non-decreasing in that order. The log of a live engine also has those of
            `SCHEDULED`: when the scheduler decided on the batch, and when it saw it end (NaN where no scheduler did).
    """

    machine: MachineInfo
    batches: pd.DataFrame

    @classmethod
    def load(cls, path: Path | str) -> Measurements:
        """Read and validate a campaign folder; InputError names the file and what is wrong with it."""
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected a campaign with machine.json and batches.parquet")
        machine_path, batches_path = folder / "machine.json", folder / "batches.parquet"
        try:
            machine = MachineInfo.from_json(json.loads(machine_path.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise InputError(f"{machine_path}:{error.lineno}: not JSON: {error.msg}") from None
        except FileNotFoundError:
            raise InputError(f"{machine_path}: no such file") from None
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{machine_path}: {error}") from None
        frame = read_table(batches_path)
        try:
            result = cls(machine, _typed(frame))
            result.validate()
        except InputError as error:
            raise InputError(f"{batches_path}: {error}") from None
        return result

    def save(self, path: Path | str) -> None:
        """Validate, then write the campaign folder; each file appears whole or not at all."""
        self.validate()
        folder = Path(path)
        with atomic_path(folder / "batches.parquet") as temporary:
            _typed(self.batches).to_parquet(temporary, compression="zstd", index=False)
        described = {"schema": SCHEMA, **asdict(self.machine)}
        atomic_write_text(folder / "machine.json", json.dumps(described, indent=1) + "\n")

    def validate(self) -> None:
        """Raise InputError that names the column, row and value of the first thing wrong."""
        frame = _typed(self.batches)
        models = [model.name for model in self.machine.models]
        _refuse(frame, ~frame["kind"].isin(KINDS).to_numpy(), "kind", f"expected one of {', '.join(KINDS)}")
        _refuse(frame, frame["batch_id"].duplicated().to_numpy(), "batch_id", "must be unique")
        _refuse(frame, ~frame["model"].isin(models).to_numpy(), "model", f"machine.json knows {', '.join(models)}")
        streams = self.machine.streams
        outside = (frame["stream"] < 0) | (frame["stream"] >= streams)
        _refuse(frame, outside.to_numpy(), "stream", f"must be from 0 to {streams - 1}")
        _refuse(frame, ~frame["priority"].isin((0, 1)).to_numpy(), "priority", "expected 0 (high) or 1 (low)")
        _refuse(frame, (frame["batch_size"] < 1).to_numpy(), "batch_size", "must be at least 1")
        earlier, what = np.zeros(len(frame)), "the start of the recording, at 0"
        for column in PHASES:
            times = frame[column].to_numpy()
            _refuse(frame, ~np.isfinite(times), column, "expected a finite time in ms")
            _refuse(frame, times < earlier, column, f"must not be before {what}")
            earlier, what = times, column
        if SCHEDULED[0] in frame:
            decided, seen = (frame[name].to_numpy() for name in SCHEDULED)
            for name, times in zip(SCHEDULED, (decided, seen)):
                _refuse(frame, np.isinf(times), name, "expected a finite time in ms, or none")
            _refuse(frame, decided > frame[PHASES[0]].to_numpy(), SCHEDULED[0], f"must not be after {PHASES[0]}")
            _refuse(frame, seen < earlier, SCHEDULED[1], f"must not be before {PHASES[-1]}")

    def solo_table(self) -> pd.DataFrame:
        """Medians of the solo runs.

        Returns:
            One row for each model and batch size that ran solo, in the order of machine.json and then by size: columns
            model (str), batch_size, h2d_ms, exec_ms, d2h_ms (medians of each phase), n (batches measured).
        """
        solo = self.batches[(self.batches["kind"] == "solo").to_numpy()]
        table = pd.DataFrame(
            {
                "model": solo["model"].astype(str),
                "batch_size": solo["batch_size"],
                "h2d_ms": solo["h2d_end_ms"] - solo["h2d_start_ms"],
                "exec_ms": solo["exec_end_ms"] - solo["exec_start_ms"],
                "d2h_ms": solo["d2h_end_ms"] - solo["exec_end_ms"],
            }
        )
        groups = table.groupby(["model", "batch_size"])
        result = groups.median().assign(n=groups.size()).reset_index()
        place = {model.name: number for number, model in enumerate(self.machine.models)}
        order = np.lexsort((result["batch_size"], result["model"].map(place)))
        return result.iloc[order].reset_index(drop=True)

    def describe(self) -> str:
        """A few lines for people: device, models, and how many batches of each kind."""
        device = self.machine.device
        kinds = self.batches["kind"].astype(str).value_counts()
        units = "cores" if device.kind == "cpu" else "multiprocessors"
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kind in kinds)
        names = ", ".join(model.name for model in self.machine.models)
        return (
            f"{device.name} ({device.kind}, {device.cores} {units}), {self.machine.streams} streams, "
            f"{self.machine.created}\n  {len(self.batches)} batches in {self.batches['run'].nunique()} runs: {counts}\n"
            f"  models: {names}; batch sizes {', '.join(map(str, self.machine.batch_sizes))}"
        )


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of the schema in their order and types; others are left out, missing ones refused."""
    columns = {}
    kinds = dict(COLUMN_TYPES)
    if any(name in frame for name in SCHEDULED):
        kinds |= dict.fromkeys(SCHEDULED, "float64")
    for name, kind in kinds.items():
        if name not in frame:
            raise InputError(f"column {name!r} is missing; it has {', '.join(map(str, frame.columns))}")
        column = frame[name].reset_index(drop=True)
        absent = column.isna().to_numpy()
        if absent.any() and name not in SCHEDULED:
            raise InputError(f"row {int(np.argmax(absent))}: column {name!r} is empty (NaN); expected a value")
        if kind.startswith("int"):
            if not pd.api.types.is_integer_dtype(column):
                raise InputError(f"column {name!r} has type {column.dtype}; expected integers")
            limits = np.iinfo(kind)
            wide = ((column < limits.min) | (column > limits.max)).to_numpy()
            _refuse(frame, wide, name, f"must be from {limits.min} to {limits.max}")
        elif kind == "float64" and not pd.api.types.is_numeric_dtype(column):
            raise InputError(f"column {name!r} has type {column.dtype}; expected numbers")
        columns[name] = column.astype(kind)  # type: ignore[call-overload]
    return pd.DataFrame(columns)


def _refuse(frame: pd.DataFrame, bad: np.ndarray, column: str, expected: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        # .tolist() gives plain Python values, which print as a user wrote them (4, not np.int64(4)).
        value = frame[column].iloc[row : row + 1].tolist()[0]
        raise InputError(f"row {row}: column {column!r} is {value!r}; {expected}")
