"""Short turns for the threads that share a core: what makes their batches progress evenly.

Linux looks whether a thread's turn is over when the timer ticks, every 4 ms at 250 Hz, whatever slice was asked for
(serving.executors.cpu). A batch of 4 ms that joins another on a core then takes 4 ms or 8 ms, by chance. But the kernel also
chooses anew who runs whenever a thread wakes on the core. A `Beat` is such a thread: it wakes once in `CPU_TURN_MS` and sleeps
again, in compiled code that never takes Python's lock. More turns cost the batches that share a core some 4 % of their work.
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
def _beat(running, stop, turn_us, idle_us):
    """Sleep again and again until ``stop[0]`` is set; ``running`` holds a byte for each stream of the core."""
    while stop[0] == 0:
        busy = 0
        for k in range(running.shape[0]):
            busy += running[k]
        _usleep(turn_us if busy > 0 else idle_us)


class Beat:
    """Threads that keep turns short, one a core, until `stop`; none where that is of no use (not Linux, or no compiler).

    Args:
        cores: cores that streams are pinned to, in turns. streams: K.

    Attributes:
        running: (K,) uint8, set to 1 by a stream while it runs a batch.
    """

    def __init__(self, cores: list[int], streams: int) -> None:
        self.running = np.zeros(streams, np.uint8)
        self._stop = np.zeros(1, np.uint8)
        # A core with one stream has nobody to take turns with.
        shared = [i for i in range(len(cores)) if i + len(cores) < streams]
        if sys.platform != "linux" or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            shared = []
        self.threads = [
            threading.Thread(
                target=_keep, args=(cores[i], self.running[i :: len(cores)], self._stop), name=f"beat-{i}", daemon=True
            )
            for i in shared
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, within some milliseconds."""
        self._stop[0] = 1


def _keep(core: int, running: np.ndarray, stop: np.ndarray) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(threading.get_native_id(), {core})
    _beat(running, stop, np.uint32(1e3 * CPU_TURN_MS), np.uint32(1e3 * IDLE_MS))
