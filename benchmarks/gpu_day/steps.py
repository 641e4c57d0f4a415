"""The steps of the day, in order of worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One step.

    Attributes:
        name: of the step.
        group: steps of a group come back in one file.
        work: "module:function", called with a `benchmarks.gpu_day.step.Context`; it returns figures by name.
        weight: of this step when the time that is left is shared out; seconds, on a day of eight minutes.
        least_s: with less time than this left, it is not started.
        compiles: whether it simulates, or serves, which `benchmarks.gpu_day.compile` prepares.
    """

    name: str
    group: str
    work: str
    weight: float
    least_s: float
    compiles: bool = False


GRACE_S = 10.0  # for the start of a process, at the least
_HERE = "benchmarks.gpu_day"
STEPS = (
    Step("facts", "device", f"{_HERE}.device:facts", 5, 3),
    Step("gpu_tests", "device", f"{_HERE}.gpu_tests:run_tests", 80, 10),
    Step("transfers", "device", f"{_HERE}.device:transfers", 15, 5),
    Step("profile", "profile", f"{_HERE}.profile:with_graphs", 120, 10),
    Step("launches", "profile", f"{_HERE}.profile:with_launches", 50, 10),
    Step("live", "live", f"{_HERE}.live:live", 110, 12, True),
    Step("simulated", "simulated", f"{_HERE}.live:simulated", 60, 12, True),
    Step("overload", "rest", f"{_HERE}.rest:server_overload", 25, 10),
    Step("training", "rest", f"{_HERE}.rest:training_speed", 15, 10),
)


def share_s(left_s: float, steps: Sequence[Step]) -> float:
    """Seconds of the first of the steps that are still to come: its share of the time left, by weight."""
    return left_s * steps[0].weight / sum(step.weight for step in steps)


def limit_s(left_s: float, planned_s: float) -> float:
    """Seconds after which a step is ended: what was planned and half of it again, and never more than is left."""
    return min(left_s, 1.5 * planned_s + GRACE_S)
