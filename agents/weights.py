"""One learned policy along the weight of high priority, beside a Strait tuned for each: ``python -m agents.weights``.

``high_weight`` says how many low-priority requests one of high priority counts as. The learned policy is told it, as ``serve.py
--high_weight`` does. Strait is tuned for each weight on the tuner's own workloads (``tuned``), or is the one that ships and is
told the weight as well (``told``). All then run on the same workloads of the evaluation.

Figures by weight and policy: violations of ``high`` and ``low`` priority and their ``weighted`` rate in percent; ``gain``, the
points by which the learned policy's weighted rate is above that of the tuned Strait, paired, with a 95 % interval: below 0 is
better. A policy whose gain is below 0 at each weight has its curve of (high, low) below that of Strait.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from agents.evaluate import Group, make_workloads
from agents.evaluation.rollout import run
from agents.evaluation.statistics import bootstrap, violations, weighted_rate
from agents.evaluation.suites import Suite, check_workload
from agents.learned.names import resolve
from agents.policies.base import Policy
from agents.policies.registry import make_policy
from agents.tune import TuneConfig, training_profile, tune_policy
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.command import run_command
from traces.files import rounded
from traces.settings import check_settings
from traces.worker_pool import results, worker_pool

TUNED, TOLD = "strait, tuned for it", "strait, told it"


@dataclass
class WeightsConfig:
    """What to run.

    Attributes:
        profile: shipped profile by name, or a JSON file.
        policy: the learned policy, by name or file.
        weights: what a high-priority request counts, a low-priority one being 1.
        workload: arrivals, as in the suites.
        loads: offered loads over the measured capacity.
        seeds: workloads per load.
        duration_ms: length of each workload.
        streams: of the device.
        budget: trials in which Strait is tuned for each weight.
        full: with the trials and seeds that the tuned files that ship were made with: twelve times the tuning.
        workers: processes; all cores by default.

    Raises:
        InputError: a setting is out of range.
    """

    profile: str = "gpu-a100"
    policy: str = "ppo"
    weights: list[float] = field(default_factory=lambda: [2.0, 5.0, 10.0, 20.0, 40.0])
    workload: str = "bursty"
    loads: list[float] = field(default_factory=lambda: [0.7, 0.9, 1.1])
    seeds: int = 10
    duration_ms: float = 5_000.0
    streams: int = 4
    budget: int = 40
    full: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        least = dict.fromkeys(("seeds", "streams", "budget", "workers"), 1)
        check_settings(self, "--", least, dict.fromkeys(("weights", "loads", "duration_ms"), 0))


def tuning(config: WeightsConfig, weight: float) -> TuneConfig:
    """How Strait is tuned for a weight."""
    own = partial(TuneConfig, ["strait"], profile=config.profile, streams=config.streams, high_weight=weight)
    return own(budget=240, seeds=4) if config.full else own(budget=config.budget)


def at_weight(config: WeightsConfig, weight: float, capacity_rps: float) -> dict[str, np.ndarray]:
    """Rates (W, 3) of each policy at a weight, a row for each workload: high, low and weighted, in percent."""
    suite = Suite(
        "weights", (config.policy,), (config.workload,), tuple(config.loads), config.seeds, config.duration_ms
    )
    profile = training_profile(config.profile)
    workloads = make_workloads(
        Group(config.profile, config.policy, config.workload, capacity_rps, config.streams, suite), profile
    )
    sim = Simulator(profile, len(workloads), config.streams, max(1, *map(len, workloads)))

    def rates(policy: Policy, told: float) -> np.ndarray:
        sim.state.scheduler["high_weight"] = told
        run(sim, policy, workloads, list(range(config.seeds)) * len(config.loads))
        violated, total = violations(sim.state.count)
        both = violated / np.maximum(total, 1)
        return 100 * np.column_stack((both, weighted_rate(violated, total, weight)))

    params = tune_policy("strait", tuning(config, weight), capacity_rps)["params"]
    told = TuneConfig().high_weight  # what the tuner's own worlds tell
    return {
        TUNED: rates(make_policy("strait", sim.n, **params), told),
        TOLD: rates(resolve("strait", sim.n, profile=config.profile)[0], weight),
        config.policy: rates(resolve(config.policy, sim.n, profile=config.profile)[0], weight),
    }


def measure(config: WeightsConfig) -> dict[str, Any]:
    """Tune, run and compare; see the module for what is returned."""
    profile = training_profile(config.profile)
    check_workload(config.workload, profile)
    resolve(config.policy)
    capacity = measure_capacity(profile, config.streams)
    with worker_pool(config.workers, None) as pool:
        waiting = [pool.submit(at_weight, config, weight, capacity) for weight in config.weights]
        measured = results(waiting, "weight", "weights", sys.stderr.isatty())
    rates = {f"{weight:g}": rows for weight, rows in zip(config.weights, measured)}
    found = {
        weight: {
            policy: dict(zip(("high", "low", "weighted"), rows.mean(axis=0).tolist())) for policy, rows in at.items()
        }
        for weight, at in rates.items()
    }
    gains = {w: bootstrap(at[config.policy][:, 2] - at[TUNED][:, 2]) for w, at in rates.items()}
    return {
        "profile": config.profile,
        "loads": config.loads,
        "weights": found,
        "gain": {w: dict(zip(("low end", "mean", "high end"), values)) for w, values in gains.items()},
    }


def run_command_line(config: WeightsConfig) -> None:
    """Run what the settings ask for; the JSON line comes last."""
    result = rounded(measure(config), 4)
    for weight, at in result["weights"].items():
        for policy, rates in at.items():
            print(
                f"{weight:>5} {policy:<22} {rates['high']:6.2f} / {rates['low']:6.2f} %  weighted {rates['weighted']:6.2f} %"
            )
        low, mean, high = result["gain"][weight].values()
        print(f"      {config.policy} minus {TUNED}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]")
    print(json.dumps(result))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_command_line, WeightsConfig, argv, "python -m agents.weights", __doc__)


if __name__ == "__main__":
    sys.exit(main())
