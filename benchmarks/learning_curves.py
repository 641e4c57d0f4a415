"""How PPO learns in an environment, beside what policies by rule reach there: ``python -m benchmarks.learning_curves``.

Runs docs/examples/ppo_one_file.py, which starts from nothing, on each environment with several seeds, and draws violations of
both priorities against decisions. Lines across are policies by rule in the same environment, as `agents.leaderboard` plays
them. Figures: violations in the last tenth of the training, mean over seeds, in %, and those of the policies by rule.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.evaluation import metric
from agents.leaderboard import check_environment, environments, play
from benchmarks.common.command import as_command
from benchmarks.common.pictures import panels, save
from traces.settings import check_settings

ROOT = Path(__file__).resolve().parents[1]
PPO = ROOT / "docs" / "examples" / "ppo_one_file.py"
RULES = ("strait", "edf", "fifo")
TAGS = ("violation_rate/high", "violation_rate/low")
LAST = 0.9  # of the decisions, from where on the figures count


@dataclass
class LearningCurves:
    """What to train.

    Attributes:
        envs: ids of environments.
        full: all environments, with 400,000 decisions and three seeds each: an hour.
        seeds: trainings in each.
        steps: decisions of a training, in all worlds together.
        episodes: of each policy by rule.
        out: folder of the pictures and of TensorBoard.
        workers: trainings at a time.

    Raises:
        InputError: a setting is out of range, or there is no such environment.
    """

    envs: tuple[str, ...] = ("Strait/DualPriority-Tiny-v2",)
    full: bool = False
    seeds: int = 2
    steps: int = 60_000
    episodes: int = 20
    out: str = "runs/learning-curves"
    workers: int = 2

    def __post_init__(self) -> None:
        check_settings(self, "--", dict.fromkeys(("seeds", "steps", "episodes", "workers"), 1))
        if self.full:
            self.envs = tuple(name for name in environments() if name.endswith("-v2"))
            self.seeds, self.steps = 3, 400_000
        for env in self.envs:
            check_environment("--envs", env)


def short_name(env: str) -> str:
    """An environment's name in files, such as dual-priority-bursty."""
    variant = env.removeprefix("Strait/DualPriority").rsplit("-", 1)[0]
    return f"dual-priority{variant.lower()}"


def train(env: str, seed: int, config: LearningCurves) -> Path:
    """Train once; returns the folder of its TensorBoard. Raises RuntimeError: the training failed."""
    folder = Path(config.out) / short_name(env) / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # the events of a training before would be read with its own
    words = ["--env", env, "--seed", str(seed), "--total_steps", str(config.steps), "--logdir", str(folder)]
    ended = subprocess.run(
        [sys.executable, str(PPO), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"{env}, seed {seed}: {ended.stderr.strip()[-500:]}")
    return folder


def curve(folder: Path) -> np.ndarray:
    """(updates, 3) of a training: decisions, and violations of high and of low priority in %."""
    # Imported here: it takes seconds.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    high, low = (events.Scalars(tag) for tag in TAGS)
    return np.array([(one.step, 100 * one.value, 100 * other.value) for one, other in zip(high, low, strict=True)])


def by_rule(env: str, episodes: int) -> dict[str, list[float]]:
    """Violations of high and of low priority in % of each policy by rule."""
    return {name: (100 * play(env, episodes, name)[list(metric.VIOLATION)].mean()).tolist() for name in RULES}


def draw(env: str, curves: list[np.ndarray], rules: dict[str, list[float]], path: Path) -> None:
    """Violations against decisions, high priority on the left, low on the right."""
    figure, axes = panels(1, 2, (9.0, 3.2), sharex=True)
    for column, (axis, priority) in enumerate(zip(axes[0], ("high", "low"))):
        for one in curves:
            axis.plot(one[:, 0], one[:, 1 + column], color="C0", alpha=0.4, label="_")
        axis.plot([], [], color="C0", label=f"PPO, {len(curves)} seeds")
        for place, (policy, rates) in enumerate(rules.items(), 1):
            axis.axhline(rates[column], color=f"C{place}", linestyle="--", label=policy)
        axis.set_xlabel("decisions")
        axis.set_ylabel(f"violations of {priority} priority, %")
    axes[0][1].legend(fontsize="small")
    figure.suptitle(env, fontsize="medium")
    save(figure, path)


def measure(config: LearningCurves) -> dict[str, Any]:
    """Train in all environments, draw, and sum up."""
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(config.workers) as pool:
        runs = [
            (env, pool.submit(train, env, seed, config)) for env in config.envs for seed in range(1, config.seeds + 1)
        ]
        for _, run in tqdm(runs, unit="training", disable=not sys.stderr.isatty()):
            run.result()
    for env in config.envs:
        curves = [curve(run.result()) for name, run in runs if name == env]
        rules = by_rule(env, config.episodes)
        draw(env, curves, rules, Path(config.out) / f"learning-{short_name(env)}.png")
        last = np.mean([one[one[:, 0] >= LAST * config.steps, 1:].mean(axis=0) for one in curves], axis=0)
        found[short_name(env)] = {
            name: {"high": values[0], "low": values[1]} for name, values in {"ppo": last.tolist(), **rules}.items()
        }
    return found


main = as_command(measure, LearningCurves, "learning_curves", __doc__)

if __name__ == "__main__":
    sys.exit(main())
