"""Where the parts of a sweep run: processes of this machine, or tasks on a Ray cluster; the results are the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from traces.ray_session import ray_session

Result = TypeVar("Result")


class WorkerPool(Protocol):
    """Runs functions of modules elsewhere."""

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """Call a function with these arguments."""


@contextmanager
def worker_pool(workers: int | None, cluster: str | None, cores: int = 1, alone: bool = False) -> Iterator[WorkerPool]:
    """A pool that lasts as long as the block.

    Args:
        workers: processes; all cores by default. On a cluster that is there already, it decides how many run.
        cluster: None for processes of this machine; else see `traces.ray_session.ray_session`.
        cores: of each part.
        alone: whether processes of this machine hear no signals of its terminal, and SIGINT only in parts that handle it.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """
    processes = workers or os.cpu_count() or 1
    if cluster is None:
        with ProcessPoolExecutor(processes, initializer=_hear_no_signals if alone else None) as pool:
            yield pool
    else:
        with ray_session(cluster, processes * cores) as ray:
            yield RayPool(ray, cores)


def _hear_no_signals() -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def results(waiting: Sequence[Future[Result]], unit: str, title: str, progress: bool) -> list[Result]:
    """What the parts of a sweep return, in their order; a failure is raised as soon as a part fails.

    Args:
        waiting: the parts, as `WorkerPool.submit` returned them.
        unit: what the bar counts.
        title: in front of the bar.
        progress: whether there is one.
    """
    for ended in tqdm(as_completed(waiting), total=len(waiting), unit=unit, desc=title, disable=not progress):
        ended.result()
    return [future.result() for future in waiting]


class RayPool:
    """Runs each call as a task with cores of its own.

    Args:
        ray: the package, connected.
        cores: of each.
    """

    def __init__(self, ray: Any, cores: int) -> None:
        self._call = ray.remote(_call).options(num_cpus=cores)

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """Call a function with these arguments."""
        result: Future[Result] = Future()
        self._call.remote(function, *args).future().add_done_callback(lambda ended: _pass_on(ended, result))
        return result


def _call(function: Callable[..., Result], *args: Any) -> Result:
    return function(*args)


def _pass_on(ended: Future[Any], result: Future[Any]) -> None:
    error = ended.exception()
    if error is None:
        result.set_result(ended.result())
    else:
        result.set_exception(getattr(error, "cause", None) or error)  # what the function raised, without Ray's envelope
