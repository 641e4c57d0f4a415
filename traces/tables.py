"""CSV tables from users, read in chunks, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from traces.errors import InputError

CHUNK_ROWS = 250_000
DAMAGED = (UnicodeDecodeError, EOFError, OSError, zlib.error)  # what reading a text, or gzip of one, may raise


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
        except DAMAGED:
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
    """Some rows of a file, as text where it is CSV, with the number of each row in the file: in CSV the header is row 0."""

    path: Path
    rows: pd.DataFrame
    numbers: np.ndarray

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
        return cls(path, pd.concat([part.rows for part in parts]), np.concatenate([part.numbers for part in parts]))

    def fail(self, bad: np.ndarray, column: str, expected: str) -> None:
        """Raise InputError for the first row where `bad` (boolean, one per row) is true; do nothing if none is."""
        if bad.any():
            row = int(np.argmax(bad))
            value = self.rows[column].iloc[row]
            number = int(self.numbers[row])
            line = number if self.path.suffix == ".parquet" else line_of(self.path, number)
            raise InputError(f"{self.path}:{line}: {column} is {value!r}; {expected}")

    def floats(self, column: str, minimum: float = -np.inf) -> np.ndarray:
        """A column as float64; InputError names the first value that is no finite number of at least `minimum`."""
        rows = self.rows[column]
        if rows.dtype.kind in "bM":
            self.fail(np.ones(len(rows), bool), column, "expected a number")
        values = pd.to_numeric(rows, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        self.fail(~np.isfinite(values), column, "expected a number")
        self.fail(values < minimum, column, f"must be at least {minimum:g}")
        return values

    def milliseconds(self, column: str, minimum: float = -np.inf) -> np.ndarray:
        """A column of numbers in ms, or of durations as Parquet has them, as float64 ms; InputError as ``floats``."""
        rows = self.rows[column]
        if rows.dtype.kind != "m":
            return self.floats(column, minimum)
        self.fail(rows.isna().to_numpy(), column, "expected a duration")
        values = rows.to_numpy(dtype="timedelta64[ns]").astype(np.int64) / 1e6
        self.fail(values < minimum, column, f"must be at least {minimum:g} ms")
        return values

    def arrivals_ms(self, column: str) -> np.ndarray:
        """A column of arrivals as float64 ms: numbers in ms and durations of at least 0, or dates as Parquet has them."""
        return self.times_ms(column) if self.rows[column].dtype.kind == "M" else self.milliseconds(column, 0.0)

    def times_ms(self, column: str) -> np.ndarray:
        """A column of dates with time, as float64 ms since 1970 (zones are converted to UTC)."""
        stamps = pd.to_datetime(self.rows[column], errors="coerce", utc=True, format="ISO8601")
        self.fail(stamps.isna().to_numpy(), column, "expected a date and time like 2023-11-16 18:15:46.6805900")
        return stamps.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e6


def header_of(line: str) -> list[str]:
    """The columns of a header line, quoted or not."""
    return [name.strip() for name in next(csv.reader([line], skipinitialspace=True), [])]


def line_of(path: Path, number: int) -> int:
    """The line of a CSV file in which a row begins, which may come after fields with line breaks; the header is row 0."""
    with open_text(path) as file:
        reader = csv.reader(file)
        line = 1
        for _ in range(number):
            next(reader, None)
            line = reader.line_num + 1
    return line


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
    header = header_of(first_line(path))
    picked = list(columns(header) if callable(columns) else columns)
    missing = [name for name in picked if name not in header]
    if missing:
        raise InputError(f"{path}:1: column {missing[0]!r} is missing; the header has {', '.join(header[:12])}")
    if twice := [name for name in picked if header.count(name) > 1]:
        raise InputError(f"{path}:1: column {twice[0]!r} is named twice")
    # One column more than the header has, which a sound line leaves empty, shows a line that is too long.
    number = 1
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
                numbers = np.arange(number, number + len(frame))
                number += len(frame)
                yield _checked(path, frame, numbers, header, picked)
    except pd.errors.EmptyDataError:
        return
    except pd.errors.ParserError as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if found:
            line = line_of(path, int(found[2]) - 1)
            raise InputError(f"{path}:{line}: more fields than the {len(header)} of the header") from None
        raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    except DAMAGED as error:
        raise InputError(f"{path}: after row {number - 1}: damaged or not text: {error}") from None


def _checked(path: Path, frame: pd.DataFrame, numbers: np.ndarray, header: list[str], picked: list[str]) -> Chunk:
    """Drop blank lines, refuse short ones, and name the columns."""
    absent = frame.isna().to_numpy() | (frame == "").to_numpy()
    filled = ~absent.all(axis=1)
    width = len(header)
    # A column without a name may be empty, and so may one that nobody reads.
    last = max(place for place, name in enumerate(header) if name)
    needed = max(header.index(name) for name in picked)
    for bad, what in (
        (~absent[:, -1], "more fields than"),
        (absent[:, last] & absent[:, needed] & filled, "a last field is missing: fewer than"),
    ):
        if bad.any():
            line = line_of(path, int(numbers[int(np.argmax(bad))]))
            raise InputError(f"{path}:{line}: {what} the {width} of the header")
    rows = frame[filled][[header.index(name) for name in picked]]
    rows.columns = pd.Index(picked)
    return Chunk(path, rows, numbers[filled])
