"""Training of the learned policy: look-ahead from Strait, then MaskablePPO; the best by the paired evaluation is kept.

``train(config)`` is the whole of it; ``train.py`` at the root is its command line.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import CallbackList

from agents.evaluation.paired import FIRST_SEED, PairedEvaluation
from agents.learned.names import resolve
from agents.learned.network import CandidateNet, weights_of
from agents.learned.policy_file import DEVICE, OWN, STRAIT_OF, read_policy, write_policy
from agents.training.callbacks import (
    CheckpointCallback,
    EvaluationCallback,
    ProgressCallback,
    RolloutCallback,
    UpdateCallback,
    compare,
    layout,
)
from agents.training.checkpoint import (
    Checkpoint,
    checkpoints,
    find_checkpoint,
    load_optimizer,
    optimizer_tensors,
    random_arrays,
    read_checkpoint,
    set_random,
    write_checkpoint,
)
from agents.training.config import TrainConfig, one_line
from agents.training.devices import Device, make_env
from agents.training.ending import leaving_no_rest
from agents.training.lookahead import Progress, choose_margin, look_ahead
from agents.training.ppo.buffer import SemiMarkovBuffer
from agents.training.ppo.learner import Clock, make_model
from agents.training.run_folder import (
    LAST,
    POLICY,
    WHERE,
    command_line,
    git_commit,
    make_logger,
    make_run_folder,
    note_run,
)
from agents.training.warm_start import normalise, return_scale, spread_out
from envs.profiles.profile import Profile
from traces.errors import InputError
from traces.signals import SIGNALS, handling_signals

CONFIRM_SEED = FIRST_SEED + (1 << 20)  # workloads that no choice between policies was made by


@dataclass(frozen=True)
class TrainResult:
    """What a run gave.

    Attributes:
        run: its folder. policy: file of the best policy by the paired evaluation.
        difference: share of violated weight of that policy minus the reference's, on workloads that no choice was made by
            (those of the paired evaluation where ``evaluation.confirm`` is 0); below 0 is better. error: its standard error.
        n_timesteps: decisions in all worlds. seconds: time it took, all parts of a resumed run together.
        interrupted: whether it was stopped by a signal and waits to be resumed.
    """

    run: Path
    policy: Path
    difference: float
    error: float
    n_timesteps: int
    seconds: float
    interrupted: bool


class Trainer:
    """One run: its worlds, its learner, its files.

    Args:
        config: settings.
        resume: run or checkpoint to go on from; None: begin a new run.

    Attributes:
        looking: how far the look-ahead is; None: it is over.
    """

    def __init__(self, config: TrainConfig, resume: str | Path | None = None) -> None:
        self.config = config
        self.commit = git_commit()  # of the sources as they are loaded, whatever happens to them during the run
        resolve(config.reference)  # an unknown name is told before anything runs
        if config.tuned_for:
            Profile.load(config.tuned_for)
        found = find_checkpoint(resume) if resume is not None else None
        start = read_checkpoint(found[1]) if found else None
        self.clock = Clock(config.budget_s, start.state["seconds"] if start else 0.0)
        self.interrupted = False
        self.looking: Progress | None = None
        torch.set_num_threads(config.torch_threads)
        self.env = make_env(config)
        self.devices = [Device(part, config) for part in self.env.parts]
        self.model = make_model(config.ppo, self.env, config.seed, self.devices[0].strait.tolist())
        for device in self.devices:
            device.follow(device.strait)
        if start is None:
            self.run = make_run_folder(config)
        else:
            assert found is not None
            self._restore(found[1], start)
            self.run = found[0]
        self._add_callbacks(start)

    @property
    def buffer(self) -> SemiMarkovBuffer:
        """The learner's buffer."""
        assert isinstance(self.model.rollout_buffer, SemiMarkovBuffer)
        return self.model.rollout_buffer

    def _add_callbacks(self, start: Checkpoint | None) -> None:
        c = self.config
        evaluations = self._make_evaluations(c.evaluation.workloads, FIRST_SEED)
        self.evaluation = EvaluationCallback(self.devices, evaluations, c.eval_freq, self._save_policy)
        self.saver = CheckpointCallback(c.save_freq, self.write_checkpoint)
        # The evaluation is recorded before the point is written, the checkpoint taken after it.
        self.callbacks: list[UpdateCallback] = [self.evaluation, RolloutCallback(self.env), self.saver]
        if c.progress:
            self.callbacks.append(ProgressCallback(self._done, self.evaluation))
        if start is not None:
            self.evaluation.best, self.evaluation.last = float(start.state["best"]), int(start.state["compared"])
            self.saver.last = self.model.num_timesteps
        self.model.updated = self._updated
        self.model.stopping = self._stopping
        self.model.share = self.clock.share

    def _done(self) -> float:
        return max(self.model.num_timesteps / max(self.config.n_timesteps, 1), self.clock.share())

    def _stopping(self) -> bool:
        return self.interrupted or self._done() >= 1.0

    def _updated(self) -> None:
        self.clock.tick()
        for callback in self.callbacks:
            callback.on_update()

    def _notes(self) -> dict[str, str]:
        return {
            "command": command_line(WHERE),
            "seed": str(self.config.seed),
            "n_timesteps": str(self.model.num_timesteps),
            "profile": ", ".join(device.name for device in self.devices),
            STRAIT_OF: DEVICE if len(self.devices) > 1 else OWN,
            "git_commit": self.commit,
        }

    def _save_policy(self, best: bool) -> None:
        notes = self._notes() | {
            "evaluation_difference": repr(self.evaluation.latest),
            "reference": self.config.reference,
        }
        for name in (LAST, POLICY) if best else (LAST,):
            weights = weights_of(self.model.policy)  # type: ignore[arg-type]
            write_policy(self.run / name, weights, self.config.env, notes)

    def begin(self, start: str | Path | None = None) -> None:
        """Begin as Strait, or with the weights of a policy file.

        Raises:
            InputError: ``start`` is no policy file, or its layers have another width.
        """
        self.env.reset()
        strait = [device.strait_policy() for device in self.devices]
        spread_out(self.env, strait)
        if start is None:
            normalise(self.model.policy, self.env, strait)  # type: ignore[arg-type]
        else:
            self._take_weights(start)
        self.looking = Progress()

    def look_ahead(self) -> None:
        """End the warm start, unless interrupted; a checkpoint is written then. The worlds go on from where it ends."""
        assert self.looking is not None
        c = self.config
        policy: Any = self.model.policy
        strait = [device.strait_policy() for device in self.devices]  # that which the weights correct
        if c.look_ahead.rounds:
            if not look_ahead(
                policy,
                self.env,
                strait,
                c.look_ahead,
                c.threads,
                self.looking,
                enough=lambda: self.clock.share() > c.look_ahead.time_share,
                interrupted=lambda: self.interrupted,
                sampled=self._sampled,
                progress=c.progress,
            ):
                self.write_checkpoint()
                return
            choose_margin(policy.net, c.look_ahead, self._loss)
        self.looking = None
        for device in self.devices:
            device.begin_baseline()
            device.baseline.began(np.ones(device.part.num_envs, bool))
        self.buffer.reward_scale = return_scale(policy, self.env, c.ppo.tau)
        self._stand()

    def _sampled(self) -> None:
        if self.config.save_freq:
            self.write_checkpoint()

    def _loss(self, net: CandidateNet) -> float:
        """Mean difference of a network from the reference on the workloads of the paired evaluation."""
        weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
        return float(compare(self.devices, self.evaluation.evaluations, weights).mean[-1])

    def _take_weights(self, path: str | Path) -> None:
        policy: Any = self.model.policy
        weights = read_policy(path).weights
        try:
            policy.net.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
        except RuntimeError as error:
            raise InputError(f"{path}: does not fit these settings ({one_line(error)})") from None
        self._follow_network()

    def _follow_network(self) -> None:
        """Let a network that was trained on one device correct the Strait that it was trained with."""
        if len(self.devices) == 1:
            policy: Any = self.model.policy
            self.devices[0].follow(policy.net.strait.numpy())

    def _stand(self) -> None:
        """Let the learner go on from where the worlds stand."""
        self.model._last_obs = self.env.obs
        self.model._last_episode_starts = np.concatenate([device.worlds.out.done for device in self.devices])

    def write_checkpoint(self) -> Path:
        """Write a checkpoint; the oldest beyond ``keep`` are removed."""
        model, env = self.model, self.config.env
        arrays = random_arrays()
        for i, device in enumerate(self.devices):
            arrays |= {f"worlds.{i}.{k}": v for k, v in device.worlds.state_dict().items()}
            arrays[f"drawn.{i}"] = device.worlds.generator.drawn
        state = {
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "reward_scale": self.buffer.reward_scale,
            "episodes": list(model.ep_info_buffer or ()),
            "best": self.evaluation.best,
            "compared": self.evaluation.last,
            "seconds": self.clock.seconds,
        }
        samples = {}
        if self.looking is not None:
            state["look_ahead"] = self.looking.state()
            samples = self.looking.joined().arrays() if self.looking.seen else {}
        policy: Any = model.policy
        checkpoint = Checkpoint(weights_of(policy), optimizer_tensors(policy.optimizer), arrays, state, samples)
        folder = self.run / "checkpoints" / f"{model.num_timesteps:012d}"
        write_checkpoint(folder, checkpoint, env, self._notes())
        for old in checkpoints(self.run)[: -self.config.keep]:
            shutil.rmtree(old)
        return folder

    def _restore(self, folder: Path, start: Checkpoint) -> None:
        """Go on from a checkpoint."""
        model, state = self.model, start.state
        policy: Any = model.policy
        try:
            for i, device in enumerate(self.devices):
                prefix = f"worlds.{i}."
                own = {k.removeprefix(prefix): v for k, v in start.arrays.items() if k.startswith(prefix)}
                device.worlds.load_state_dict(own)
                device.worlds.generator.drawn[...] = start.arrays[f"drawn.{i}"]
                device.begin_baseline()
            policy.net.load_state_dict({k: torch.as_tensor(v) for k, v in start.weights.items()})
            self._follow_network()
            load_optimizer(policy.optimizer, start.optimizer)
            set_random(start.arrays)
            model.num_timesteps = int(state["num_timesteps"])
            model._n_updates = int(state["n_updates"])
            model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
            model.ep_success_buffer = deque(maxlen=model._stats_window_size)
            self.buffer.reward_scale = float(state["reward_scale"])
            if "look_ahead" in state:
                self.looking = Progress.resumed(state["look_ahead"], start.samples)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: does not fit these settings ({one_line(error)})") from None
        self.env.refresh()  # worlds of several devices are observed together
        self._stand()

    def _make_evaluations(self, workloads: int, seed: int) -> list[PairedEvaluation]:
        return [device.comparison(workloads, seed) for device in self.devices]

    def learn(self) -> None:
        """Train to the end of decisions or time, or until interrupted."""
        model, c = self.model, self.config
        self.logger = make_logger(self.run, c, layout(self.evaluation.names, c.reference), model.num_timesteps)
        model.set_logger(self.logger)
        callbacks = CallbackList(list(self.callbacks))
        callbacks.init_callback(model)
        if model.num_timesteps == 0:
            self.evaluation.compare()
            self.logger.dump(0)
            if c.save_freq:  # whatever comes, a full disk say, the warm start need not be made again
                self.write_checkpoint()
        if c.budget_s is None:
            self.clock.begin_learning(0.0)
        else:
            # The last comparison, and the reference and the policy on the workloads that confirm.
            self.clock.begin_learning(
                self.evaluation.seconds() * (1.0 + 2.0 * c.evaluation.confirm / c.evaluation.workloads) + 1.0
            )
        left = c.n_timesteps - model.num_timesteps
        if left > 0:
            try:
                model.learn(left, callbacks, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            except (RuntimeError, ValueError):  # as torch tells of probabilities that are not finite
                self._check_weights()
                raise
        if not self.interrupted and self.evaluation.last != model.num_timesteps:
            self.evaluation.compare()
            self.logger.dump(model.num_timesteps)
        self.write_checkpoint()

    def _check_weights(self) -> None:
        """Raise InputError where the training has diverged."""
        weights = weights_of(self.model.policy)  # type: ignore[arg-type]
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise InputError(
                f"the training diverged after {self.model.num_timesteps} decisions; begin with a lower ppo.learning_rate "
                f"(it is {self.config.ppo.learning_rate:g}), or go on from a checkpoint in {self.run / 'checkpoints'} with one"
            ) from None

    def confirm(self) -> tuple[float, float]:
        """Difference of the best policy from the reference, and its standard error, on workloads not used before."""
        n = self.config.evaluation.confirm
        weights = read_policy(self.run / POLICY).weights
        evaluations = self._make_evaluations(n, CONFIRM_SEED) if n else self.evaluation.evaluations
        found = compare(self.devices, evaluations, weights)
        result = float(found.mean[-1]), float(found.error[-1])
        for name, value in zip(("difference", "standard_error"), result, strict=True):
            self.logger.record(f"evaluation_confirmed/{name}", 100 * value)
        self.logger.dump(self.model.num_timesteps)
        return result

    def stop(self, number: int, frame: Any) -> None:
        """Handle a signal: stop after the decision or the update under way; a second one stops at once."""
        self.interrupted = True
        for ending in SIGNALS:
            if signal.getsignal(ending) == self.stop:
                signal.signal(ending, signal.default_int_handler)
        print("\nstopping soon, with a checkpoint; once more stops at once, without one", file=sys.stderr)

    def close(self) -> None:
        """Close files and stop threads."""
        if self.looking is None:  # else it was interrupted before there was anything to log
            self.logger.close()
        self.env.close()


def train(config: TrainConfig, resume: str | Path | None = None, start: str | Path | None = None) -> TrainResult:
    """Train a policy.

    Args:
        config: settings.
        resume: run, or checkpoint of one, to go on from; ``config`` is then what its config.yaml holds.
        start: policy file whose weights a new run begins with.

    Raises:
        InputError: a setting or the checkpoint is malformed.
        OSError: a file cannot be written, say on a full disk; the message says how to go on.
    """
    with handling_signals():
        trainer = Trainer(config, resume)
        with leaving_no_rest(trainer.run):
            note_run(trainer.run, config, trainer.commit)
            with handling_signals(trainer.stop):
                if resume is None:
                    trainer.begin(start)
                if trainer.looking is not None:
                    trainer.look_ahead()
                if trainer.looking is None:
                    trainer.learn()
            difference, error = (np.nan, np.nan) if trainer.interrupted else trainer.confirm()
            trainer.close()
    return TrainResult(
        trainer.run,
        trainer.run / POLICY,
        difference,
        error,
        trainer.model.num_timesteps,
        trainer.clock.seconds,
        trainer.interrupted,
    )
