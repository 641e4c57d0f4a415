"""Command line of training, behind ``train.py``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agents.training.config import TrainConfig, load_command, load_config
from agents.training.from_log import Loop, close_loop
from traces.command import INTERRUPTED, exit_status, parse_settings
from traces.errors import InputError
from traces.settings import check_settings

if TYPE_CHECKING:
    from agents.training.trainer import TrainResult

USAGE = """Train the learned scheduling policy.

  python train.py --config quick             a few minutes on two cores
  python train.py --config default -n 50000000 --ppo.learning_rate 1e-4
  python train.py -i runs/ppo-1              go on where an interrupted run stopped
  python train.py --config quick --seeds 5   with five seeds, side by side; what they gain, and how far seeds differ
  python train.py --from-log LOG --running policy.safetensors --pid PID
                                             refit and fine-tune to what serve.py --record wrote; the file is replaced, and
                                             the server told, if the new policy is better (--adopt FILE: replace another)

short flags: -n (--n_timesteps), -i (--resume), -f (--logdir), --progress; dashes and underscores mean the same"""
SHORT = {
    "-n": "--n_timesteps", "-i": "--resume", "-f": "--logdir", "--log-folder": "--logdir", "--conf-file": "--config",
}  # fmt: skip


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Settings of a run, and what to do beside or in place of beginning one.

    Attributes:
        resume: run or checkpoint to go on from, with the settings in its folder.
        from_log: log of a server to refit and fine-tune to, in place of an ordinary run.
        running: with --from-log, the policy file that the server runs.
        adopt: with --from-log, the file to replace where the new policy is better; by default that of --running.
        pid: with --from-log, the server's process, which is told.
        seeds: trainings with as many seeds, from --seed on, side by side; each has a folder in that of the sweep.
        workers: with --seeds, trainings at a time; by default as many as there are cores for their threads.
        cluster: with --seeds, train on Ray in place of processes: local, auto or ray://HOST:PORT; needs strait-rl[ray].
    """

    resume: str | None = None
    from_log: str | None = None
    running: str | None = None
    adopt: str | None = None
    pid: int | None = None
    seeds: int = 1
    workers: int | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, "--", {"seeds": 1, "workers": 1}, {})
        for name in ("workers", "cluster"):
            if self.seeds == 1 and getattr(self, name) is not None:
                raise InputError(f"--{name} goes with --seeds")
        for name in ("resume", "from_log"):
            if self.seeds > 1 and getattr(self, name) is not None:
                raise InputError(f"--seeds begins runs; it does not go with --{name.replace('_', '-')}")
        for name in ("running", "adopt", "pid"):
            if self.from_log is None and getattr(self, name) is not None:
                raise InputError(f"--{name} goes with --from-log")

    @property
    def loop(self) -> Loop | None:
        """The round of the loop that the flags ask for; None: an ordinary run."""
        return None if self.from_log is None else Loop(self.from_log, self.running, self.adopt, self.pid)


def settings(args: Sequence[str]) -> TrainCommand:
    """What a command line asks for.

    Raises:
        InputError: a flag or the configuration is malformed.
    """
    words = [SHORT.get(word, word) for word in args]
    for i, word in enumerate(words[1:]):
        if words[i] == "--n_timesteps":
            words[i + 1] = whole(word)
    name, words = _taken(words, "--config")
    resume, _ = _taken(words, "--resume")
    log, _ = _taken([word.replace("--from_log", "--from-log") for word in words], "--from-log")
    if resume is not None and log is not None:
        raise InputError("--from-log does not go with --resume")
    if resume is None:
        return load_command(TrainCommand, name or ("default" if log is None else "live"), words)
    from agents.training.checkpoint import find_checkpoint
    from agents.training.run_folder import CONFIG

    if name is not None:
        raise InputError("--config and --resume: a run goes on with the settings in its folder; give one of both")
    run, _ = find_checkpoint(resume)
    if not (run / CONFIG).is_file():
        raise InputError(f"--resume: {run} lacks {CONFIG}; it is not the folder of a run")
    found, began = load_command(TrainCommand, run / CONFIG, words), load_config(run / CONFIG)
    for flag in ("seed", "name", "logdir"):
        if getattr(found, flag) != getattr(began, flag):
            raise InputError(f"--{flag}: a run that goes on keeps what it began with; leave it out, or begin a new run")
    return found


def _taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None where it is not given, and the words without it."""
    for i, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], [*words[:i], *words[i + 1 :]]
        if word == flag and i + 1 < len(words):
            return words[i + 1], [*words[:i], *words[i + 2 :]]
    return None, list(words)


def whole(text: str) -> str:
    """A number of decisions: "5e6" is 5000000."""
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError):
        raise InputError(f"-n: {text!r}; expected a number of decisions") from None


def run(command: TrainCommand, words: Sequence[str] = ()) -> int:
    """Do what the command line of these words asks for; returns the exit status."""
    if command.seeds > 1:
        return run_seeds(command, words)
    if command.loop is not None:
        print(json.dumps(close_loop(command, command.loop)))
        return 0
    from agents.training.trainer import train

    result = train(command, command.resume)
    print(said_of(result, command.reference))
    return INTERRUPTED if result.interrupted else 0


def said_of(result: TrainResult, reference: str) -> str:
    """What a run gave, in one line."""
    if result.interrupted:
        when = f"after {result.n_timesteps} decisions" if result.n_timesteps else "before the first update"
        return f"interrupted {when}; go on with: python train.py -i {result.run}"
    return (
        f"{result.n_timesteps} decisions in {result.seconds:.0f} s; violated weight minus {reference}'s: "
        f"{100 * result.difference:+.2f} +- {100 * result.error:.2f} percentage points; policy: {result.policy}"
    )


def run_seeds(command: TrainCommand, words: Sequence[str]) -> int:
    """Train with several seeds; returns the exit status."""
    from agents.training.seeds import Sweep, train_seeds

    sweep = Sweep(command.seeds, command.workers, command.cluster)
    found = train_seeds(replace(command, seeds=1, workers=None, cluster=None), sweep, words)
    for seed, result in sorted(found.runs.items()):
        print(f"seed {seed}: {said_of(result, command.reference)}")
    if found.waiting:
        print(f"not begun: seeds {', '.join(map(str, sorted(found.waiting)))}")
    gains = [100 * result.difference for result in found.runs.values() if not result.interrupted]
    if len(gains) > 1:
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        print(
            f"{len(gains)} seeds: {mean:+.2f} +- {error:.2f} percentage points, from {min(gains):+.2f} to {max(gains):+.2f}"
        )
    for error in found.failed.values():
        raise error
    return INTERRUPTED if len(gains) < command.seeds else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 after an interrupt."""
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(args):
        return exit_status(lambda: parse_settings(TrainCommand, ["--help"], "train.py", USAGE))
    return exit_status(lambda: run(settings(args), args))
