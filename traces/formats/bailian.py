"""Bailian: one JSON object per line, a turn of a chat, with a timestamp in seconds from the start.

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat
from traces.formats.mooncake import has_fields, read_json_lines


def read(path: Path) -> Iterator[Rows]:
    """Times from the stamps."""
    yield read_json_lines(path, 1e3)


FORMAT = TraceFormat(
    "bailian", lambda path, line: has_fields(line, "chat_id", "timestamp"), read, usual_rps=(0.01, float("inf"))
)
