"""Recorded arrivals, which every trace format is read into, and what they share with workloads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from traces.arrivals import dispersion
from traces.errors import InputError

BURST_MS = 1_000.0  # window of the index of dispersion in ``Arrivals.describe``


class TimedRows:
    """Arrays of one length R, sorted by their arrival times: what ``Arrivals`` and ``Workload`` share."""

    arrival_ms: np.ndarray
    name: str

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

    def rescaled(self, rate_rps: float) -> Self:
        """The same with arrivals compressed or stretched in time to `rate_rps`; all else stays.

        Raises:
            InputError: the rate is not positive, or there is no arrival after time 0 to scale.
        """
        if not (np.isfinite(rate_rps) and rate_rps > 0):
            raise InputError(f"rate_rps: {rate_rps}; must be above 0")
        if self.duration_ms <= 0:
            raise InputError("rate_rps: these arrivals have no duration, so no rate to change")
        return replace(self, arrival_ms=self.arrival_ms * (len(self) / rate_rps * 1e3 / self.duration_ms))  # type: ignore[type-var]

    def window(self, start_ms: float, end_ms: float) -> Self:
        """What arrives in [start_ms, end_ms), counted from start_ms; InputError when the window is empty or backwards."""
        if not start_ms < end_ms:
            raise InputError(f"window: from {start_ms} to {end_ms} ms; the end must be after the start")
        first, last = np.searchsorted(self.arrival_ms, [start_ms, end_ms], side="left")
        arrays = {name: value[first:last] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays | {"arrival_ms": arrays["arrival_ms"] - start_ms})  # type: ignore[type-var]

    def slots(self, slot_ms: float) -> list[Self]:
        """Cut into time slots, each counted from its start, the last as long as what is left; empty ones are dropped."""
        count = int(self.arrival_ms[-1] // slot_ms) + 1 if len(self) else 0
        cut = [self.window(i * slot_ms, (i + 1) * slot_ms) for i in range(count)]
        return [slot for slot in cut if len(slot)]

    def _set_arrays(self, kinds: dict[str, type]) -> None:
        """Make the named fields arrays of these types; InputError when they differ in shape or the times are not sorted."""
        for field, dtype in kinds.items():
            object.__setattr__(self, field, np.ascontiguousarray(getattr(self, field), dtype=dtype))
        size = self.arrival_ms.shape
        for field in kinds:
            shape = getattr(self, field).shape
            if shape != size or len(size) != 1:
                raise InputError(f"{self._place}: {field} has shape {shape}, not {size}")
        times = self.arrival_ms
        self._refuse(~np.isfinite(times) | (times < 0), "arrival_ms", "expected finite, at least 0")
        self._refuse(np.diff(times, prepend=0.0) < 0, "arrival_ms", "must not be before the one in front of it")

    def _refuse(self, bad: np.ndarray, field: str, expected: str) -> None:
        """InputError that names the first row where ``bad`` is true; nothing if none is."""
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{self._place}: request {row}: {field} is {getattr(self, field)[row]}; {expected}")

    @property
    def _place(self) -> str:
        return f"{type(self).__name__.lower()} {self.name!r}"


@dataclass(frozen=True, eq=False)
class Arrivals(TimedRows):
    """Arrivals of one trace, sorted by time.

    Attributes:
        arrival_ms: float64 (R,), from the start of the recording, non-decreasing, not negative.
        name: what the trace is called in reports.
        resolution_ms: step of the recorded times, 0 where they are exact. Times within a step were spread by seed, so
            nothing shorter than this is known of the trace.

    Raises:
        InputError: times are not sorted, finite and at least 0.
    """

    arrival_ms: np.ndarray
    name: str
    resolution_ms: float = 0.0

    def __post_init__(self) -> None:
        self._set_arrays({"arrival_ms": np.float64})

    def rescaled(self, rate_rps: float) -> Arrivals:
        """The same arrivals compressed or stretched in time to `rate_rps`, their resolution with them."""
        return replace(super().rescaled(rate_rps), resolution_ms=self.resolution_ms * self.rate_rps / rate_rps)

    def describe(self) -> str:
        """One line for people: number, rate, burstiness, resolution."""
        text = f"{self.name}: {len(self)} arrivals in {self.duration_ms / 1e3:.3f} s ({self.rate_rps:.3f} requests/s)"
        if self.duration_ms >= 2 * BURST_MS > self.resolution_ms:
            spread = dispersion(self.arrival_ms, [BURST_MS], self.duration_ms)[0]
            text += f", variance over mean of the count per second {spread:.2f} (Poisson: 1)"
        if self.resolution_ms:
            text += f", recorded in steps of {self.resolution_ms:g} ms"
        return text
