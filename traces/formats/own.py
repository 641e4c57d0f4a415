"""Our own files: CSV or Parquet with arrival_ms and, if it is there, model; `Workload.load` reads the rest of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import InputError
from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import Chunk, read_csv


def read(path: Path) -> Iterator[Rows]:
    """Times from arrival_ms; sources are model where there is that column."""
    for chunk in _parquet(path) if path.suffix == ".parquet" else read_csv(path, _columns):
        source = chunk.texts("model") if "model" in chunk.rows else None
        yield Rows(chunk.floats("arrival_ms", 0.0), source=source)


def _columns(header: list[str]) -> list[str]:
    return ["arrival_ms", *(["model"] if "model" in header else [])]


def _parquet(path: Path) -> Iterator[Chunk]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from None
    if "arrival_ms" not in file.schema_arrow.names:
        raise InputError(f"{path}: column 'arrival_ms' is missing; it has {', '.join(file.schema_arrow.names)}")
    row = 0
    for batch in file.iter_batches(columns=_columns(file.schema_arrow.names)):
        yield Chunk(path, batch.to_pandas(), np.arange(row, row + batch.num_rows))
        row += batch.num_rows


def _matches(path: Path, line: str) -> bool:
    return path.suffix == ".parquet" or "arrival_ms" in columns_of(line)


FORMAT = TraceFormat("own", _matches, read, from_start=True)
