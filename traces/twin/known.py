"""The real traces that the project knows by name: their files beside it, and their sources."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.formats import is_trace_file, load_arrivals, split_format
from traces.recorded import Arrivals
from traces.twin.generator import parameters, twin, twin_names

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class KnownTrace:
    """A public trace: its file under shared/data and its source."""

    file: str
    citation: str


KNOWN: dict[str, KnownTrace] = {
    "azure_llm_2023": KnownTrace(
        "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz",
        "Azure LLM inference trace 2023, conversation service (one hour): github.com/Azure/AzurePublicDataset "
        "79092101, data/AzureLLMInferenceTrace_conv.csv, CC-BY-4.0; Patel et al., Splitwise, ISCA 2024",
    ),
    "mooncake": KnownTrace(
        "mooncake/conversation_trace.csv.gz",
        "Mooncake conversation trace (one hour): github.com/kvcache-ai/Mooncake 3b5a5941, "
        "FAST25-release/traces/conversation_trace.jsonl, Apache-2.0; Qin et al., Mooncake, FAST 2025",
    ),
}


def title_of(name: str) -> str:
    """What arrivals of a known trace are called: its name where its file is there, else that with "-twin"."""
    return name if name not in KNOWN or _find(name, None) is not None else f"{name}-twin"


def real_or_twin(
    name: str,
    duration_ms: float,
    rng: np.random.Generator,
    shared: Path | str | None = None,
    rate_rps: float | None = None,
    repeat: bool = False,
) -> Arrivals:
    """Arrivals of the real trace where its file is there, else of its fitted twin.

    A real trace is first rescaled to `rate_rps` (over its whole length, so that a window keeps its own share of the
    bursts), then a window of `duration_ms` is cut at a start drawn from `rng`. A twin is generated for the duration
    that becomes `duration_ms` after the same rescaling.

    Args:
        name: a known trace ("azure_llm_2023", "mooncake"), or the path of a trace file in any known format.
        duration_ms: length; a real trace that is shorter is returned whole.
        rng: source of randomness.
        shared: folder of the real traces, or one trace file to use for `name`; None is ../shared/data.
        rate_rps: rate that the whole trace is rescaled to; None keeps its own.
        repeat: whether a real trace that is shorter than the duration begins again at its end, rather than end there.

    Returns:
        Arrivals whose `name` says what they are: the trace's, or that with "-twin".

    Raises:
        InputError: an unknown name, a duration that is not positive, or a file that is given and cannot be read.
    """
    if not (np.isfinite(duration_ms) and duration_ms > 0):
        raise InputError(f"duration_ms: {duration_ms}; must be above 0")
    path = _find(name, shared)
    if path is None:
        stretch = 1.0 if rate_rps is None else rate_rps / parameters(name).rate_rps
        times = twin(name, duration_ms * stretch, rng) / stretch
        return Arrivals(np.minimum(times, np.nextafter(duration_ms, 0)), f"{name}-twin")
    known = KNOWN.get(name)
    title = name if known else split_format(path)[1].name.split(".")[0]
    whole = load_arrivals(path, name=title, seed=int(rng.integers(2**32)))
    if rate_rps is not None:
        whole = whole.rescaled(rate_rps)
    if repeat and whole.duration_ms <= duration_ms:
        copies = int(np.ceil(duration_ms / whole.duration_ms)) + 1
        times = np.concatenate([whole.arrival_ms + n * whole.duration_ms for n in range(copies)])
        whole = replace(whole, arrival_ms=times)
    if whole.duration_ms <= duration_ms:
        return whole
    start_ms = float(rng.random() * (whole.duration_ms - duration_ms))
    return whole.window(start_ms, start_ms + duration_ms)


def _find(name: str, shared: Path | str | None) -> Path | None:
    """The file of a trace, or None when only its twin is there."""
    folder = SHARED if shared is None else Path(shared)
    if folder.is_file():
        return folder
    if name in KNOWN:
        path = folder / KNOWN[name].file
        return path if path.is_file() else None
    if is_trace_file(name):
        return Path(name)
    if name in twin_names():
        return None
    known = ", ".join(sorted({*KNOWN, *twin_names()}))
    raise InputError(f"trace: {name!r} is no file and no known trace; known are {known}")
