"""Azure Functions 2019: for every function, how often it was invoked in each minute of a day.

Source: github.com/Azure/AzurePublicDataset, AzureFunctionsDataset2019.md, invocations_per_function_md.anon.d*.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import read_csv

KEYS = ("HashOwner", "HashApp", "HashFunction", "Trigger")
MINUTE_MS = 60_000.0
# Rows are 1440 numbers wide, so far fewer of them make a chunk than in the other formats.
CHUNK_ROWS = 2_000


def read(path: Path) -> Iterator[Rows]:
    """Counts per minute (spread uniformly over the minute later), minute 1 from time 0; sources are HashFunction."""
    for chunk in read_csv(path, _columns, CHUNK_ROWS):
        minutes = [name for name in chunk.rows.columns if name.isdigit()]
        if not minutes:
            raise InputError(f"{path}:1: no column of a minute; columns named 1 to 1440 are wanted")
        counts = np.stack([chunk.floats(minute, 0.0) for minute in minutes], axis=1)
        for number, minute in enumerate(minutes):
            chunk.fail(counts[:, number] % 1 != 0, minute, "a whole number of invocations is wanted")
        row, column = np.nonzero(counts)
        starts = (np.array([int(minute) for minute in minutes], dtype=np.float64) - 1.0) * MINUTE_MS
        names = chunk.texts("HashFunction")
        yield Rows(starts[column], source=names[row], count=counts[row, column].astype(np.int64), step_ms=MINUTE_MS)


def _columns(header: list[str]) -> list[str]:
    return ["HashFunction", *(name for name in header if name.isdigit())]


FORMAT = TraceFormat("azure_functions_2019", lambda path, line: {*KEYS, "1"} <= columns_of(line), read, from_start=True)
