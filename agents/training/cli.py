"""Command line of training, behind ``train.py``."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from agents.training.config import TrainConfig, load_config, make_parser
from agents.training.from_log import Loop, close_loop
from traces.errors import InputError

USAGE = """Train the learned scheduling policy.

  python train.py --config quick             a few minutes on two cores
  python train.py --config default -n 50000000 --ppo.learning_rate 1e-4
  python train.py -i runs/ppo-1              go on where an interrupted run stopped
  python train.py --from-log LOG --running policy.safetensors --pid PID
                                             refit and fine-tune to what serve.py --record wrote; the file is replaced, and
                                             the server told, if the new policy is better (--adopt FILE: replace another)

short flags: -n (--n_timesteps), -i (--resume), -f (--logdir), --progress; dashes and underscores mean the same"""


def plain_parser() -> ArgumentParser:
    """Flags that are not settings, and the short names of some that are."""
    parser = ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "--conf-file", default=None)
    parser.add_argument("-i", "--resume", default=None)
    parser.add_argument("-n", default=None)
    parser.add_argument("-f", "--log-folder", dest="folder", default=None)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--from-log", "--from_log", default=None)
    parser.add_argument("--running", default=None)
    parser.add_argument("--adopt", default=None)
    parser.add_argument("--pid", type=int, default=None)
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def settings_flags(rest: Sequence[str]) -> list[str]:
    """Flags of settings with underscores, however they were typed: "--eval-freq" is "--eval_freq"."""
    flags = []
    for flag in rest:
        name, equals, value = flag.partition("=")
        flags.append(
            (name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name) + equals + value
        )
    return flags


def whole(text: str) -> str:
    """A number of decisions: "5e6" is 5000000."""
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError):
        raise InputError(f"-n: {text!r}; expected a number of decisions") from None


def settings(args: list[str]) -> tuple[TrainConfig, str | None]:
    """Settings, and the run to resume if any.

    Raises:
        InputError: a flag or the configuration is malformed.
    """
    known, rest = plain_parser().parse_known_args(args)
    flags = settings_flags(rest)
    if known.n is not None:
        flags.append(f"--n_timesteps={whole(known.n)}")
    if known.folder is not None:
        flags.append(f"--logdir={known.folder}")
    if known.progress:
        flags.append("--progress=true")
    if known.resume is None:
        return load_config(known.config or "default", flags), None
    from agents.training.checkpoint import find_checkpoint
    from agents.training.run_folder import CONFIG

    if known.config is not None:
        raise InputError("--config and --resume: a run goes on with the settings in its folder; give one of both")
    run, _ = find_checkpoint(known.resume)
    if not (run / CONFIG).is_file():
        raise InputError(f"--resume: {run} lacks {CONFIG}; it is not the folder of a run")
    return load_config(run / CONFIG, flags), known.resume


def loop_of(args: list[str]) -> Loop | None:
    """The round of the loop that the flags ask for; None: an ordinary run.

    Raises:
        InputError: flags that do not go together.
    """
    known, _ = plain_parser().parse_known_args(args)
    if known.from_log is None:
        for name in ("running", "adopt", "pid"):
            if getattr(known, name) is not None:
                raise InputError(f"--{name} goes with --from-log")
        return None
    if known.resume is not None:
        raise InputError("--from-log does not go with --resume")
    return Loop(known.from_log, known.running, known.adopt, known.pid)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 after an interrupt."""
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(args):
        make_parser(prog="train.py", description=USAGE).print_help()
        return 0
    try:
        loop = loop_of(args)
        config, resume = settings(args if loop is None else ["--config", "live", *args])
        if loop is not None:
            print(json.dumps(close_loop(config, loop)))
            return 0
        from agents.training.trainer import train

        result = train(config, resume)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was kept since the last checkpoint", file=sys.stderr)
        return 130
    run = Path(result.run)
    if result.interrupted:
        print(f"interrupted after {result.n_timesteps} decisions; go on with: python train.py -i {run}")
        return 130
    print(
        f"{result.n_timesteps} decisions in {result.seconds:.0f} s; violated weight minus {config.reference}'s: "
        f"{100 * result.difference:+.2f} +- {100 * result.error:.2f} percentage points; policy: {result.policy}"
    )
    return 0
