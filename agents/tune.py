"""Every policy's own parameters, tuned alike: ``python -m agents.tune`` writes agents/data/tuned.json.

One tuner (Optuna's TPE) with one budget for all, on training workloads: synthetic arrivals with seeds that no evaluation
uses. The objective is the share of violated weight, high priority counting five times or as told. The first trials are the
defaults and what is in force on the profile, so that what is kept is never worse than they are on these workloads. A file that
is there already is resumed: policies that were tuned with the same settings are not tuned again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.evaluation.rollout import run
from agents.evaluation.statistics import violations, weighted_rate
from agents.evaluation.suites import check_workload, seen_models, workload_for
from agents.learned.names import TUNED, read_tuned, resolve, tuned, tuned_path
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_write_text, check_file
from traces.settings import check_settings
from traces.worker_pool import worker_pool
from traces.workload import HIGH_WEIGHT, Workload, WorkloadConfig

# What each parameter may be: a pair of numbers is a range (whole numbers where both are), a pair of booleans a choice.
# What a device was measured to cost (preempt), and what an ablation switches, is not tuned.
Range = tuple[int, int] | tuple[float, float] | tuple[bool, bool]
MIXED: dict[str, Range] = {"mixed_batches": (False, True)}
RANGES: dict[str, dict[str, Range]] = {
    "fifo": {"max_batch": (1, 8)} | MIXED,
    "edf": {"max_batch": (1, 8)} | MIXED,
    "priority-edf": {"max_batch": (1, 8), "low_streams": (1, 4)} | MIXED,
    "triton": {
        "max_batch": (1, 8),
        "preferred": (1, 8),
        "max_delay": (0.0, 20.0),
        "instances": (1, 4),
        "levels": (False, True),
    },
    "clipper": {"objective": (1.0, 16.0), "increase": (0.05, 2.0), "decrease": (0.5, 0.98), "instances": (1, 4)}
    | MIXED,
    "cork": {"max_batch": (1, 8), "budget": (0.0, 2.0), "rate": (0.001, 0.3), "by_priority": (False, True)} | MIXED,
    "nexus": {"worst_case": (1.0, 4.0), "in_flight": (1, 4), "margin": (0.8, 3.0), "drop_scale": (1.0, 4.0)} | MIXED,
    "symphony": {"margin": (0.8, 3.0), "in_flight": (1, 4), "defer": (0.0, 1.0), "by_priority": (False, True)} | MIXED,
    "clockwork": {"margin": (0.8, 3.0), "in_flight": (1, 4), "by_priority": (False, True)} | MIXED,
    "gpulet": {"in_flight": (1, 4), "margin": (0.8, 2.0), "low_streams": (1, 4)} | MIXED,
    "preempt": {"max_batch": (1, 8), "low_streams": (1, 4)} | MIXED,
    "preempt-instant": {"max_batch": (1, 8), "low_streams": (1, 4)} | MIXED,
    "ppo": {"caution": (0.5, 6.0)},
    "strait": {"high_weight": (3.0, 80.0), "price": (0.1, 5.0), "level": (0.0, 7.0), "patience": (0.5, 15.0)},
}

MOST_TRIALS = 120  # for each parameter of a policy

PLACES = ("workers", "cluster", "out")  # settings of where it runs and writes, on which no result depends
FIRST_SEED = 1_000_000  # seeds of evaluations begin at 0


@dataclass(frozen=True)
class TuneConfig:
    """How to tune.

    Attributes:
        policies: which; all by default.
        budget: trials for each policy, at most 120 for each of its parameters.
        seed: of the tuner, and of the training workloads.
        loads: offered loads over measured capacity.
        workloads: kinds of synthetic arrivals, or trace files in any known format.
        seeds: workloads of each kind and load.
        duration_ms: length of each.
        profile: shipped profile by name, or a JSON file written by envs.fit.
        streams: streams of the device.
        high_weight: what a violation of high priority counts in the objective, one of low priority being 1.
        workers: processes; all cores by default.
        cluster: run on Ray in place of processes: local, auto or ray://HOST:PORT; needs strait-rl[ray].
        out: file to write; results in it that were made with the same settings are kept. One that would lose other results
            is left as it is, with an error.
    """

    policies: list[str] | None = None
    budget: int = 60
    seed: int = 0
    loads: tuple[float, ...] = (0.7, 0.85, 1.0, 1.1, 1.2)
    workloads: tuple[str, ...] = ("poisson", "bursty", "diurnal")
    seeds: int = 2
    duration_ms: float = 4_000.0
    profile: str = "cpu2"
    streams: int = 4
    high_weight: float = HIGH_WEIGHT
    workers: int | None = None
    cluster: str | None = None
    out: str = str(TUNED)

    def __post_init__(self) -> None:
        least = {"budget": 1, "seeds": 1, "streams": 1, "workers": 1, "high_weight": 0}
        above = {"loads": 0, "duration_ms": 0}
        check_settings(self, "--", least, above, {"seeds": 1000}, ["policies", "workloads"])


class TuningObjective:
    """The training workloads in one simulator, and the objective on them.

    Args:
        config: which workloads. profile: models and device. capacity_rps: what loads are shares of.
    """

    def __init__(self, config: TuneConfig, profile: Profile, capacity_rps: float) -> None:
        first = FIRST_SEED + config.seed * 1000
        self.seeds = [first + i for _ in product(config.workloads, config.loads) for i in range(config.seeds)]
        cells = product(config.workloads, config.loads, range(first, first + config.seeds))
        self.workloads: list[Workload] = [
            workload_for(kind, load * capacity_rps, config.duration_ms, profile, WorkloadConfig(), seed)
            for kind, load, seed in cells
        ]
        room = max(1, *(len(w) for w in self.workloads))
        self.sim = Simulator(profile, len(self.workloads), config.streams, room)
        self.high_weight = config.high_weight

    def score(self, policy: Policy) -> float:
        """Share of violated weight, mean over the workloads."""
        run(self.sim, policy, self.workloads, self.seeds)
        return float(np.mean(weighted_rate(*violations(self.sim.state.count), self.high_weight)))


def suggest(trial: Any, name: str) -> dict[str, Any]:
    """Parameters of policy ``name`` for one trial of Optuna's."""
    out: dict[str, Any] = {}
    for key, (low, high) in RANGES[name].items():
        if isinstance(low, bool):
            out[key] = trial.suggest_categorical(key, [low, high])
        elif isinstance(low, int) and isinstance(high, int):
            out[key] = trial.suggest_int(key, low, high)
        else:
            out[key] = trial.suggest_float(key, low, high)
    return out


def inside(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are tuned, each moved into its range."""
    return {
        k: params[k] if isinstance(low, bool) else min(max(params[k], low), high)
        for k, (low, high) in RANGES[name].items()
    }


def tune_policy(name: str, config: TuneConfig, capacity_rps: float) -> dict[str, Any]:
    """Tune one policy.

    Returns:
        Entry of the file: "params", the objective "reached" and that of the defaults, "default".
    """
    optuna = _optuna()
    profile = training_profile(config.profile)
    objective = TuningObjective(config, profile, capacity_rps)

    def policy(**params: Any) -> Policy:
        return resolve(name, objective.sim.n, False, config.profile, **params)[0]

    defaults = asdict(policy().params)
    default = objective.score(policy())
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=config.budget // 4)
    )
    in_force = tuned(tuned_path(config.profile)).get(name, {})
    for params in (defaults, defaults | in_force):
        study.enqueue_trial(inside(name, params), skip_if_exists=True)
    study.optimize(
        lambda trial: objective.score(policy(**suggest(trial, name))),
        n_trials=min(config.budget, MOST_TRIALS * len(RANGES[name])),
    )
    if study.best_value < default:
        return {"params": study.best_params, "reached": study.best_value, "default": default}
    return {"params": {k: defaults[k] for k in RANGES[name]}, "reached": default, "default": default}


def training_profile(name: str) -> Profile:
    """A profile by name, with the models that training may see."""
    profile = Profile.load(name)
    return profile.select(seen_models(profile))


def tune(config: TuneConfig, progress: bool = True) -> dict[str, Any]:
    """Tune all policies asked for, on all cores, and write the file after each one.

    Raises:
        InputError: optuna is missing, or a policy is unknown or has nothing to tune.
    """
    _optuna()
    names = config.policies or list(RANGES)
    profile = training_profile(config.profile)
    for workload in config.workloads:
        check_workload(workload, profile)
    for name in names:
        if name not in RANGES:
            raise InputError(f"--policies: nothing to tune for {name!r}; there is for {', '.join(RANGES)}")
        known = {f.name for f in fields(resolve(name)[0].params)}
        if gone := sorted(set(RANGES[name]) - known):
            raise InputError(f"agents.tune: policy {name!r} has no parameter {gone[0]!r}; correct RANGES")
    out = Path(config.out)
    check_file(out, "--out")
    settings = {k: v for k, v in asdict(config).items() if k not in ("policies", *PLACES)}
    # As it reads back from JSON, so that settings compare.
    settings = json.loads(json.dumps(settings))
    unfinished = out.with_name(f"{out.stem}.unfinished.json")  # takes the place of ``out`` once it is whole
    whole, part = _read(out), _read(unfinished)
    kept = {name: one for old in (whole, part) if old["settings"] == settings for name, one in old["policies"].items()}
    if lost := sorted(whole["policies"].keys() - kept.keys() - set(names)):
        raise InputError(
            f"--out: {out} holds results for {', '.join(lost)} that were made with other settings, and would be lost; "
            "give another file, or tune all policies"
        )
    result: dict[str, Any] = {
        "command": " ".join(["python -m agents.tune", *_arguments(config)]),
        "objective": f"share of violated weight, high priority counting {config.high_weight:g}",
        "settings": settings,
        "policies": kept,
    }
    missing = [name for name in names if name not in result["policies"]]
    capacity = measure_capacity(profile, config.streams)
    workers = min(config.workers or os.cpu_count() or 1, max(len(missing), 1))
    with worker_pool(workers, config.cluster) as pool:
        waiting = {pool.submit(tune_policy, name, config, capacity): name for name in missing}
        for future in tqdm(as_completed(waiting), total=len(waiting), unit="policy", desc="tune", disable=not progress):
            result["policies"][waiting[future]] = future.result()
            result["policies"] = dict(sorted(result["policies"].items()))
            atomic_write_text(unfinished, json.dumps(result, indent=1) + "\n")
    if unfinished.is_file():
        os.replace(unfinished, out)
    return result


def _read(path: Path) -> dict[str, Any]:
    """Settings and policies that an earlier run wrote, if one did. Raises InputError for a file of something else."""
    try:
        found = read_tuned(path) if path.is_file() else {"policies": {}}
        return {"settings": None} | found
    except InputError:
        raise InputError(f"--out: {path} is no file of tuned parameters, and would be lost; give another") from None


def _arguments(config: TuneConfig) -> Sequence[str]:
    """Flags that make this configuration, but for where it is written and with how many processes."""
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return [f"--{k} {v}" for k, v in changed.items() if k not in PLACES]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("tuning needs optuna, which is not installed: pip install 'strait-rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def run_command_line(config: TuneConfig) -> None:
    """Tune, and print what was found."""
    result = tune(config, progress=sys.stderr.isatty())
    for name, entry in result["policies"].items():
        print(f"{name}: {100 * entry['default']:.2f} % -> {100 * entry['reached']:.2f} %  {entry['params']}")
    print(config.out)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_command_line, TuneConfig, argv, "python -m agents.tune", __doc__)


if __name__ == "__main__":
    sys.exit(main())
