"""A user's code runs in the server's process; whatever it raises is an error of its model, and of nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from traces.errors import InputError


def error_line(error: BaseException) -> str:
    """What an error says, in one line."""
    # TorchScript puts its own traceback above the error of a run, and below that of a compilation.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    line = lines[0 if "<--- HERE" in lines[-1] else -1]
    kind = f"{type(error).__name__}: "
    return kind + line.removeprefix(kind)


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
