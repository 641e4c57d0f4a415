"""Steps of benchmarks.gpu_day that fail in every way that a step can, some of them on the fake CUDA device."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import runner, steps
from benchmarks.gpu_day.runner import Day, Terms
from benchmarks.gpu_day.step import Context
from benchmarks.gpu_day.steps import Step

KEPT = "before.json"  # what each step saves before it fails
FAULT = "STRAIT_TEST_FAULT"
AFTER_COPIES = 40  # of the fake device


def fine(context: Context) -> dict[str, Any]:
    context.save(KEPT, os.getpid())
    return {"answer": 42}


def raises(context: Context) -> dict[str, Any]:
    fine(context)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def hangs(context: Context) -> dict[str, Any]:
    fine(context)
    time.sleep(3600.0)
    return {}


def segfaults(context: Context) -> dict[str, Any]:
    fine(context)
    ctypes.string_at(0)
    return {}


def exhausts_memory(context: Context) -> dict[str, Any]:
    fine(context)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return {"bytes": len(bytearray(1 << 40))}


def fills_the_disk(context: Context) -> dict[str, Any]:
    fine(context)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    context.save("after.json", 1)
    return {}


def is_killed(context: Context) -> dict[str, Any]:
    fine(context)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


FAULTS = (raises, hangs, segfaults, exhausts_memory, fills_the_disk, is_killed)


def on_fake_device(context: Context) -> dict[str, Any]:
    """The step itself, on the CUDA executor with a fake device that has the fault which the environment names, if any."""
    import fake_cuda
    import torch

    from benchmarks.gpu_day import profile
    from serving.executors import cuda, factory
    from serving.executors.device import probe_device

    class Device(fake_cuda.FakeCuda):
        copies = 0

        def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
            self.copies += 1
            if self.copies > AFTER_COPIES and FAULT in os.environ:
                globals()[os.environ[FAULT]](context)
            super().copy(target, source)

    def executor(*args: Any, **kwargs: Any) -> cuda.CudaExecutor:
        return cuda.CudaExecutor(*args, api=Device(), **kwargs)  # type: ignore[arg-type]

    factory.resolve_device = lambda device: device
    factory.CudaExecutor = executor  # type: ignore[assignment,misc]
    cuda.probe_device = lambda device: probe_device("cpu")  # type: ignore[assignment]
    profile.SIZES["cuda"] = (1, 2)
    step = next(step for step in steps.STEPS if step.name == context.folder.name)
    from benchmarks.gpu_day.step import function_of

    return function_of(step.work)(context)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> None:
    """Run the steps that the command line describes."""
    told = json.loads(sys.argv[1])
    steps.GRACE_S = told.get("grace_s", 5.0)
    if told.get("full"):
        runner.atomic_write_text = full  # type: ignore[assignment]
        runner.atomic_path = full  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = [Step(*step) for step in told["steps"]]
    terms = Terms(told["device"], told["seconds"], told["patience"], ("lstm", "dlrm"))
    Day(made, Path(told["out"]), Path(told["work"]), terms).run()
