"""What a trace format is, and how the rows that it reads become `Arrivals`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.recorded import Arrivals

MAX_ARRIVALS = 200_000_000
# Stamps count as recorded in steps when at least this share of the arrivals has the stamp of the one before it.
STEPPED_SHARE = 0.01


@dataclass(frozen=True)
class Rows:
    """Some rows of a trace, in any order.

    Attributes:
        time_ms: (n,) time of each arrival, or start of each step.
        count: (n,) arrivals in each step, where a format records counts; None: each row is one arrival.
        step_ms: length of a step.
    """

    time_ms: np.ndarray
    count: np.ndarray | None = None
    step_ms: float = 0.0


@dataclass(frozen=True)
class TraceFormat:
    """A trace format: one file of this folder, and one line of the registry.

    Attributes:
        name: what users call it.
        matches: tells from the path and the first line of the file whether it is in this format.
        read: yields the rows, in chunks, in any order; raises InputError `file:line: ...` for a malformed line.
        from_start: whether times count from the start of the recording; if not, the first arrival becomes time 0.
        stepped: whether stamps may be rounded to steps, in which case arrivals are spread over their step.
    """

    name: str
    matches: Callable[[Path, str], bool]
    read: Callable[[Path], Iterator[Rows]]
    from_start: bool = False
    stepped: bool = False


def columns_of(line: str) -> set[str]:
    """Names in a CSV header."""
    return {name.strip() for name in line.split(",")}


def assemble(trace: TraceFormat, path: Path, name: str, seed: int) -> Arrivals:
    """Read a file and make sorted `Arrivals` of it; see `load_arrivals`."""
    rng = np.random.default_rng(seed)
    parts, total, resolution_ms = [], 0.0, 0.0
    for rows in trace.read(path):
        total += float(len(rows.time_ms) if rows.count is None else rows.count.sum())
        if total > MAX_ARRIVALS:
            raise InputError(f"{path}: more than {MAX_ARRIVALS} arrivals; keep fewer rows of the file")
        times = rows.time_ms if rows.count is None else np.repeat(rows.time_ms, rows.count)
        # Nothing is drawn where there is nothing to spread: the seed then means the same for every format.
        parts.append(times + rng.random(len(times)) * rows.step_ms if rows.step_ms else times)
        resolution_ms = max(resolution_ms, rows.step_ms)
    times = np.sort(np.concatenate(parts)) if parts else np.empty(0)
    if not len(times):
        raise InputError(f"{path}: holds no arrival")
    if trace.stepped:
        times, resolution_ms = spread_steps(times, rng)
    return Arrivals(times if trace.from_start else times - times[0], name, resolution_ms)


def spread_steps(times_ms: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Spread arrivals that were stamped with the start of a step uniformly over that step.

    The step is taken from the stamps themselves (the 10th percentile of the gaps between different ones, since jitter
    makes some gaps a little longer and idle times make some much longer); no arrival passes the next stamp.

    Args:
        times_ms: sorted stamps.
        rng: source of randomness.

    Returns:
        The sorted times, and the step in ms: 0, with the times as they were, when the stamps hardly ever repeat.
    """
    stamps, place, count = np.unique(times_ms, return_inverse=True, return_counts=True)
    if len(stamps) < 2 or np.sum(count - 1) < STEPPED_SHARE * len(times_ms):
        return times_ms, 0.0
    gaps = np.diff(stamps)
    step_ms = float(np.quantile(gaps, 0.1, method="lower"))
    room = np.minimum(np.append(gaps, step_ms), step_ms * 1.05)
    return np.sort(times_ms + rng.random(len(times_ms)) * room[place]), step_ms
