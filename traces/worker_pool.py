"""Where the parts of a sweep run: processes of this machine, or tasks on a Ray cluster; the results are the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from traces.ray_session import ray_session
from traces.signals import SIGNALS, handling_signals

Result = TypeVar("Result")

LOOK_S = 1.0  # how often a worker looks whether its parent is there
LAST_WORDS_S = 60.0  # that a worker whose parent has died is given, say for a checkpoint


class WorkerPool(Protocol):
    """Runs functions of modules elsewhere."""

    def submit(self, function: Callable[..., Result], /, *args: Any) -> Future[Result]:
        """Call a function with these arguments."""


@contextmanager
def worker_pool(workers: int | None, cluster: str | None, cores: int = 1) -> Iterator[WorkerPool]:
    """A pool that lasts as long as the block. A signal, or what the block raises, ends all parts at once.

    Args:
        workers: processes; all cores by default. On a cluster that is there already, it decides how many run.
        cluster: None for processes of this machine; else see `traces.ray_session.ray_session`.
        cores: of each part.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """
    processes = workers or os.cpu_count() or 1
    if cluster is None:
        before = active_children()
        with handling_signals(), ProcessPoolExecutor(processes, initializer=_obey_the_parent_only) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in active_children():
                    if process not in before:
                        process.terminate()
                raise
    else:
        with handling_signals(), ray_session(cluster, processes * cores) as ray:
            yield RayPool(ray, cores)


def _obey_the_parent_only() -> None:
    """Signals of a terminal go to all its processes; here they reach the parent, which ends its workers by SIGTERM."""
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent has died, which a SIGKILL leaves no time to arrange."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_WORDS_S)
    os._exit(1)


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
