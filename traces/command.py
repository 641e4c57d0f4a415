"""How a command ends: its status, and one clear line on standard error where it did not succeed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError

from traces.errors import InputError


def exit_status(work: Callable[[], Any]) -> int:
    """Run a command, parsing of its flags included (with ``exit_on_error=False``).

    Returns:
        0; 2 after bad input, which is told in one line; 130 after Ctrl-C.
    """
    try:
        work()
    except (InputError, ArgumentError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
