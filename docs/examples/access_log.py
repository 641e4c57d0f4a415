"""A trace format of your own: an access log with one "SECONDS MODEL" a line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.formats import FORMATS
from traces.formats.base import Rows, TraceFormat


def read(path: Path) -> Iterator[Rows]:
    """Times in ms, and the model as the source of each arrival."""
    times, models = [], []
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        seconds, _, model = line.partition(" ")
        try:
            times.append(1e3 * float(seconds))
        except ValueError:
            raise InputError(f"{path}:{number}: {line!r}; 'SECONDS MODEL' is wanted") from None
        models.append(model)
    yield Rows(np.array(times), source=np.array(models))


FORMAT = TraceFormat("access-log", lambda path, line: line == "# access log", read, from_start=True)
FORMATS[FORMAT.name] = FORMAT
