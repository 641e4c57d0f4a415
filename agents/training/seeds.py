"""The same training with several seeds, side by side: in processes of this machine, or as tasks on a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing import active_children
from typing import Any, NamedTuple

from tqdm import tqdm

from agents.training.config import TrainConfig
from agents.training.run_folder import WHERE, make_run_folder, without
from agents.training.trainer import TrainResult, train
from traces.signals import handling_signals
from traces.worker_pool import worker_pool

OWN = ("--seed", "--seeds", "--workers", "--cluster", *WHERE)  # flags that are said anew for each


class Sweep(NamedTuple):
    """Which seeds, and where.

    Attributes:
        seeds: how many, from the settings' on.
        workers: trainings at a time; None: as many as this machine has cores for.
        cluster: None for processes of this machine; else see `traces.ray_session.ray_session`.
    """

    seeds: int
    workers: int | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """What the trainings gave.

    Attributes:
        runs: by seed, of those that ended.
        failed: by seed, why others did not.
        waiting: seeds of which there is nothing, since the sweep was interrupted.
    """

    runs: dict[int, TrainResult]
    failed: dict[int, Exception]
    waiting: list[int]


def train_seeds(config: TrainConfig, sweep: Sweep, words: Sequence[str] = ()) -> SweepResult:
    """Train with each seed, in folders ``seed-N`` of one that is made as that of a run is; the results are those of lone runs.

    A signal is passed on to those under way, which write a checkpoint and end; further ones are not begun. One that raises
    costs the others nothing. On a Ray cluster the folder must be on storage that its machines share, and a signal ends all at
    once; they go on from their last checkpoints.

    Args:
        config: settings; its seed is the first.
        sweep: which seeds, and where.
        words: of the command line that asks for this; each run notes what it would be on its own.

    Raises:
        InputError: the folder cannot be made, or Ray is not there.
        KeyboardInterrupt: a signal came, and trainings ran on a Ray cluster.
    """
    cores = max(config.threads, config.torch_threads)
    at_once = sweep.workers or max((os.cpu_count() or 1) // cores, 1)
    left = list(range(config.seed, config.seed + sweep.seeds))
    result = SweepResult({}, {}, left)
    running: dict[Future[TrainResult], int] = {}
    stopped = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        for process in active_children():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGINT)

    handling = handling_signals(stop) if sweep.cluster is None else nullcontext()
    with worker_pool(at_once, sweep.cluster, cores) as pool, handling:
        folder = make_run_folder(config)
        if sweep.cluster is not None:
            folder = folder.resolve()  # its workers run in folders of their own
        # A cluster that is there already decides itself how many run.
        places = sweep.seeds if sweep.cluster not in (None, "local") else at_once
        with tqdm(total=sweep.seeds, unit="run", desc=str(folder), disable=not sys.stderr.isatty()) as bar:
            while running or (left and not stopped):
                while left and len(running) < places and not stopped:
                    seed = left.pop(0)
                    own = replace(config, seed=seed, logdir=str(folder), name=f"seed-{seed}", progress=False)
                    running[pool.submit(train_as, own, _words(own, words))] = seed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    seed = running.pop(future)
                    try:
                        result.runs[seed] = future.result()
                    except KeyboardInterrupt:  # so early that there is nothing to go on from
                        stopped.append(signal.SIGINT)
                        left.append(seed)
                    except Exception as error:
                        result.failed[seed] = error
                        bar.write(f"seed {seed} failed: {error}", file=sys.stderr)
                    bar.update()
        with suppress(OSError):
            folder.rmdir()  # where no run has left anything
    return result


def _words(config: TrainConfig, words: Sequence[str]) -> list[str]:
    """The command line of one run."""
    return [*without(words, OWN), "--seed", str(config.seed), "--logdir", config.logdir, "--name", config.name]


def train_as(config: TrainConfig, words: Sequence[str]) -> TrainResult:
    """Train in a process of its own, which takes itself for one that was started with these words."""
    sys.argv = ["train.py", *words]
    return train(config)
