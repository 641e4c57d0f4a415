"""What a trace format is, and how the rows that it reads become `Arrivals`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from traces.errors import InputError
from traces.recorded import Arrivals

MAX_ARRIVALS = 200_000_000
# Stamps count as recorded in steps when at least this share of the arrivals has the stamp of the one before it.
STEPPED_SHARE = 0.01


@dataclass(frozen=True)
class Rows:
    """Some rows of a trace. `count` and `step_ms` are for formats that record counts per step, not single arrivals."""

    time_ms: np.ndarray
    source: np.ndarray | None = None
    size: np.ndarray | None = None
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


def assemble(trace: TraceFormat, path: Path, name: str, seed: int, keep: float) -> Arrivals:
    """Reads a file and makes sorted `Arrivals` of it; see `load_arrivals` for `seed` and `keep`."""
    rng = np.random.default_rng(seed)
    parts = [_expanded(rows, rng, keep) for rows in _bounded(trace.read(path), path, keep)]
    parts = [part for part in parts if len(part.time_ms)]
    if not parts:
        raise InputError(f"{path}: holds no arrival" + (" after thinning" if keep < 1 else ""))
    times = np.concatenate([part.time_ms for part in parts])
    resolution_ms = max(part.step_ms for part in parts)
    order = np.argsort(times, kind="stable")
    times = times[order]
    if trace.stepped:
        times, resolution_ms = spread_steps(times, rng)
    codes, names = _sources(parts)
    sizes = [part.size for part in parts if part.size is not None]
    return Arrivals(
        arrival_ms=times if trace.from_start else times - times[0],
        name=name,
        source=None if codes is None else codes[order],
        source_names=names,
        size=np.concatenate(sizes)[order] if sizes else None,
        resolution_ms=resolution_ms,
    )


def spread_steps(times_ms: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Spreads arrivals that were stamped with the start of a step uniformly over that step.

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


def _bounded(rows: Iterable[Rows], path: Path, keep: float) -> Iterator[Rows]:
    total = 0.0
    for part in rows:
        total += keep * float(part.count.sum() if part.count is not None else len(part.time_ms))
        if total > MAX_ARRIVALS:
            raise InputError(f"{path}: over {MAX_ARRIVALS} arrivals; keep a share of them (keep={keep / 100:g})")
        yield part


def _expanded(rows: Rows, rng: np.random.Generator, keep: float) -> Rows:
    """Thins the rows to the share `keep`, and turns counts into single arrivals spread over their step."""
    if rows.count is not None:
        count = rows.count if keep >= 1 else rng.binomial(rows.count, keep)
        index = np.repeat(np.arange(len(rows.time_ms)), count)
    elif keep < 1:
        index = np.flatnonzero(rng.random(len(rows.time_ms)) < keep)
    else:
        return rows
    times = rows.time_ms[index]
    if rows.step_ms:
        times = times + rng.random(len(times)) * rows.step_ms
    source = None if rows.source is None else rows.source[index]
    size = None if rows.size is None else rows.size[index]
    return Rows(times, source, size, step_ms=rows.step_ms)


def _sources(parts: list[Rows]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    labels = [part.source for part in parts if part.source is not None]
    if not labels:
        return None, ()
    codes, names = pd.factorize(np.concatenate(labels))
    return codes.astype(np.int32), tuple(map(str, names))
