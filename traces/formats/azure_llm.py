"""Azure LLM inference traces 2023 and 2024: one line per request, with a date and token counts.

Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and AzureLLMInferenceDataset2024.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.formats.base import Rows, TraceFormat, columns_of
from traces.tables import read_csv

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path) -> Iterator[Rows]:
    """Times from TIMESTAMP."""
    for chunk in read_csv(path, COLUMNS):
        yield Rows(chunk.times_ms("TIMESTAMP"))


FORMAT = TraceFormat("azure_llm", lambda path, line: set(COLUMNS) <= columns_of(line), read)
