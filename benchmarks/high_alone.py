"""How few high-priority violations there can be: ``python -m benchmarks.high_alone``.

Each policy also serves the high-priority requests of a workload alone; what is violated then is not the fault of low priority.
Policies that serve both have hardly less than the least of these, which says how far one can be better than another.
Figures: ``policies``, violations of high priority in percent by load; ``alone``, the least of any policy with high priority
alone; and ``most``, the points by which the first policy is above that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

import pandas as pd

from agents.evaluate import episodes, evaluate, make_groups, make_workloads
from agents.evaluation import metric
from agents.evaluation.rollout import request_table
from agents.evaluation.suites import Suite
from agents.evaluation.summary import summarise
from benchmarks.common.command import as_command
from envs.profiles.profile import Profile
from traces.workload import Workload


@dataclass
class HighAloneBenchmark:
    """What to run.

    Attributes:
        profile: shipped profile by name, or a JSON file.
        workload: arrivals, as in the suites.
        policies: to compare.
        loads: offered loads (of both priorities) over the measured capacity.
        seeds: workloads per load.
        duration_ms: length of each workload.
        streams: of the device.
    """

    profile: str = "cpu2"
    workload: str = "bursty"
    policies: list[str] = field(default_factory=lambda: ["clockwork", "strait"])
    loads: list[float] = field(default_factory=lambda: [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    seeds: int = 10
    duration_ms: float = 5_000.0
    streams: int = 4


def high_only(workload: Workload) -> Workload:
    """The high-priority requests of a workload."""
    high = workload.priority == 0
    arrays = {name: getattr(workload, name)[high] for name in ("arrival_ms", "model", "priority", "deadline_ms")}
    return replace(workload, **arrays)


def measure(config: HighAloneBenchmark) -> dict[str, object]:
    """Measure; see the module for what is returned."""
    c = config
    suite = Suite("high-alone", tuple(c.policies), (c.workload,), tuple(c.loads), c.seeds, c.duration_ms)
    frame = evaluate(suite, c.profile, c.streams, progress=False)
    profile = suite.select(Profile.load(c.profile))
    rows = []
    for group in make_groups(suite, c.profile, frame.attrs["capacity_rps"], c.streams):
        workloads = [high_only(workload) for workload in make_workloads(group, profile)]
        for (load, _), sim, e in episodes(group, profile, workloads):
            violated = 100 * summarise(request_table(sim, e), c.duration_ms)[metric.VIOLATION_HIGH]
            rows.append((group.policy, load, violated))
    means = pd.DataFrame(rows, columns=["policy", "load", "violated"]).groupby(["policy", "load"])["violated"].mean()
    floor = means.groupby("load").min()
    rates = 100 * frame.groupby(["policy", "load"])[metric.VIOLATION_HIGH].mean()

    def by_load(values: pd.Series) -> dict[str, float]:
        return {f"{load:g}": float(values[load]) for load in c.loads}

    return {
        "profile": c.profile,
        "workload": c.workload,
        "alone": by_load(floor),
        "policies": {name: by_load(rates[name]) for name in c.policies},
        "most": by_load(rates[c.policies[0]] - floor),
    }


main = as_command(measure, HighAloneBenchmark, "high_alone", __doc__)

if __name__ == "__main__":
    sys.exit(main())
