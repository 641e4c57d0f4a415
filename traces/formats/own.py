"""Our own files: CSV or Parquet with arrival_ms; `Workload.load` reads the rest of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import Chunk, read_csv

COLUMN = "arrival_ms"


def read(path: Path) -> Iterator[Rows]:
    """Times from arrival_ms."""
    for chunk in [Chunk.of_parquet(path, [COLUMN])] if path.suffix == ".parquet" else read_csv(path, [COLUMN]):
        yield Rows(chunk.arrivals_ms(COLUMN))


FORMAT = TraceFormat("own", lambda path, line: path.suffix == ".parquet" or COLUMN in columns_of(line), read)
