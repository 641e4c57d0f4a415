"""What is measured with the time that is left: a server at twice its capacity, and the speed of training."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_day.step import Context
from serving.executors.device import usable_cores

ROUND_S = 2.0  # of a rollout with its update, twice


def server_overload(context: Context) -> dict[str, Any]:
    """See benchmarks.overload; its server takes the GPU where there is one.

    Raises:
        RuntimeError: a request had not exactly one answer.
    """
    from benchmarks.overload import OverloadBenchmark, measure

    found = measure(OverloadBenchmark(seconds=max(1.0, context.left_s / 3)))
    if not found["once"]:
        raise RuntimeError(f"a request had not exactly one answer: {found}")
    return found


def training_speed(context: Context) -> dict[str, Any]:
    """See benchmarks.train_speed; with two threads, as its figures for two cores are, and with all."""
    # Imported here: what only one of the two steps needs may be missing on a machine.
    from benchmarks.train_speed import TrainSpeedBenchmark, measure

    found = {}
    for threads in dict.fromkeys((2, usable_cores())):
        rounds = max(1, int(context.left_s / (4 * ROUND_S)))
        config = TrainSpeedBenchmark(rounds=rounds, threads=threads)
        found[f"threads_{threads}"] = measure(config)
        context.save("result.json", found)
    return found
