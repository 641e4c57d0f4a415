"""A trace format of your own: an access log with one "SECONDS MODEL" per line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.formats import FORMATS
from traces.formats.base import Rows, TraceFormat


def read(path: Path) -> Iterator[Rows]:
    """Times in ms."""
    times = []
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        try:
            times.append(1e3 * float(line.split()[0]))
        except (ValueError, IndexError):
            raise InputError(f"{path}:{number}: {line!r}; expected 'SECONDS MODEL'") from None
    yield Rows(np.array(times))


FORMAT = TraceFormat("access-log", lambda path, line: line == "# access log", read)
FORMATS[FORMAT.name] = FORMAT
