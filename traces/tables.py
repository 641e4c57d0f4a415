"""CSV tables from users, read in chunks, with errors that name file and line."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from traces.errors import InputError

CHUNK_ROWS = 250_000


def open_text(path: Path) -> IO[str]:
    """Open a text file, or a gzip file whose name ends in .gz; InputError when it cannot."""
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        return open(path, encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def first_line(path: Path) -> str:
    """The first line of a text file without its line end; InputError when the file is empty or not text."""
    with open_text(path) as file:
        try:
            line = file.readline(1_000_000)
        except (UnicodeDecodeError, OSError, EOFError):
            raise InputError(f"{path}:1: not a text file (nor gzip of one ending in .gz)") from None
    if not line.strip():
        raise InputError(f"{path}:1: empty; expected a header line or a JSON object")
    return line.rstrip("\r\n")


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A whole table, Parquet or CSV by its name, which must have some columns.

    Raises:
        InputError: no such file, not a table, or a column is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    kind, read = ("a Parquet", pd.read_parquet) if path.suffix == ".parquet" else ("a CSV", pd.read_csv)
    try:
        frame = read(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not {kind} file: {' '.join(str(error).split())}") from None
    for column in columns:
        if column not in frame:
            raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(map(str, frame.columns))}")
    return frame


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, as text where it is CSV, with the line of the file that each row came from."""

    path: Path
    rows: pd.DataFrame
    lines: np.ndarray

    @classmethod
    def of_parquet(cls, path: Path, columns: Sequence[str]) -> Chunk:
        """All rows of a Parquet file; InputError as ``read_table``."""
        frame = read_table(path, columns)
        return cls(path, frame, np.arange(len(frame)))

    @classmethod
    def joined(cls, path: Path, columns: Sequence[str]) -> Chunk:
        """All rows of a CSV file; InputError as ``read_csv``."""
        empty = cls(path, pd.DataFrame(columns=list(columns), dtype=str), np.empty(0, np.int64))
        parts = list(read_csv(path, columns)) or [empty]
        return cls(path, pd.concat([part.rows for part in parts]), np.concatenate([part.lines for part in parts]))

    def fail(self, bad: np.ndarray, column: str, expected: str) -> None:
        """Raise InputError for the first row where `bad` (boolean, one per row) is true; do nothing if none is."""
        if bad.any():
            row = int(np.argmax(bad))
            value = self.rows[column].iloc[row]
            raise InputError(f"{self.path}:{self.lines[row]}: {column} is {value!r}; {expected}")

    def floats(self, column: str, minimum: float = -np.inf) -> np.ndarray:
        """A column as float64; InputError names the first value that is no finite number of at least `minimum`."""
        values = pd.to_numeric(self.rows[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        self.fail(~np.isfinite(values), column, "expected a number")
        self.fail(values < minimum, column, f"must be at least {minimum:g}")
        return values

    def times_ms(self, column: str) -> np.ndarray:
        """A column of dates with time, as float64 ms since 1970 (zones are converted to UTC)."""
        stamps = pd.to_datetime(self.rows[column], errors="coerce", utc=True, format="ISO8601")
        self.fail(stamps.isna().to_numpy(), column, "expected a date and time like 2023-11-16 18:15:46.6805900")
        return stamps.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e6


def read_csv(
    path: Path, columns: Sequence[str] | Callable[[list[str]], Sequence[str]], chunk_rows: int = CHUNK_ROWS
) -> Iterator[Chunk]:
    """Read the named columns of a CSV file (header in line 1, .gz allowed) chunk by chunk, as text.

    Args:
        path: the file.
        columns: the columns to read, or a function that picks them from the header.
        chunk_rows: rows per chunk, which bounds the memory used.

    Yields:
        Chunks, blank lines left out.

    Raises:
        InputError: a missing file or column, a line with too many or too few fields, or bytes that are not text.
    """
    header = [name.strip() for name in first_line(path).split(",")]
    picked = list(columns(header) if callable(columns) else columns)
    missing = [name for name in picked if name not in header]
    if missing:
        raise InputError(f"{path}:1: column {missing[0]!r} is missing; the header has {', '.join(header[:12])}")
    # One column more than the header has, which a sound line leaves empty, shows a line that is too long.
    line = 2
    try:
        with open_text(path) as file:
            reader = pd.read_csv(
                file,
                header=None,
                skiprows=1,
                names=list(range(len(header) + 1)),
                dtype=str,
                na_filter=True,
                keep_default_na=False,
                na_values=[],
                skip_blank_lines=False,
                skipinitialspace=True,
                index_col=False,
                chunksize=chunk_rows,
            )
            for frame in reader:
                lines = np.arange(line, line + len(frame))
                line += len(frame)
                yield _checked(path, frame, lines, header, picked)
    except pd.errors.EmptyDataError:
        return
    except pd.errors.ParserError as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if found:
            raise InputError(f"{path}:{found[2]}: more fields than the {len(header)} of the header") from None
        raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: after line {line - 1}: damaged or not text: {error}") from None


def _checked(path: Path, frame: pd.DataFrame, lines: np.ndarray, header: list[str], picked: list[str]) -> Chunk:
    """Drop blank lines, refuse short ones, and name the columns."""
    absent = frame.isna().to_numpy() | (frame == "").to_numpy()
    filled = ~absent.all(axis=1)
    width = len(header)
    for bad, what in (
        (~absent[:, -1], "more fields than"),
        (absent[:, -2] & filled, "a last field is missing: fewer than"),
    ):
        if bad.any():
            line = lines[int(np.argmax(bad))]
            raise InputError(f"{path}:{line}: {what} the {width} of the header")
    rows = frame[filled][[header.index(name) for name in picked]]
    rows.columns = pd.Index(picked)
    return Chunk(path, rows, lines[filled])
