"""What is done beside learning: scalars, comparison with the reference, checkpoints, the end of the time, the progress bar.

sb3's callbacks see the rollouts; an ``UpdateCallback`` is also called after each update, where a run may be stopped and
resumed without a trace: nothing is pending there but what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image
from tqdm import tqdm

from agents.evaluation import metric
from agents.learned.network import CandidatePolicy
from agents.learned.policy import LearnedPolicy
from agents.training.paired_evaluation import PairedEvaluation, Score
from envs.drawing.frame import draw
from envs.scheduling.state import OUTCOMES, PRIORITIES
from envs.simulation.generate import RATE
from envs.simulation.worlds import Worlds

Z95 = 1.96  # half width of a 95 % interval, in standard errors


def weights_of(policy: CandidatePolicy) -> dict[str, np.ndarray]:
    """The network's weights as arrays by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in policy.net.state_dict().items()}


class UpdateCallback(BaseCallback):
    """A callback that is also called after each update."""

    def on_update(self) -> None:
        """An update is done; ``self.model`` is as it will be when the next rollout begins."""

    def _on_step(self) -> bool:
        return True


class RolloutCallback(UpdateCallback):
    """Records how the worlds went in each rollout, and writes all that was recorded after each update."""

    def __init__(self, worlds: Worlds) -> None:
        super().__init__()
        self.worlds = worlds
        self._counts = np.zeros((2, len(OUTCOMES)), np.int64)
        self._returns: list[float] = []
        self._lengths: list[int] = []

    def _on_rollout_start(self) -> None:
        self._counts[:] = 0
        self._returns.clear()
        self._lengths.clear()

    def _on_step(self) -> bool:
        for i in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][i]
            self._counts += info["outcomes"]
            self._returns.append(info["episode"]["r"])
            self._lengths.append(info["episode"]["l"])
        return True

    def _on_rollout_end(self) -> None:
        record = self.logger.record
        for p, name in enumerate(PRIORITIES):
            total = int(self._counts[p].sum())
            for o, outcome in enumerate(OUTCOMES):
                if o and (self._counts[p, o] or outcome in ("met", "late", "dropped")):
                    record(metric.outcome_tag(name, outcome), int(self._counts[p, o]))
            if total:
                record(metric.VIOLATION[p], 1.0 - self._counts[p, 1] / total)
        if self._returns:
            record(metric.EPISODE_RETURN, float(np.mean(self._returns)))
            record(metric.EPISODE_LENGTH, float(np.mean(self._lengths)))
        # What the episodes under way offer.
        loads = self.worlds.generator.drawn[:, RATE] * 1e3 / self.worlds.capacity_rps
        for name, value in (("mean", loads.mean()), ("min", loads.min()), ("max", loads.max())):
            record(f"load/{name}", float(value))
        self._record_actions()

    def _record_actions(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        actions = buffer.actions.reshape(-1).astype(np.int64)
        sizes = self.worlds.profile.batch_sizes
        defer = self.worlds.sim.n_actions - 1
        # Where DEFER is the only valid action there was nothing to decide.
        free = buffer.action_masks.reshape(len(actions), -1)[:, :-1].any(axis=1)
        share = np.bincount(actions[free], minlength=defer + 1) / max(int(free.sum()), 1)
        dispatched = share[:defer].reshape(2, -1, len(sizes))
        self.logger.record("action/defer", float(share[defer]))
        self.logger.record("action/free_to_choose", float(free.mean()))
        for p, name in enumerate(PRIORITIES):
            self.logger.record(f"action/{name}", float(dispatched[p].sum()))
        for b, size in enumerate(sizes):
            self.logger.record(f"action/batch_{size}", float(dispatched[:, :, b].sum()))

    def on_update(self) -> None:
        """Write what was recorded, as one point."""
        model = self.model
        model.dump_logs(model.num_timesteps // (model.n_steps * model.n_envs))  # type: ignore[attr-defined,call-arg]


class EvaluationCallback(UpdateCallback):
    """Compares the policy with the reference on held-out workloads, and keeps the best.

    Args:
        evaluation: the comparison.
        every: decisions between comparisons.
        save: called with True when the policy is the best so far, after each comparison.
        worlds: worlds that a picture is drawn of.

    Attributes:
        best: least mean difference so far, share of violated weight. last: number of decisions at the last comparison.
        latest: the last mean difference.
    """

    def __init__(self, evaluation: PairedEvaluation, every: int, save: Callable[[bool], None], worlds: Worlds) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.every = every
        self.save = save
        self.worlds = worlds
        self.best = np.inf
        self.last = -1
        self.latest = np.nan

    def on_update(self) -> None:
        """Compare, if it is time."""
        if self.model.num_timesteps - self.last >= self.every:
            self.compare()

    def compare(self) -> None:
        """Compare now, unless that was done at this number of decisions; the result is recorded."""
        steps = self.model.num_timesteps
        if steps == self.last:
            return
        score = self._score()
        self.last = steps
        self.latest = float(self.evaluation.difference(score)[0].mean())
        self._record(score)
        better = self.latest < self.best
        self.best = min(self.best, self.latest)
        self.logger.record("evaluation/best_difference", 100 * self.best)
        self.save(better)

    def _score(self) -> Score:
        config = self.worlds.config
        weights = weights_of(self.model.policy)  # type: ignore[arg-type]
        return self.evaluation.score(
            LearnedPolicy(
                weights, drop=config.drop, defer_ms=config.defer_ms, max_batches_per_core=config.max_batches_per_core
            )
        )

    def seconds(self) -> float:
        """Time that a comparison takes now that all is compiled."""
        began = time.monotonic()
        self._score()
        return time.monotonic() - began

    def _record(self, score: Score) -> None:
        """Differences and rates in percentage points, see ``layout``."""
        mean, error = self.evaluation.difference(score)
        names = [f"load_{load:g}" for load in self.evaluation.loads] + ["all"]
        mean = np.append(mean, mean.mean())
        error = np.append(error, np.sqrt((error**2).mean() / len(error)))
        for name, m, s in zip(names, mean, error, strict=True):
            self.logger.record(f"evaluation/difference/{name}", 100 * m)
            self.logger.record(f"evaluation/standard_error/{name}", 100 * s)
            self.logger.record(f"evaluation/lower/{name}", 100 * (m - Z95 * s))
            self.logger.record(f"evaluation/upper/{name}", 100 * (m + Z95 * s))
        for who, rates in (("policy", score), ("reference", self.evaluation.reference)):
            for i, name in enumerate(names[:-1]):
                self.logger.record(f"evaluation_{who}/high/{name}", 100 * float(np.nanmean(rates.high[i])))
                self.logger.record(f"evaluation_{who}/low/{name}", 100 * float(np.nanmean(rates.low[i])))
        picture = draw(self.worlds.sim.state, self.worlds.profile.models)
        self.logger.record("world/first", Image(picture, "HWC"), exclude=("stdout", "log", "json", "csv"))


def layout(loads: tuple[float, ...], reference: str) -> dict[str, dict[str, list]]:
    """TensorBoard's custom scalars: the first screen answers whether the policy is better than the reference."""

    def margin(name: str) -> list:
        return ["Margin", [f"evaluation/{part}/{name}" for part in ("difference", "lower", "upper")]]

    first = {"violated weight minus the reference's, all loads (percentage points, below 0 is better)": margin("all")}
    rates = {
        f"{name} priority, load {load:g} (%)": [
            "Multiline",
            [f"evaluation_policy/{name}/load_{load:g}", f"evaluation_reference/{name}/load_{load:g}"],
        ]
        for load in loads
        for name in PRIORITIES
    }
    return {
        f"1 Is it better than {reference}?": first | {f"load {load:g}": margin(f"load_{load:g}") for load in loads},
        "2 Violation rates, policy and reference": rates,
        "3 Is it learning?": {
            "violation rate while training": ["Multiline", list(metric.VIOLATION)],
            "divergence": ["Multiline", ["train/approx_kl"]],
            "entropy loss": ["Multiline", ["train/entropy_loss"]],
            "explained variance": ["Multiline", ["train/explained_variance"]],
            "actions": ["Multiline", [f"action/{name}" for name in ("defer", *PRIORITIES)]],
        },
    }


class CheckpointCallback(UpdateCallback):
    """Writes a checkpoint every so many decisions.

    Args:
        every: decisions between checkpoints; 0: none.
        write: writes one.
    """

    def __init__(self, every: int, write: Callable[[], Path]) -> None:
        super().__init__()
        self.every = every
        self.write = write
        self.last = 0

    def on_update(self) -> None:
        """Write one, if it is time."""
        if self.every and self.model.num_timesteps - self.last >= self.every:
            self.last = self.model.num_timesteps
            self.write()


class ProgressCallback(UpdateCallback):
    """A bar over the run: how far it is, and the last difference from the reference.

    Args:
        done: gives the share of the run that is done.
        evaluation: the comparison whose result is shown.
    """

    def __init__(self, done: Callable[[], float], evaluation: EvaluationCallback) -> None:
        super().__init__()
        self.done = done
        self.evaluation = evaluation
        form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
        self.bar = tqdm(total=1.0, desc="train", bar_format=form)

    def on_update(self) -> None:
        """Show where it is."""
        self.bar.n = min(self.done(), 1.0)
        entries = {"decisions": f"{self.model.num_timesteps / 1e6:.2f}M"}
        if np.isfinite(self.evaluation.latest):
            entries["difference"] = f"{100 * self.evaluation.latest:+.2f}pp"
            entries["best"] = f"{100 * self.evaluation.best:+.2f}pp"
        self.bar.set_postfix(entries)

    def _on_training_end(self) -> None:
        self.bar.close()
