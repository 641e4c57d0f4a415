"""How a run ends early: by a signal, on a full disk, or by a fault. What is whole stays, and a word says how to go on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.training.checkpoint import checkpoints
from agents.training.run_folder import POLICY


@contextmanager
def leaving_no_rest(run: Path) -> Iterator[None]:
    """Where a run ends early, its folder stays if there is something to go on from, and the message says how."""

    def unless_told(args: threading.ExceptHookArgs) -> None:
        # The thread that writes for TensorBoard hands its error to this one, too.
        if not isinstance(args.exc_value, OSError):
            told(args)

    told, threading.excepthook = threading.excepthook, unless_told
    try:
        yield
    except BaseException as error:
        resumable = bool(checkpoints(run))
        if not resumable and not (run / POLICY).is_file():
            shutil.rmtree(run, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        hint = f"; go on with: python train.py -i {run}" if resumable else ""
        raise OSError(error.errno, (error.strerror or str(error)) + hint, error.filename) from None
    finally:
        threading.excepthook = told
