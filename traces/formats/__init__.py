"""Trace formats: one file each, and one line each in `FORMATS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from traces.errors import InputError
from traces.formats import azure_functions_2019, azure_functions_2021, azure_llm, bailian, burstgpt, mooncake, own
from traces.formats.base import TraceFormat, assemble
from traces.recorded import Arrivals
from traces.tables import first_line, header_of, read_table
from traces.workload import COLUMNS, Workload

MODULES = (azure_llm, azure_functions_2019, azure_functions_2021, burstgpt, bailian, mooncake, own)
FORMATS: dict[str, TraceFormat] = {module.FORMAT.name: module.FORMAT for module in MODULES}


def load_arrivals(path: Path | str, format: str = "auto", name: str | None = None, seed: int = 0) -> Arrivals:
    """Read the arrivals of a trace file, plain or gzip (.gz); the first stamp is time 0.

    Args:
        path: the file, with the name of its format in front ("bailian:chats.jsonl") where that is to be said.
        format: a name of `FORMATS`, or "auto" to recognise it by the first line.
        name: name of the result; None takes the file's.
        seed: seeds whatever the file leaves open: where in its minute or step an arrival falls.

    Raises:
        InputError: a missing file, an unknown format, a malformed line (`file:line: what, and what was expected`), or stamps
            whose unit is not clear.
    """
    format, path = split_format(path, format)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"format: {format!r}; expected auto or one of {', '.join(FORMATS)}")
    trace = detect(path) if format == "auto" else FORMATS[format]
    found = assemble(trace, path, name or path.name.split(".")[0], seed)
    least, most = trace.usual_rps
    if format == "auto" and ".csv" not in path.suffixes and found.duration_ms and not least <= found.rate_rps <= most:
        raise InputError(
            f"{path}: nothing tells the unit of timestamp, and {found.rate_rps:.3g} requests/s would be unusual for "
            f"{trace.name}; write mooncake:{path} if it is ms, bailian:{path} if it is s"
        )
    return found


def load_trace(name: Path | str, models: Sequence[str] | None = None, seed: int = 0) -> Workload | Arrivals:
    """What a user's file holds: requests where it has all columns of a workload, else arrivals alone.

    Args:
        name: the file, see `load_arrivals`. models: see `Workload.load`. seed: see `load_arrivals`.

    Raises:
        InputError: as both of them.
    """
    return Workload.load(name, models) if is_workload(name) else load_arrivals(name, seed=seed)


def is_trace_file(name: Path | str) -> bool:
    """Whether a name is that of a file, with a format in front of it or not."""
    return split_format(name)[1].is_file()


def is_workload(name: Path | str) -> bool:
    """Whether a file has all columns of a workload, so that nothing need be laid over its arrivals."""
    path = Path(name)
    if not path.is_file():
        return False
    if path.suffix == ".parquet":
        return set(COLUMNS) <= set(read_table(path).columns)
    return ".csv" in path.suffixes and set(COLUMNS) <= set(header_of(first_line(path)))


def split_format(path: Path | str, format: str = "auto") -> tuple[str, Path]:
    """The format that stands in front of a file's name ("bailian:chats.jsonl"), else the one given, and the file."""
    name, _, rest = str(path).partition(":")
    return (name, Path(rest)) if name in FORMATS and rest else (format, Path(path))


def detect(path: Path) -> TraceFormat:
    """The format of a file, recognised by its name and first line; InputError when none matches."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    line = "" if path.suffix == ".parquet" else first_line(path)
    for trace in FORMATS.values():
        if trace.matches(path, line):
            return trace
    raise InputError(f"{path}:1: {line[:80]!r} is the header of no known format; known are {', '.join(FORMATS)}")
