"""The folder of a training run: its settings, how it was started, its TensorBoard."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from agents.training.checkpoint import checkpoints
from agents.training.config import TrainConfig, to_yaml
from traces.errors import InputError
from traces.files import atomic_write_text, make_numbered, naming

CONFIG, INFO, POLICY, LAST = "config.yaml", "run.json", "policy.safetensors", "last.safetensors"
WHERE = (
    "-f",
    "--log-folder",
    "--log_folder",
    "--logdir",
    "--name",
)  # flags that say where a run is written, and change nothing in it
PACKAGES = ("strait-rl", "numpy", "numba", "torch", "gymnasium", "stable-baselines3", "sb3-contrib")


def make_run_folder(config: TrainConfig) -> Path:
    """Make the folder of a new run.

    Raises:
        InputError: a run of the name that the settings ask for is there already, or the folder cannot be made.
    """
    root = Path(config.logdir)
    run = root / (config.name or "ppo-N")
    try:
        if not config.name:
            return make_numbered(root, "ppo-", 1)
        run.mkdir(parents=True)
        return run
    except FileExistsError:
        way = f"resume it with --resume {run}" if checkpoints(run) else "remove it, as it holds no checkpoint"
        raise InputError(f"name: {run} is there already; {way}, or give another name") from None
    except OSError as error:
        raise InputError(f"logdir: {run} cannot be made ({error.strerror})") from None


def git_commit() -> str:
    """Commit of the sources, with "-dirty" after it where they were changed since; "" where they are not under git."""
    here = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def command_line(leave_out: Sequence[str] = ()) -> str:
    """The command that this process was started with, without the path of the script and the flags to leave out."""
    return shlex.join(["python", Path(sys.argv[0]).name, *without(sys.argv[1:], leave_out)])


def without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command line without some flags and their values."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag)
    return parser.parse_known_args(words)[1]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def note_run(run: Path, config: TrainConfig, commit: str) -> None:
    """Write the resolved settings, the commit and how the run was started; a resumed run adds its command."""
    path = run / INFO
    try:
        commands = json.loads(path.read_text())["commands"]
    except (OSError, ValueError, KeyError, TypeError):
        commands = []
    info = {
        "commands": [*commands, command_line()],
        "seed": config.seed,
        "git_commit": commit,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    atomic_write_text(run / CONFIG, to_yaml(config))
    atomic_write_text(path, json.dumps(info, indent=1) + "\n")


class _TensorBoard(TensorBoardOutputFormat):
    """sb3's output; points at or after ``purge_step`` that an interrupted run left are hidden."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder = folder
        self.writer = SummaryWriter(folder, purge_step=purge_step)
        self._is_closed = False

    def write(self, *args: Any, **kwargs: Any) -> None:
        """Write a point; its file is named where the disk is full."""
        with naming(self.folder):
            super().write(*args, **kwargs)


def make_logger(run: Path, config: TrainConfig, layout: dict[str, Any], steps: int) -> Logger:
    """A logger to TensorBoard files in ``run``; notes settings and the layout of the first screen.

    Args:
        run: folder. config: settings. layout: custom scalars. steps: decisions so far, 0 for a new run.
    """
    output = _TensorBoard(str(run / "tensorboard"), steps + 1 if steps else None)
    output.writer.add_custom_scalars(layout)
    logger = Logger(str(run), [output])
    if steps == 0:
        output.writer.add_text("config", f"```yaml\n{to_yaml(config)}```")
        output.writer.add_text("command", f"```\n{command_line()}\n```")
        flat = {f"{group}.{k}": v for group in ("ppo", "look_ahead") for k, v in vars(getattr(config, group)).items()}
        hparams = {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat.items()} | {
            "seed": config.seed
        }
        logger.record("hparams", HParam(hparams, {"evaluation/best_difference": 0.0, "evaluation/difference/all": 0.0}))
    return logger
