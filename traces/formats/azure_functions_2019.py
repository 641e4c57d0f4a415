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
    """Counts per minute of all functions (spread uniformly over the minute later), minute 1 from time 0."""
    for chunk in read_csv(path, lambda header: [KEYS[2], *filter(str.isdecimal, header)], CHUNK_ROWS):
        minutes = list(chunk.rows.columns[1:])
        if not minutes:
            raise InputError(f"{path}:1: no column of a minute; expected columns named 1 to 1440")
        counts = np.stack([chunk.floats(minute, 0.0) for minute in minutes], axis=1)
        for number, minute in enumerate(minutes):
            chunk.fail(counts[:, number] % 1 != 0, minute, "expected a whole number of invocations")
        starts = (np.array(minutes, dtype=np.float64) - 1.0) * MINUTE_MS
        yield Rows(starts, counts.sum(axis=0).astype(np.int64), MINUTE_MS)


FORMAT = TraceFormat("azure_functions_2019", lambda path, line: {*KEYS, "1"} <= columns_of(line), read)
