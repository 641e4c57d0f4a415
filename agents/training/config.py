"""Settings of a training run: one typed dataclass, the same names in Python, YAML and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from agents.training.lookahead import LookAheadConfig
from agents.training.warm_start import ImitateConfig
from envs.simulation.config import EnvConfig
from traces.errors import InputError

CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class PPOConfig:
    """Settings of MaskablePPO and its network.

    Attributes:
        n_envs: worlds stepped together. n_steps: decisions of each world between updates.
        batch_size: decisions a gradient step. n_epochs: passes over the decisions of an update.
        learning_rate: of Adam, falling linearly to ``final_rate`` times itself at the end of training.
        final_rate: see there.
        clip_range: how far the probability ratio may move and still be rewarded.
        ent_coef: weight of the entropy. vf_coef: weight of the value's squared error.
        max_grad_norm: longest gradient. target_kl: an update ends early at 1.5 times this divergence; None: never.
        gae_lambda: trace decay of the advantage estimates.
        tau_ms: time constant of the discount, ms of the worlds' time.
        hidden: width of the network's layers.
        prior: logit that the teacher's choice begins with (agents.training.strait_bonus; the teacher is then Strait); 0:
            the network begins with nothing, or with what it imitates.
    """

    n_envs: int = 256
    n_steps: int = 64
    batch_size: int = 4096
    n_epochs: int = 3
    learning_rate: float = 5e-4
    final_rate: float = 0.1
    clip_range: float = 0.2
    ent_coef: float = 0.001
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = 0.03
    gae_lambda: float = 0.95
    tau_ms: float = 300.0
    hidden: int = 32
    prior: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_envs", "n_steps", "batch_size", "n_epochs", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"ppo.{name}: {getattr(self, name)}; at least 1 is wanted")
        for name in ("learning_rate", "clip_range", "tau_ms", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"ppo.{name}: {getattr(self, name)}; a number above 0 is wanted")
        if not self.prior >= 0:
            raise InputError(f"ppo.prior: {self.prior}; at least 0 is wanted")
        if not 0 <= self.gae_lambda <= 1:
            raise InputError(f"ppo.gae_lambda: {self.gae_lambda}; from 0 to 1 is wanted")
        if self.n_envs * self.n_steps < 2:
            raise InputError("ppo: n_envs * n_steps is 1; at least 2 decisions an update are wanted")


@dataclass(frozen=True)
class DuelConfig:
    """Settings of the comparison with the reference policy, on held-out workloads (agents.training.paired_evaluation).

    Attributes:
        loads: offered loads over measured capacity. workloads: number of workloads at each.
        duration_ms: length of each.
        confirm: workloads at each load of the last comparison, which no choice was made by; 0: none.
    """

    loads: tuple[float, ...] = (0.8, 1.0, 1.2)
    workloads: int = 16
    duration_ms: float = 4000.0
    confirm: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", tuple(self.loads))
        if not self.loads or min(self.loads) <= 0:
            raise InputError(f"duel.loads: {self.loads}; one or more numbers above 0 are wanted")
        if self.workloads < 2 or self.confirm < 0 or self.confirm == 1:
            raise InputError("duel: workloads of at least 2, and confirm of 0 or at least 2, are wanted")


GROUPS: dict[str, type] = {
    "env": EnvConfig,
    "imitate": ImitateConfig,
    "look_ahead": LookAheadConfig,
    "ppo": PPOConfig,
    "duel": DuelConfig,
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs to know.

    Attributes:
        n_timesteps: decisions in all worlds, after the warm start.
        budget_s: wall time of the whole run, compilation included, s; None: no limit. The learning rate falls with
            whichever of both runs out first.
        seed: of worlds, weights and sampling.
        eval_freq: decisions between comparisons with the reference. save_freq: decisions between checkpoints; 0: only
            where the run ends or is interrupted.
        keep: checkpoints kept, the newest.
        teacher: policy that the warm start imitates. reference: policy to beat.
        tuned_for: profile whose tuned parameters both take; empty: that of the worlds.
        teacher_tuned: whether the teacher takes them, too; else its parameters are the defaults.
        baseline: rewards are relative to what the reference does with the same requests (agents.training.baseline).
        logdir: folder of runs. name: of the run's folder; empty: "ppo-N", the next that is free.
        threads: threads that step the worlds. torch_threads: threads that learn.
        progress: show a progress bar.
        env: the worlds. imitate, look_ahead: the warm start. ppo: the algorithm. duel: the comparison.
    """

    n_timesteps: int = 10_000_000
    budget_s: float | None = None
    seed: int = 0
    eval_freq: int = 500_000
    save_freq: int = 500_000
    keep: int = 3
    teacher: str = "strait"
    reference: str = "strait"
    tuned_for: str = ""
    teacher_tuned: bool = True
    baseline: bool = True
    logdir: str = "runs"
    name: str = ""
    threads: int = 2
    torch_threads: int = 2
    progress: bool = False
    env: EnvConfig = field(default_factory=EnvConfig)
    imitate: ImitateConfig = field(default_factory=ImitateConfig)
    look_ahead: LookAheadConfig = field(default_factory=LookAheadConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    duel: DuelConfig = field(default_factory=DuelConfig)

    def __post_init__(self) -> None:
        for name, kind in GROUPS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name}: {getattr(self, name)!r}; a mapping of settings is wanted")
        if self.look_ahead.rounds > 0 and not self.ppo.prior > 0:
            raise InputError("look_ahead: needs ppo.prior above 0, the logit that Strait's choice begins with")
        for name in ("n_timesteps", "seed", "save_freq"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)}; at least 0 is wanted")
        for name in ("eval_freq", "keep", "threads", "torch_threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; at least 1 is wanted")
        if self.budget_s is not None and not self.budget_s > 0:
            raise InputError(f"budget_s: {self.budget_s}; seconds above 0, or null, are wanted")
        if Path(self.name).name != self.name:
            raise InputError(f"name: {self.name!r}; the name of a folder, without a path, is wanted (see logdir)")


def config_path(name: str) -> Path:
    """File of a configuration: one that ships, by name, or a path.

    Raises:
        InputError: there is none.
    """
    path = CONFIGS / f"{name}.yaml"
    if "/" not in name and path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    raise InputError(f"--config: no configuration {name!r}; one of {', '.join(known)}, or a YAML file, is wanted")


def make_parser(**settings: Any) -> ArgumentParser:
    """A parser with a flag for each field of ``TrainConfig``, and ``--config`` for a YAML file of them."""
    parser = ArgumentParser(exit_on_error=False, **settings)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def load_config(name: str | Path = "default", flags: Sequence[str] = ()) -> TrainConfig:
    """Settings from a YAML file or a configuration that ships, with some replaced by flags ("--ppo.n_steps=32").

    Raises:
        InputError: no such configuration, or a field that is unknown or malformed.
    """
    path = config_path(str(name))
    try:
        _check_groups(path)
        config = _parse(["--config", str(path)])
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    return _parse(["--config", str(path), *flags]) if flags else config


def _check_groups(path: Path) -> None:
    """Refuse a number or a text in the place of a mapping, which the parser would pass over."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {one_line(error)}") from None
    for name in GROUPS:
        if isinstance(data, dict) and not isinstance(data.get(name, {}), dict):
            raise InputError(f"{name}: {data[name]!r}; a mapping of settings is wanted")


def _parse(args: Sequence[str]) -> TrainConfig:
    parser = make_parser()
    try:
        given = parser.instantiate(parser.parse_args(list(args))).as_dict()
        given.pop("config")
        return TrainConfig(**given)
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(one_line(error)) from None


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def to_yaml(config: TrainConfig) -> str:
    """The settings as YAML that ``load_config`` reads."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
