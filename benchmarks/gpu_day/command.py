"""Minutes on a GPU, turned into evidence: ``python -m benchmarks.gpu_day --seconds 480 --out DIR``.

In order of worth: what the device is; the tests that need a GPU; copies and launches; a profile of networks at their real size,
alone and side by side; policies live on them; the same simulated with that profile; a server at twice its capacity; training
speed. Every step scales to the time that is left, and one that fails or hangs costs only itself. At most eight files come
back; ``--adopt DIR`` makes them the project's. ``--device cpu --seconds 120`` rehearses all of it.

Packages that the machine lacks are installed from the wheels in .wheels, without network; ``make gpu-wheels`` gathers them.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_day.adopt import adopt
from benchmarks.gpu_day.runner import DONE, Day, Terms
from benchmarks.gpu_day.steps import STEPS
from traces.command import run_command
from traces.errors import InputError
from traces.settings import check_settings


@dataclass
class GpuDay:
    """What to run.

    Attributes:
        out: folder of what comes back.
        seconds: for everything.
        device: auto, cpu, cuda or cuda:N.
        patience: how many times as long as planned the steps may take, where others use the machine, too.
        models: to serve, as serve.py takes them; none: networks at their real size on a GPU, three built-in models on a CPU.
        steps: to run, by name, in their usual order; none: all.
        work: folder of everything that the steps write; by default one that is removed in the end.
        adopt: in place of a run, take over what one left in this folder.
        into: root of the project that takes it over.
        trials: of the tuning of each policy on the adopted profile; 0: neither tune nor evaluate.

    Raises:
        InputError: a setting is out of range, or there is no such step.
    """

    out: str = "runs/gpu-day"
    seconds: float = 480.0
    device: str = "auto"
    patience: float = 1.0
    models: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    work: str | None = None
    adopt: str | None = None
    into: str = "."
    trials: int = 480

    def __post_init__(self) -> None:
        check_settings(self, "--", above={"seconds": 0, "patience": 0})
        known = [step.name for step in STEPS]
        for name in self.steps:
            if name not in known:
                raise InputError(f"--steps: no step {name!r}; there are {', '.join(known)}")


def run(config: GpuDay) -> int:
    """Run the day, or adopt one. Returns 1 if a step did not do what it should."""
    if config.adopt is not None:
        adopt(Path(config.adopt), Path(config.into).resolve(), config.trials)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    work = Path(config.work) if config.work else Path(tempfile.mkdtemp(prefix="gpu-day-"))
    steps = [step for step in STEPS if not config.steps or step.name in config.steps]
    try:
        device = resolved(config.device)
        terms = Terms(device, config.seconds, config.patience, tuple(config.models))
        day = Day(steps, Path(config.out), work.resolve(), terms)
        day.run()
    finally:
        if not config.work:
            shutil.rmtree(work, ignore_errors=True)
    return int(any(record.state != DONE for record in day.records))


def resolved(device: str) -> str:
    """The device as executors name it.

    Raises:
        InputError: no such device here.
    """
    # Not before it is needed: torch takes seconds to import.
    from serving.executors.device import resolve_device

    return resolve_device(device)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run, GpuDay, argv, "python -m benchmarks.gpu_day", __doc__)
