"""Description of the machine that measurements were made on (machine.json)."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from traces.errors import InputError

SCHEMA = "strait-measurements/1"
CPU_TURN_MS = 1.0  # length of the turns that batches on one core take; serving.executors.time_slices sees to it


@dataclass(frozen=True)
class DeviceInfo:
    """The device.

    Attributes:
        kind: cpu or cuda.
        name: as the system gives it.
        cores: a CPU's cores, of which a batch takes one, or a GPU's multiprocessors, of which a batch takes many.
        memory_bytes: of the device.
        peak_gflops: measured peak of matrix products, 1e9 FLOP/s.
        peak_gbps: measured memory copy bandwidth, 1e9 bytes/s.
        torch: version of PyTorch.
    """

    kind: str
    name: str
    cores: int
    memory_bytes: int
    peak_gflops: float
    peak_gbps: float
    torch: str


@dataclass(frozen=True)
class ModelInfo:
    """One model: its size, work and shapes; `_per_item` is per request."""

    name: str
    kind: str
    parameters: int
    weight_bytes: int
    flops_per_item: float
    activation_bytes_per_item: float
    input_bytes_per_item: int
    output_bytes_per_item: int
    input_shape: tuple[int, ...]
    input_dtype: str


@dataclass(frozen=True)
class MachineInfo:
    """Everything beside the batches.

    Attributes:
        created: date and time.
        command: that made the measurements.
        device: that the batches ran on.
        streams: most batches in flight.
        batch_sizes: ascending.
        models: that ran.
    """

    created: str
    command: str
    device: DeviceInfo
    streams: int
    batch_sizes: tuple[int, ...]
    models: tuple[ModelInfo, ...]

    @classmethod
    def from_json(cls, data: Any) -> MachineInfo:
        """Build the description from parsed JSON; InputError names the field that is missing or wrong."""
        found = data.get("schema") if isinstance(data, dict) else data
        if not isinstance(data, dict) or found != SCHEMA:
            raise InputError(f"schema is {found!r}; expected {SCHEMA!r}")
        data = {**data}
        data["device"] = _build(DeviceInfo, data.get("device"), "device")
        models = data.get("models")
        if not isinstance(models, list) or not models:
            raise InputError("models: expected a list of at least one model")
        data["models"] = tuple(_build(ModelInfo, model, f"models[{number}]") for number, model in enumerate(models))
        result = _build(cls, data, "")
        names = [model.name for model in result.models]
        if len(set(names)) != len(names):
            raise InputError(f"models: names repeat: {names}")
        if result.device.kind not in ("cpu", "cuda"):
            raise InputError(f"device.kind is {result.device.kind!r}; expected 'cpu' or 'cuda'")
        if result.streams < 1:
            raise InputError(f"streams is {result.streams}; must be at least 1")
        sizes = result.batch_sizes
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in zip(sizes, sizes[1:])):
            raise InputError(f"batch_sizes: {list(sizes)}; expected increasing sizes of at least 1")
        return result


Record = TypeVar("Record")


def _build(record: type[Record], data: Any, place: str) -> Record:
    """Fill a dataclass from a JSON object, each field checked; unknown fields are left for later versions."""
    if not isinstance(data, dict):
        raise InputError(f"{place or 'machine'}: {data!r}; expected an object")
    types = get_type_hints(record)
    values = {}
    for field in fields(record):  # type: ignore[arg-type]
        name = f"{place}.{field.name}" if place else field.name
        if field.name not in data:
            raise InputError(f"{name} is missing")
        values[field.name] = _value(data[field.name], types[field.name], name)
    return record(**values)


def _value(value: Any, kind: Any, name: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    fits, expected = {
        int: (number and isinstance(value, int), "an integer"),
        float: (number, "a finite number"),
        str: (isinstance(value, str), "a text"),
        tuple[int, ...]: (isinstance(value, list | tuple), "a list of integers"),
    }.get(kind, (True, ""))
    if not fits:
        raise InputError(f"{name} is {value!r}; expected {expected}")
    if kind == tuple[int, ...]:
        return tuple(_value(item, int, f"{name}[{place}]") for place, item in enumerate(value))
    return float(value) if kind is float else value


def package_version() -> str:
    """Version of the installed package; "0" when it runs from a folder without being installed."""
    try:
        return version("strait-rl")
    except PackageNotFoundError:
        return "0"


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"
