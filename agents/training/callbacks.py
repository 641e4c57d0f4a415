"""What is done beside learning: scalars, comparison with the reference, checkpoints, the end of the time, the progress bar.

sb3's callbacks see the rollouts; an ``UpdateCallback`` is also called after each update, where a run may be stopped and
resumed without a trace: nothing is pending there but what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image
from tqdm import tqdm

from agents.evaluation import metric
from agents.evaluation.paired import PairedEvaluation
from agents.learned.network import weights_of
from agents.training.devices import Device
from envs.drawing.frame import draw
from envs.mixed import TrainingEnv
from envs.scheduling.state import OUTCOMES, PRIORITIES
from envs.simulation.generate import RATE

Z95 = 1.96  # half width of a 95 % interval, in standard errors


class UpdateCallback(BaseCallback):
    """A callback that is also called after each update."""

    def on_update(self) -> None:
        """An update is done; ``self.model`` is as it will be when the next rollout begins."""

    def _on_step(self) -> bool:
        return True


class RolloutCallback(UpdateCallback):
    """Records how the worlds went in each rollout, and writes all that was recorded after each update."""

    def __init__(self, env: TrainingEnv) -> None:
        super().__init__()
        self.env = env
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
        every = [part.env.worlds for part in self.env.parts]
        loads = np.concatenate([worlds.generator.drawn[:, RATE] * 1e3 / worlds.capacity_rps for worlds in every])
        for name, value in (("mean", loads.mean()), ("min", loads.min()), ("max", loads.max())):
            record(f"load/{name}", float(value))
        self._record_actions()

    def _record_actions(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        actions = buffer.actions.reshape(-1).astype(np.int64)
        defer = buffer.action_masks.shape[-1] - 1
        # Where DEFER is the only valid action there was nothing to decide.
        free = buffer.action_masks.reshape(len(actions), -1)[:, :-1].any(axis=1)
        self.logger.record("action/defer", float((actions[free] == defer).sum() / max(int(free.sum()), 1)))
        self.logger.record("action/free_to_choose", float(free.mean()))
        if len(self.env.parts) == 1:  # else candidates of one place differ from device to device
            self._record_candidates(np.bincount(actions[free], minlength=defer + 1) / max(int(free.sum()), 1))

    def _record_candidates(self, share: np.ndarray) -> None:
        sizes = self.env.parts[0].env.worlds.profile.batch_sizes
        dispatched = share[:-1].reshape(2, -1, len(sizes))
        for p, name in enumerate(PRIORITIES):
            self.logger.record(f"action/{name}", float(dispatched[p].sum()))
        for b, size in enumerate(sizes):
            self.logger.record(f"action/batch_{size}", float(dispatched[:, :, b].sum()))

    def on_update(self) -> None:
        """Write what was recorded, as one point."""
        model = self.model
        model.dump_logs(model.num_timesteps // (model.n_steps * model.n_envs))  # type: ignore[attr-defined,call-arg]


class Comparison(NamedTuple):
    """Result of the paired evaluation, one entry for each of ``names`` and one for all, in shares of violated weight.

    Attributes:
        mean: (N + 1,) the policy's minus the reference's. error: (N + 1,) standard error.
        rates: by "policy" and "reference", (N, 2) violation rates of high and low priority.
    """

    mean: np.ndarray
    error: np.ndarray
    rates: dict[str, np.ndarray]


def compare(
    devices: Sequence[Device], evaluations: Sequence[PairedEvaluation], weights: Mapping[str, np.ndarray]
) -> Comparison:
    """Compare the network with these weights with the reference: by load on one device, else by device."""
    scores = [
        evaluation.score(device.learned(weights)) for device, evaluation in zip(devices, evaluations, strict=True)
    ]
    difference = np.array([e.difference(s) for e, s in zip(evaluations, scores, strict=True)])  # (D, 2, loads)
    references = [evaluation.reference for evaluation in evaluations]
    # (D, loads, 2) by policy.
    rates = {
        name: np.array([np.nanmean((s.high, s.low), axis=2).T for s in of])
        for name, of in (("policy", scores), ("reference", references))
    }
    mean, error = difference[:, 0], difference[:, 1]
    if len(devices) == 1:
        mean, error = mean[0], error[0]
        rates = {name: of[0] for name, of in rates.items()}
    else:
        error = np.sqrt((error**2).mean(axis=1) / error.shape[1])
        mean = mean.mean(axis=1)
        rates = {name: of.mean(axis=1) for name, of in rates.items()}
    whole = np.sqrt((error**2).mean() / len(error))
    return Comparison(np.append(mean, mean.mean()), np.append(error, whole), rates)


def comparison_names(devices: Sequence[Device], loads: Sequence[float | None]) -> list[str]:
    """What the entries of a ``Comparison`` are, as in TensorBoard's tags."""
    if len(devices) == 1:
        return [f"load_{load:g}" for load in loads]
    return [Path(device.name).stem.replace(":", "_") for device in devices]


class EvaluationCallback(UpdateCallback):
    """Compares the policy with the reference on held-out workloads, and keeps the best.

    Args:
        devices: the devices of the run.
        evaluations: the comparison on each.
        every: decisions between comparisons.
        save: called with True when the policy is the best so far, after each comparison.

    Attributes:
        names: what the entries of a comparison are.
        best: least mean difference so far, share of violated weight. last: number of decisions at the last comparison.
        latest: the last mean difference.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        evaluations: Sequence[PairedEvaluation],
        every: int,
        save: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self.devices = devices
        self.evaluations = evaluations
        self.names = comparison_names(devices, evaluations[0].loads)
        self.every = every
        self.save = save
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
        found = self._compare()
        self.last = steps
        self.latest = float(found.mean[-1])
        self._record(found)
        better = self.latest < self.best
        self.best = min(self.best, self.latest)
        self.logger.record("evaluation/best_difference", 100 * self.best)
        self.save(better)

    def _compare(self) -> Comparison:
        return compare(self.devices, self.evaluations, weights_of(self.model.policy))  # type: ignore[arg-type]

    def seconds(self) -> float:
        """Time that a comparison takes now that all is compiled."""
        began = time.monotonic()
        self._compare()
        return time.monotonic() - began

    def _record(self, found: Comparison) -> None:
        """Differences and rates in percentage points, see ``layout``."""
        for name, m, s in zip((*self.names, "all"), found.mean, found.error, strict=True):
            self.logger.record(f"evaluation/difference/{name}", 100 * m)
            self.logger.record(f"evaluation/standard_error/{name}", 100 * s)
            self.logger.record(f"evaluation/lower/{name}", 100 * (m - Z95 * s))
            self.logger.record(f"evaluation/upper/{name}", 100 * (m + Z95 * s))
        for of, rates in found.rates.items():
            for name, row in zip(self.names, rates, strict=True):
                for priority, rate in zip(PRIORITIES, row, strict=True):
                    self.logger.record(f"evaluation_{of}/{priority}/{name}", 100 * float(rate))
        worlds = self.devices[0].worlds
        picture = draw(worlds.sim.state, worlds.profile.models)
        self.logger.record("world/first", Image(picture, "HWC"), exclude=("stdout", "log", "json", "csv"))


def layout(names: Sequence[str], reference: str) -> dict[str, dict[str, list]]:
    """TensorBoard's custom scalars by ``comparison_names``: the first screen says whether the policy beats the reference."""

    def margin(name: str) -> list:
        return ["Margin", [f"evaluation/{part}/{name}" for part in ("difference", "lower", "upper")]]

    first = {"violated weight minus the reference's, overall (percentage points, below 0 is better)": margin("all")}
    rates = {
        f"{priority} priority, {name.replace('_', ' ')} (%)": [
            "Multiline",
            [f"evaluation_policy/{priority}/{name}", f"evaluation_reference/{priority}/{name}"],
        ]
        for name in names
        for priority in PRIORITIES
    }
    return {
        f"1 Is it better than {reference}?": first | {name.replace("_", " "): margin(name) for name in names},
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
