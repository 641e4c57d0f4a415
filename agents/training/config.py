"""Settings of a training run: one typed dataclass, the same names in Python, YAML and flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

import yaml

from agents.training.lookahead import LookAheadConfig
from envs.simulation.config import RANGES, EnvConfig
from traces.command import parse_settings
from traces.errors import InputError
from traces.settings import check_settings

CONFIGS = Path(__file__).resolve().parent / "configs"


MOST_WORLDS = 65_536  # some 10 GB; more would end for lack of memory, after minutes


@dataclass(frozen=True)
class PPOConfig:
    """Settings of MaskablePPO and its network.

    Attributes:
        n_envs: worlds stepped together.
        n_steps: decisions of each world between updates.
        batch_size: decisions a gradient step.
        n_epochs: passes over the decisions of an update.
        learning_rate: of Adam, falling linearly to ``final_rate`` times itself at the end of training.
        final_rate: see there.
        clip_range: how far the probability ratio may move and still be rewarded.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value's squared error.
        max_grad_norm: longest gradient.
        target_kl: an update ends early at 1.5 times this divergence; None: never.
        gae_lambda: trace decay of the advantage estimates.
        tau: time constant of the discount, mean solo latencies.
        hidden: width of the network's layers.
        strait_bonus: logit that Strait's choice begins with (agents.training.ppo.strait_bonus).
    """

    n_envs: int = 256
    n_steps: int = 128
    batch_size: int = 8192
    n_epochs: int = 2
    learning_rate: float = 3e-5
    final_rate: float = 0.1
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = 0.03
    gae_lambda: float = 0.9
    tau: float = 150.0
    hidden: int = 32
    strait_bonus: float = 4.5

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("n_envs", "n_steps", "batch_size", "n_epochs", "hidden"), 1)
        numbers = dict.fromkeys(("final_rate", "ent_coef", "vf_coef", "gae_lambda"), 0)
        above = ("learning_rate", "clip_range", "tau", "max_grad_norm", "target_kl", "strait_bonus")
        most = {"gae_lambda": 1, "n_envs": MOST_WORLDS, "hidden": 4096}
        check_settings(self, "ppo.", whole | numbers, dict.fromkeys(above, 0), most)
        if self.n_envs * self.n_steps < 2:
            raise InputError("ppo: n_envs * n_steps is 1; must be at least 2 decisions an update")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the comparison with the reference policy, on held-out workloads (agents.evaluation.paired).

    Attributes:
        loads: offered loads over measured capacity.
        workloads: number of workloads at each.
        duration_ms: length of each.
        confirm: workloads at each load of the last comparison, which no choice was made by; 0: none.
    """

    loads: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2)
    workloads: int = 32
    duration_ms: float = 4000.0
    confirm: int = 32

    def __post_init__(self) -> None:
        check_settings(
            self,
            "evaluation.",
            {"workloads": 2, "confirm": 0},
            {"loads": 0, "duration_ms": 0},
            {"loads": RANGES["load"][1]},
        )
        object.__setattr__(self, "loads", tuple(self.loads))
        if self.confirm == 1:
            raise InputError("evaluation.confirm: 1; must be 0 or at least 2")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs to know.

    Attributes:
        n_timesteps: decisions in all worlds, after the warm start.
        budget_s: wall time of the whole run, compilation included, s; None: no limit. The learning rate falls with
            whichever of both runs out first.
        seed: of worlds, weights and sampling.
        eval_freq: decisions between comparisons with the reference.
        save_freq: decisions between checkpoints, and whether there is one in each round of the look-ahead; 0: only
            where the run ends or is interrupted.
        keep: checkpoints kept, the newest.
        reference: policy to beat; rewards are relative to what it does with the same requests (agents.training.baseline).
        tuned_for: profile whose tuned parameters heuristics take; empty: that of the worlds.
        strait_tuned: whether the Strait that the network begins with takes them, too; else its parameters are the defaults.
        logdir: folder of runs.
        name: of the run's folder; empty: "ppo-N", the next that is free.
        threads: threads that step the worlds.
        torch_threads: threads that learn.
        progress: show a progress bar.
        env: the worlds.
        profiles: devices that the worlds are spread over, so that the policy learns for all; empty: that of ``env``. Times in
            ``env`` are then scaled by each device's mean solo latency, and all models of its profile are served.
        look_ahead: what the network learns before PPO.
        ppo: the algorithm.
        evaluation: the comparison with the reference.
    """

    n_timesteps: int = 10_000_000
    budget_s: float | None = None
    seed: int = 0
    eval_freq: int = 500_000
    save_freq: int = 500_000
    keep: int = 3
    reference: str = "strait"
    tuned_for: str = ""
    strait_tuned: bool = True
    logdir: str = "runs"
    name: str = ""
    threads: int = 2
    torch_threads: int = 2
    progress: bool = False
    env: EnvConfig = field(default_factory=EnvConfig)
    profiles: tuple[str, ...] = ()
    look_ahead: LookAheadConfig = field(default_factory=LookAheadConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        ones = dict.fromkeys(("eval_freq", "keep", "threads", "torch_threads"), 1)
        object.__setattr__(self, "profiles", tuple(self.profiles))
        check_settings(self, "", {"n_timesteps": 0, "save_freq": 0} | ones, {"budget_s": 0})
        if Path(self.name).name != self.name:
            raise InputError(f"name: {self.name!r}; expected the name of a folder, without a path (see logdir)")


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
    raise InputError(f"--config: no configuration {name!r}; expected one of {', '.join(known)}, or a YAML file")


Command = TypeVar("Command", bound=TrainConfig)


def load_config(name: str | Path = "default") -> TrainConfig:
    """Settings from a YAML file or a configuration that ships; see ``load_command``."""
    return load_command(TrainConfig, name)


def load_command(kind: type[Command], name: str | Path, flags: Sequence[str] = ()) -> Command:
    """Settings from a YAML file or a configuration that ships, with some replaced by flags ("--ppo.n_steps=32").

    Args:
        kind: TrainConfig, or a dataclass that has more fields.
        name: of the configuration, or a path.
        flags: words of a command line.

    Raises:
        InputError: no such configuration, or a field that is unknown or malformed.
    """
    path = config_path(str(name))
    try:
        config = parse_settings(kind, ["--config", str(path)])
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    return parse_settings(kind, ["--config", str(path), *flags]) if flags else config


def one_line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def to_yaml(config: TrainConfig) -> str:
    """The settings as YAML that ``load_config`` reads."""
    values = {f.name: asdict(config)[f.name] for f in fields(TrainConfig)}
    # By way of JSON, since YAML would mark tuples as such.
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False)
