"""One step in a process of its own, which benchmarks.gpu_day.runner starts."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.files import atomic_write_text, rounded

RESULT = "result.json"
DIGITS = 5


@dataclass(frozen=True)
class Context:
    """What a step is told.

    Attributes:
        device: cpu or cuda:N.
        models: to serve; none: see `benchmarks.gpu_day.networks.load_networks`.
        seconds: that it should take.
        day: folder of all steps; each has DAY/GROUP/STEP.
        folder: of this step, which exists.
        begun: time.monotonic() at the start of the process.
    """

    device: str
    models: tuple[str, ...]
    seconds: float
    day: Path
    folder: Path
    begun: float

    @property
    def left_s(self) -> float:
        """Seconds that are left of those planned."""
        return self.seconds - (time.monotonic() - self.begun)

    def of(self, group: str, step: str) -> Path:
        """The folder of another step, which may be missing."""
        return self.day / group / step

    def save(self, name: str, value: Any) -> None:
        """Write a JSON file into the folder, whole or not at all."""
        atomic_write_text(self.folder / name, json.dumps(rounded(value, DIGITS), indent=1) + "\n")


def function_of(work: str) -> Callable[[Context], dict[str, Any]]:
    """The function that "module:function" names."""
    module, _, name = work.partition(":")
    return getattr(importlib.import_module(module), name)


def _end_with_the_runner() -> None:
    """Wait for the end of the runner, which holds the other end of the standard input, and end with it."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Do the work that the command line names, and end the process."""
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"])
    context = Context(
        settings["device"],
        tuple(settings["models"]),
        settings["seconds"],
        Path(settings["day"]),
        folder,
        time.monotonic(),
    )
    faulthandler.enable()
    # A second before the limit, so that the log says where a step hung.
    faulthandler.dump_traceback_later(max(settings["limit_s"] - 1.0, 0.1))
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    status = 0
    try:
        context.save(RESULT, function_of(settings["work"])(context))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.stdout.flush()
    # Without the end of the interpreter, in which a device's driver may still fail.
    os._exit(status)
