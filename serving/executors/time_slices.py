"""Short time slices for the threads that share a core: what makes their batches progress evenly.

Linux checks whether a thread's time slice is over when the timer ticks, every 4 ms at 250 Hz, whatever slice was asked for
(serving.executors.cpu). A batch of 4 ms that joins another on a core then takes 4 ms or 8 ms, by chance. But the kernel also
chooses again which thread runs whenever one wakes on the core. A `SliceTimer` is made of such threads: they wake once in
`CPU_TURN_MS` and sleep again, in compiled code that never takes Python's lock. The switches cost batches that share a core
some 4 % of their work.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import numba
import numpy as np
from numba import types

from envs.scheduling.jit import njit
from traces.machine import CPU_TURN_MS

IDLE_MS = 5.0  # while no batch runs on the core

_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@njit
def _wake_up(running, stop, slice_us, idle_us):
    """Sleep again and again until ``stop[0]`` is set; ``running`` holds a byte for each stream of the core."""
    while stop[0] == 0:
        busy = 0
        for k in range(running.shape[0]):
            busy += running[k]
        _usleep(slice_us if busy > 0 else idle_us)


class SliceTimer:
    """Threads that keep time slices short, one per shared core; none where they are of no use (not Linux, no compiler).

    Args:
        cores: cores that streams are pinned to, counted around.
        streams: K.

    Attributes:
        running: (K,) uint8, set to 1 by a stream while it runs a batch.
        threads: of which each ends within some milliseconds after `stop`.
    """

    def __init__(self, cores: list[int], streams: int) -> None:
        self.running = np.zeros(streams, np.uint8)
        self._stop = np.zeros(1, np.uint8)
        shared = [i for i in range(len(cores)) if i + len(cores) < streams]
        if sys.platform != "linux" or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            shared = []
        self.threads = [
            threading.Thread(
                target=_run, args=(cores[i], self.running[i :: len(cores)], self._stop), name=f"slices-{i}", daemon=True
            )
            for i in shared
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stop[0] = 1


def _run(core: int, running: np.ndarray, stop: np.ndarray) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(threading.get_native_id(), {core})
    _wake_up(running, stop, np.uint32(1e3 * CPU_TURN_MS), np.uint32(1e3 * IDLE_MS))
