"""Trace formats: one file each, and one line each in `FORMATS`."""

from __future__ import annotations

from pathlib import Path

from traces.errors import InputError
from traces.formats import azure_functions_2019, azure_functions_2021, azure_llm, burstgpt, mooncake, own
from traces.formats.base import TraceFormat, assemble
from traces.recorded import Arrivals
from traces.tables import first_line

MODULES = (azure_llm, azure_functions_2019, azure_functions_2021, burstgpt, mooncake, own)
FORMATS: dict[str, TraceFormat] = {module.FORMAT.name: module.FORMAT for module in MODULES}


def load_arrivals(path: Path | str, format: str = "auto", name: str | None = None, seed: int = 0) -> Arrivals:
    """Read the arrivals of a trace file, plain or gzip (.gz).

    Args:
        path: the file.
        format: a name of `FORMATS`, or "auto" to recognise it by the first line.
        name: name of the result; None takes the file's.
        seed: seeds whatever the file leaves open: where in its minute or step an arrival falls.

    Raises:
        InputError: a missing file, an unknown format, or a malformed line (`file:line: what, and what was expected`).
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"format: {format!r}; expected auto or one of {', '.join(FORMATS)}")
    trace = detect(path) if format == "auto" else FORMATS[format]
    return assemble(trace, path, name or path.name.split(".")[0], seed)


def detect(path: Path) -> TraceFormat:
    """The format of a file, recognised by its name and first line; InputError when none matches."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    line = "" if path.suffix == ".parquet" else first_line(path)
    for trace in FORMATS.values():
        if trace.matches(path, line):
            return trace
    raise InputError(f"{path}:1: {line[:80]!r} is the header of no known format; known are {', '.join(FORMATS)}")
