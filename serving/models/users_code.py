"""A user's code, in the server's process or its own: whatever it raises is an error of its model, and of nothing else."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from traces.errors import InputError

MOST_WORDS = 500  # characters


def error_line(error: BaseException) -> str:
    """What an error says, in one line."""
    # TorchScript puts its own traceback above the error of a run, and below that of a compilation.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[0 if "<--- HERE" in lines[-1] else -1]
    kind = f"{type(error).__name__}: "
    return kind + line.removeprefix(kind)


def first_line(error: BaseException) -> str:
    """What an error says: its first line, which fits into a header and a log."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:
        lines = []
    return (lines or ["no message"])[0][:MOST_WORDS].encode(errors="replace").decode()


def imported(name: str, folder: str) -> Any:
    """In a process of its own: what ``module:attribute`` names, looked for in a folder first."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, folder)
    with users_code(f"cannot import {name!r}"):
        return getattr(importlib.import_module(module), attribute)


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Run a user's code.

    Args:
        where: the model and what it does, as the error begins.

    Raises:
        InputError: for whatever the code raises. SystemExit is among it (a file that reads its own flags ends the program
            where that fails), but not the Ctrl-C of somebody at a terminal.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        hint = "; it must not end the program" if isinstance(error, SystemExit) else ""
        raise InputError(f"{where}: {error_line(error)}{hint}") from error
