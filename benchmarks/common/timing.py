"""What several benchmarks share: the machine's name, medians of alternating runs, and the JSON line at the end."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from traces.machine import cpu_name


def machine() -> str:
    """Processor and number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_name()}, {cores} cores"


def alternate(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each run returns, over rounds that take all in turn: what disturbs one disturbs all."""
    got: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            got[name].append(run())
    return {name: statistics.median(values) for name, values in got.items()}


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(result: Mapping[str, Any]) -> None:
    """Print the result as one JSON line, with the machine it was measured on."""
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()} | {"machine": machine()})
    )
