"""Time and machine: the processor's name, medians of alternating runs, and progress with the seconds passed."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

from traces.machine import cpu_name


def machine() -> str:
    """Processor and number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_name()}, {cores} cores"


def alternate(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each run returns, over rounds of all of them: what disturbs one disturbs all."""
    got: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            got[name].append(run())
    return {name: statistics.median(values) for name, values in got.items()}


def one_thread() -> AbstractContextManager[Any]:
    """Within it BLAS and OpenMP use one thread, where scikit-learn is installed.

    Processes side by side that each take all cores wait for each other.
    """
    if find_spec("sklearn") is None:
        return nullcontext()
    import sklearn.ensemble  # noqa: F401  # limits hold for what is loaded when they are set, and this loads OpenMP
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Progress:
    """Lines on standard error, each with the seconds since the start."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def __call__(self, text: str) -> None:
        """Print a line."""
        print(f"{self.seconds:5.0f} s  {text}", file=sys.stderr)
