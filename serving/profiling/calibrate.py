"""Fits a shipped profile to this machine in seconds: solo latencies are measured, interference is taken from the profile.

The latencies of the loaded models at every batch size are what a schedule depends on most, and take seconds to measure;
slowdowns side by side take minutes (serving.profiler), and the online predictor learns those from the first requests.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import pandas as pd

from envs.profiles.profile import Profile
from envs.profiles.refit import on_machine
from serving.executors.base import BatchResult
from serving.executors.executor import Executor
from traces.errors import InputError
from traces.machine import MachineInfo, ModelInfo
from traces.measurements import PHASES, Measurements

SHIPPED = "cpu2"
REPEATS = 5


@dataclass(frozen=True)
class SoloRun:
    """One batch that ran alone."""

    model: str
    batch_size: int
    result: BatchResult


def measure_solo(
    executor: Executor, models: Sequence[str], sizes: Sequence[int], repeats: int = REPEATS, serving: bool = False
) -> list[SoloRun]:
    """Run every loaded model at every size alone, after a warm-up; `serving` as in `Executor.warm_up`.

    Raises:
        InputError: a model fails.
    """
    runs = []
    for name in models:
        try:
            executor.warm_up(name, sizes, serving)
            for size in sizes:
                runs += [SoloRun(name, size, result) for result in executor.time_alone(name, size, repeats)]
        except RuntimeError as error:
            raise InputError(str(error)) from None
    return runs


def without_token(command: str) -> str:
    """A command line that may be shown: the word after --token, which has no white space, is left out."""
    return re.sub(r"(--token[ =])\S+", r"\1...", command)


def machine_of(
    executor: Executor, models: Sequence[ModelInfo], sizes: Sequence[int], command: str | None = None
) -> MachineInfo:
    """The description of this machine with these models; `command` is that of the process if it is not given."""
    return MachineInfo(
        created=date.today().isoformat(),
        command=without_token(command or shlex.join(["python", *sys.argv])),
        device=executor.device,
        streams=executor.streams,
        batch_sizes=tuple(sizes),
        models=tuple(models),
    )


def solo_rows(runs: Sequence[SoloRun]) -> pd.DataFrame:
    """Solo runs as rows of a measurement campaign: each is a run of its own, on the clock of the first."""
    start = min((run.result.phases.dispatch_ms for run in runs), default=0.0)
    rows = [
        (i, "solo", i, run.result.stream, 1, run.model, run.batch_size) + run.result.phases.since(start)
        for i, run in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["run", "kind", "batch_id", "stream", "priority", "model", "batch_size", *PHASES])


def calibrated(base: Profile, machine: MachineInfo, runs: Sequence[SoloRun]) -> Profile:
    """The base profile with the measured models in place of its own.

    Interference of pairs is kept for models that the base knows by name; others interfere by their demands alone.

    Args:
        base: a shipped profile.
        machine: models and batch sizes, in order.
        runs: of every model at every size.
    """
    profile = on_machine(base, Measurements(machine, solo_rows(runs)))
    return replace(profile, name="auto")
