"""Recorded arrivals: what every trace format is read into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from traces.errors import InputError
from traces.workload import rescaled_ms, window_slice


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Arrivals of one trace, sorted by time. All arrays have length R.

    Attributes:
        arrival_ms: float64 (R,), from the start of the recording, non-decreasing, not negative.
        name: what the trace is called in reports.
        source: int32 (R,) index into `source_names` (a function, an application or a model), or None.
        source_names: names that `source` points to.
        size: float64 (R,), size of the request in the unit of its format (tokens, or ms of run time), or None.
        resolution_ms: step of the recorded times, 0 where they are exact. Times within a step were spread by seed, so
            nothing shorter than this is known of the trace.

    Raises:
        InputError: arrays differ in length, or times are not sorted, finite and at least 0.
    """

    arrival_ms: np.ndarray
    name: str
    source: np.ndarray | None = None
    source_names: tuple[str, ...] = ()
    size: np.ndarray | None = None
    resolution_ms: float = 0.0

    def __post_init__(self) -> None:
        kinds = {"arrival_ms": np.float64, "source": np.int32, "size": np.float64}
        for field, dtype in kinds.items():
            values = getattr(self, field)
            if values is not None:
                object.__setattr__(self, field, np.ascontiguousarray(values, dtype=dtype))
                if getattr(self, field).shape != (len(self.arrival_ms),):
                    raise InputError(f"arrivals {self.name!r}: {field} has {len(values)}, not {len(self.arrival_ms)}")
        times = self.arrival_ms
        bad = ~np.isfinite(times) | (np.diff(times, prepend=0.0) < 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"arrivals {self.name!r}: arrival_ms {row} is {times[row]}; sorted, from 0, is wanted")

    def __len__(self) -> int:
        return len(self.arrival_ms)

    @property
    def duration_ms(self) -> float:
        """Time of the last arrival; 0 when there is none."""
        return float(self.arrival_ms[-1]) if len(self) else 0.0

    @property
    def rate_rps(self) -> float:
        """Arrivals per second over `duration_ms`; 0 when that is 0."""
        return len(self) / self.duration_ms * 1e3 if self.duration_ms > 0 else 0.0

    def rescaled(self, rate_rps: float) -> Arrivals:
        """The same arrivals compressed or stretched in time to `rate_rps`."""
        times = rescaled_ms(self.arrival_ms, rate_rps)
        return replace(self, arrival_ms=times, resolution_ms=self.resolution_ms * self.rate_rps / rate_rps)

    def window(self, start_ms: float, end_ms: float) -> Arrivals:
        """Arrivals in [start_ms, end_ms), counted from start_ms."""
        return self._part(window_slice(self.arrival_ms, start_ms, end_ms), start_ms)

    def _part(self, cut: slice, origin_ms: float) -> Arrivals:
        return replace(
            self,
            arrival_ms=self.arrival_ms[cut] - origin_ms,
            source=None if self.source is None else self.source[cut],
            size=None if self.size is None else self.size[cut],
        )

    def describe(self) -> str:
        """One line for people: size, rate, sources, resolution."""
        text = f"{self.name}: {len(self)} arrivals in {self.duration_ms / 1e3:.3f} s ({self.rate_rps:.3f} requests/s)"
        if self.source is not None:
            text += f", {len(self.source_names)} sources"
        if self.resolution_ms:
            text += f", recorded in steps of {self.resolution_ms:g} ms"
        return text
