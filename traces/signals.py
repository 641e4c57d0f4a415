"""Signals that end a command, and one way to handle all of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, the end of a job (Slurm, Kubernetes), a terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handling_signals(handler: Any = signal.default_int_handler) -> Iterator[None]:
    """One handler for all of them, by default that of Ctrl-C. What is ignored stays so (nohup), but SIGINT (``train.py &``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
