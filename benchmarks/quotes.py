"""Are quotes true: ``python -m benchmarks.quotes``.

Each simulated arrival is quoted before it is offered, and learned from once it has ended. By bins of the quoted probability,
0.1 wide, the share that was in time should be the bin's mean, within 3 points (live 5). Even a perfect forecast misses that by
chance where a bin has few requests, so a bin is judged where the standard error of its share is at most half of that; of all
bins, how large deviations are beside their standard errors is given, which is 1 for a perfect forecast. Also: the share that
ended within each predicted quantile, the Brier score (mean squared error of the probability) beside that of always saying the
mean, and the time of a quote with 256 requests queued. The same of all simulated requests together, and of a live engine on a
simulated device. Figures: ``{workload: {load: {bins: ...}}}``, with ``all`` and ``live`` in place of a workload; ``quote_us``.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.quoting import Quoted, run_quoted
from agents.evaluation.suites import check_workload, seen_models, workload_for
from agents.policies.registry import make_policy
from benchmarks.cluster import play, scaled
from benchmarks.common.command import as_command
from benchmarks.common.tables import table
from benchmarks.decision_latency import busy_simulator, fill
from envs.profiles.profile import Profile
from envs.scheduling.jit import bind
from envs.scheduling.quote import BY_PRIORITY, ROW, Question, make_calibration, quote
from envs.scheduling.state import LOW, QUANTILES
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from serving.library import open_engine
from serving.loop import run_on_loop
from traces.settings import check_settings
from traces.workload import WorkloadConfig

BINS = 10
POINTS, LIVE_POINTS = 3.0, 5.0  # that a bin may be off
LEAST_REQUESTS = 30  # of a bin whose deviation is compared with its standard error
QUEUED, TIMED, WARM = 256, 3000, 50
LIVE_SCALE = 6.0  # factor on the times of the simulated device, beside which a busy machine's own delays are small


@dataclass
class QuotesBenchmark:
    """What to measure.

    Attributes:
        policy: name of a policy.
        profile: shipped profile by name, or a JSON file written by envs.fit.
        workloads: names of workloads, see agents.evaluate.
        loads: offered loads, as shares of the measured capacity.
        requests: simulated for each workload and load, about.
        live: requests that a live engine serves on a simulated device, about; 0: none.
        seed: of the workload and the noise.
    """

    policy: str = "strait"
    profile: str = "gpu-v100"
    workloads: list[str] = field(default_factory=lambda: ["poisson", "bursty"])
    loads: list[float] = field(default_factory=lambda: [0.6, 0.9, 1.1])
    requests: int = 20_000
    live: int = 2_000
    seed: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "--", {"requests": 1, "live": 0}, {"loads": 0}, not_empty=["workloads"])


def judge(quoted: Quoted, points: float = POINTS) -> dict[str, Any]:
    """Bins of the quoted probability, and scores over all requests.

    Args:
        quoted: requests and what became of them.
        points: that a bin may be off; one whose standard error is more than half of it is not judged.
    """
    chance, in_time = quoted.probability, quoted.in_time
    of = np.minimum((chance * BINS).astype(int), BINS - 1)
    bins: dict[str, dict[str, float]] = {}
    for number in np.unique(of):
        mine = of == number
        n = int(mine.sum())
        error = 100 * float(np.sqrt((chance[mine] * (1 - chance[mine])).sum())) / n
        bins[f"{number / BINS:.1f}"] = {
            "requests": n,
            "quoted": float(chance[mine].mean()),
            "in_time": float(in_time[mine].mean()),
            "points": 100 * float(in_time[mine].mean() - chance[mine].mean()),
            "standard_error": error,
            "judged": error <= points / 2,
        }
    judged = [one for one in bins.values() if one["judged"]]
    compared = [one for one in bins.values() if one["requests"] >= LEAST_REQUESTS and one["standard_error"] > 0]
    squares = [(one["points"] / one["standard_error"]) ** 2 for one in compared]
    executed = np.isfinite(quoted.latency_ms)
    share = in_time.mean()
    return {
        "bins": bins,
        "worst_points": max((abs(one["points"]) for one in judged), default=None),
        "judged_share": sum(one["requests"] for one in judged) / len(chance),
        "over_chance": float(np.sqrt(np.mean(squares))) if squares else None,
        "brier": float(((chance - in_time) ** 2).mean()),
        "brier_of_mean": float(share * (1 - share)),
        "within": {
            f"p{100 * level:g}": float((quoted.latency_ms <= quoted.predicted_ms[:, place])[executed].mean())
            for place, level in enumerate(QUANTILES)
        },
    }


def quote_us(profile: Profile) -> dict[str, float]:
    """Time of a quote with 256 requests queued and 4 batches in flight, called from Python, in microseconds."""
    sim = busy_simulator(profile)
    calibration, row = make_calibration(1, len(profile.models)), np.zeros(ROW)
    question = Question(0.0, LOW, 0, 100.0, BY_PRIORITY)
    args = (sim.state, sim.tables, calibration, 0)
    bound = bind(quote, *args, question, row)
    took = np.empty(TIMED)
    gc.disable()
    try:
        for i in range(-WARM, TIMED):
            fill(sim.state, sim.tables, np.uint64(i + WARM), QUEUED, 4)
            now = float(sim.state.scheduler["now"][0])
            question = Question(now, LOW, i % len(profile.models), now + 50.0, BY_PRIORITY)
            begin = time.perf_counter_ns()
            bound(*args, question, row)
            if i >= 0:
                took[i] = (time.perf_counter_ns() - begin) / 1e3
    finally:
        gc.enable()
    p50, p99 = np.quantile(took, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99}


def pooled(parts: Sequence[Quoted]) -> Quoted:
    """The requests of several runs."""
    return Quoted(*map(np.concatenate, zip(*parts)))


async def live_quoted(config: QuotesBenchmark, profile: Profile, path: Path) -> Quoted:
    """Quote and serve Poisson arrivals at the middle load, on a device with the times of a profile, which lies at `path`."""
    rate = config.loads[len(config.loads) // 2] * measure_capacity(profile)
    workload = workload_for("poisson", rate, 1e3 * config.live / rate, profile, WorkloadConfig(), config.seed)
    rows = []

    async with open_engine(device=f"sim:{path}", profile=str(path), policy=config.policy) as engine:
        values = {name: np.zeros(engine.inputs(name)[0].shape, np.float32) for name in profile.models}

        async def offer(model: str, priority: int, deadline_ms: float) -> bool:
            said = engine.quote(model, priority, deadline_ms)
            ended = await engine.infer(model, values[model], priority, deadline_ms)
            met = ended.outcome == "met"
            latency_ms = ended.latency_ms if ended.answered else np.inf
            rows.append((said.probability, [said.finish_ms[q] for q in QUANTILES], met, latency_ms, priority))
            return met

        await play(workload, offer)
    return Quoted(*map(np.array, zip(*rows)))


def measure(config: QuotesBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    full = Profile.load(config.profile)
    profile = full.select(seen_models(full))
    capacity = measure_capacity(profile)
    policy = make_policy(config.policy)
    result: dict[str, Any] = {}
    parts = []
    for kind in config.workloads:
        check_workload(kind, profile)
        for load in config.loads:
            rate = load * capacity
            workload = workload_for(kind, rate, 1e3 * config.requests / rate, profile, WorkloadConfig(), config.seed)
            sim = Simulator(profile, n_requests=len(workload))
            parts.append(run_quoted(sim, policy, [workload], [config.seed]))
            result.setdefault(kind, {})[f"{load:g}"] = judge(parts[-1])
    result["all"] = {"": judge(pooled(parts))}
    if config.live:
        slower = scaled(profile, LIVE_SCALE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile.json"
            slower.save(path)
            result["live"] = {"": judge(run_on_loop(live_quoted(config, slower, path)), LIVE_POINTS)}
    return {**result, "quote_us": quote_us(profile)}


def tabulate(result: dict[str, Any]) -> str:
    """Share in time less the quoted probability, in points, by bin; in brackets where a bin is not judged."""
    heads = ["workload", "load", *(f"{i / BINS:.1f}" for i in range(BINS))]
    heads += ["worst", "judged", "over chance", "Brier", "of the mean"]
    rows = []
    for kind, by_load in result.items():
        if kind in ("machine", "quote_us"):
            continue
        for load, judged in by_load.items():
            cells = []
            for i in range(BINS):
                one = judged["bins"].get(f"{i / BINS:.1f}")
                off = f"{one['points']:+.1f}" if one else ""
                cells.append(off if not one or one["judged"] else f"({off})")
            scores = [
                "" if judged["worst_points"] is None else f"{judged['worst_points']:.1f}",
                f"{100 * judged['judged_share']:.0f} %",
                "" if judged["over_chance"] is None else f"{judged['over_chance']:.2f}",
            ]
            rows.append([kind, load, *cells, *scores, f"{judged['brier']:.3f}", f"{judged['brier_of_mean']:.3f}"])
    took = result["quote_us"]
    return table(heads, rows, left=2) + f"\n\na quote takes {took['p50']:.1f} us (p99 {took['p99']:.1f} us)"


main = as_command(measure, QuotesBenchmark, "quotes", __doc__, tabulate)

if __name__ == "__main__":
    sys.exit(main())
