"""One way to run a benchmark: settings from the command line, one JSON object as the last line printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.common.tables import pivot_table
from benchmarks.common.timing import machine
from traces.command import run_command
from traces.files import rounded

Settings = TypeVar("Settings")
DIGITS = 5  # significant digits of what is printed


def as_command(
    measure: Callable[[Settings], Mapping[str, Any]],
    settings: type[Settings],
    name: str,
    description: str | None,
    tabulate: Callable[[dict[str, Any]], str] | None = pivot_table,
    check: str | None = None,
) -> Callable[..., int]:
    """The main function of ``python -m benchmarks.NAME``; see ``traces.command.run_command``.

    Args:
        measure: takes the settings and returns figures by name, possibly nested; they are printed with the machine's name.
        settings: dataclass of the flags.
        name: of the module in benchmarks.
        description: shown by ``--help``.
        tabulate: makes the table that is printed before; None: the benchmark prints its own.
        check: a figure that must be true.

    Returns:
        A function of the words of the command line (None: those of this process) that returns the exit status: 1 where
        ``check`` is false.
    """

    def work(config: Settings) -> int:
        result = rounded({"machine": machine(), **measure(config)}, DIGITS)
        if tabulate is not None:
            print(tabulate(result))
        print(json.dumps(result))
        return int(check is not None and not result[check])

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(work, settings, argv, f"python -m benchmarks.{name}", description)

    return main
