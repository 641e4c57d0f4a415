"""The models that a server may serve: where they come from, and which of them are loaded.

A list of models is a YAML file (a list of entries), or a folder with one such file, ``models.yaml``, or with one
``NAME.yaml`` per model. An entry has the fields of ``ModelSpec``, and the defaults of requests that name none:

    - name: classifier
      source: classifier.pt          # beside this file, or builtin:NAME, hf:FOLDER or module:factory
      input_shape: [3, 224, 224]     # of a model with one input; or:
      inputs: {ids: {shape: [-1], datatype: INT64}, mask: [-1]}
      max_size: 512                  # of what is -1
      priority: high
      timeout_ms: 50
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from serving.models.builtin.registry import BUILTIN
from serving.models.load import builtin_spec, spec_of
from serving.models.served import ModelSpec, ServedModel
from serving.models.tensor_fields import is_buckets, is_integer, read_tensors
from serving.models.tensors import NAMES
from traces.errors import InputError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


_TEXT = ("text", lambda value: isinstance(value, str) and value != "")
# Each field of an entry: what it must be, in words and as a test.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": _TEXT,
    "source": _TEXT,
    "kind": _TEXT,
    "input_shape": (
        "a list of sides, each an integer of at least 1",
        lambda value: isinstance(value, list) and all(is_integer(side, 1, 2**31) for side in value),
    ),
    "input_dtype": (f"one of {', '.join(NAMES)}", lambda value: isinstance(value, str) and value in NAMES),
    "buckets": ("a list of ascending sizes, each an integer of at least 1", is_buckets),
    "max_size": ("an integer of at least 1", lambda value: is_integer(value, 1, 2**31)),
    "inputs": ("", lambda value: True),  # see read_tensors
    "outputs": ("", lambda value: True),
    "input_high": ("an integer of at least 1", lambda value: is_integer(value, 1, 2**63)),
    "seed": ("an integer of at least 0", lambda value: is_integer(value, 0, 2**63)),
    "compiled": ("true or false", lambda value: isinstance(value, bool)),
    "priority": ("'high' or 'low'", lambda value: value in ("high", "low")),
    "timeout_ms": (
        "a number above 0",
        lambda value: type(value) in (int, float) and 0 < value < 1e12,
    ),
}


@dataclass(frozen=True)
class Entry:
    """One model that may be served.

    Attributes:
        spec: where it comes from.
        priority: of requests that name none: 0 (high) or 1 (low); None leaves it to the API.
        timeout_ms: relative deadline of requests that name none; None leaves it to the API.
    """

    spec: ModelSpec
    priority: int | None = None
    timeout_ms: float | None = None


def read_entries(sources: Sequence[str]) -> dict[str, Entry]:
    """The models that ``--models`` names, in order.

    Args:
        sources: built-in names and NAME=SOURCE; or paths of folders and YAML files.

    Raises:
        InputError: not such a source, a malformed file, a name that repeats, or a path that leaves its folder.
    """
    found: dict[str, Entry] = {}
    for source in sources:
        is_path = "=" not in source and source not in BUILTIN
        entries = _read_path(Path(source)) if is_path and _like_path(source) else [Entry(spec_of(source))]
        for entry in entries:
            name = entry.spec.name
            if not NAME.fullmatch(name):
                raise InputError(f"{source}: model name {name!r}; it must be letters, digits, '_', '-' and '.'")
            if name in found:
                raise InputError(f"{source}: model {name!r} is named twice")
            found[name] = entry
    if not found:
        raise InputError(f"--models: {' '.join(sources)} names no model")
    return found


def _like_path(source: str) -> bool:
    return "/" in source or source.endswith((".yaml", ".yml")) or Path(source).exists()


def _read_path(path: Path) -> list[Entry]:
    if not path.exists():
        raise InputError(f"{path}: no such folder or file of models")
    if not path.is_dir():
        return _read_file(path)
    listing = path / "models.yaml"
    files = [listing] if listing.is_file() else sorted(path.glob("*.yaml"))
    if not files:
        raise InputError(f"{path}: holds no models.yaml and no NAME.yaml")
    return [entry for file in files for entry in _read_file(file)]


def _read_file(path: Path) -> list[Entry]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if isinstance(data, dict) and isinstance(data.get("models"), list):
        data = data["models"]
    if isinstance(data, dict):
        data = [{"name": path.stem} | data]
    if not isinstance(data, list) or not data:
        raise InputError(f"{path}: it must hold a list of models, each with name and source")
    return [_entry(item, f"{path}: models[{number}]", path.parent) for number, item in enumerate(data)]


def _entry(item: Any, where: str, folder: Path) -> Entry:
    if isinstance(item, str):
        return Entry(builtin_spec(item))
    if not isinstance(item, dict):
        raise InputError(f"{where}: {item!r}; expected a mapping with name and source")
    values = dict(item)
    if isinstance(values.get("name"), str):
        where += f" ({values['name']})"
    for key in ("name", "source"):
        values.setdefault(key, None)
    for key, value in values.items():
        if key not in _FIELDS:
            raise InputError(f"{where}: unknown field {key!r}; known are {', '.join(sorted(_FIELDS))}")
        rule, holds = _FIELDS[key]
        if not holds(value):
            raise InputError(f"{where}: {key} is {value!r}; it must be {rule}")
    priority, timeout = values.pop("priority", None), values.pop("timeout_ms", None)
    for key in {"input_shape", "buckets"} & set(values):
        values[key] = tuple(values[key])
    for key in {"inputs", "outputs"} & set(values):
        values[key] = read_tensors(values[key], f"{where}: {key}")
    if "inputs" in values and "input_shape" in values:
        raise InputError(f"{where}: input_shape is for a model with one input, {'input'!r}; give inputs or input_shape")
    spec = ModelSpec(**values, folder=str(folder.resolve()))
    scheme = "hf:" if spec.source.startswith("hf:") else ""
    if scheme or spec.source.endswith((".pt", ".pt2", ".onnx")):
        path = _inside(folder, spec.source.removeprefix(scheme), where)
        spec = replace(spec, source=f"{scheme}{path}")
    return Entry(
        spec, None if priority is None else int(priority == "low"), None if timeout is None else float(timeout)
    )


def _inside(folder: Path, source: str, where: str) -> Path:
    """The path of a file of the repository; a link that leads out of it is refused, too."""
    root = folder.resolve()
    path = (root / source).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{where}: source {source!r} lies outside of {folder}; move the file into the folder")
    return path


def memory_of(models: Iterable[ServedModel], largest_batch: int) -> int:
    """Bytes that models need: their weights, which buckets share, and inputs, activations and outputs of a largest batch."""
    weights, batches = {}, 0.0
    for model in models:
        weights[id(model.module)] = model.weight_bytes
        per_item = model.input_bytes_per_item + model.activation_bytes_per_item + model.output_bytes_per_item
        batches += largest_batch * per_item
    return int(sum(weights.values()) + batches)


def check_memory(
    loaded: Sequence[ServedModel], new: Sequence[ServedModel], largest_batch: int, limit: int | None
) -> None:
    """Refuse a model, or its buckets, that does not fit.

    Raises:
        InputError: with the model, what it needs and what is left.
    """
    if limit is None:
        return
    need, used = memory_of(new, largest_batch), memory_of(loaded, largest_batch)
    if used + need > limit:
        raise InputError(
            f"model {new[0].model!r} needs {need / 2**20:.1f} MiB, and {max(limit - used, 0) / 2**20:.1f} MiB are left "
            f"of the memory limit of {limit / 2**20:.1f} MiB; unload a model or raise --memory_limit"
        )


class ModelRepository:
    """Loads and unloads models of a running server; what the API knows of models.

    Args:
        sources: as in ``read_entries``; folders and files are read again at each load and index.
        loaded: names of the models that are served now.
        load: makes a model be served, in place of one of its name.
        unload: ends that.
    """

    def __init__(
        self,
        sources: Sequence[str],
        loaded: Callable[[], Sequence[str]],
        load: Callable[[Entry], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
    ) -> None:
        self._sources = list(sources)
        self._loaded = loaded
        self._load = load
        self._unload = unload
        self._entries = read_entries(sources)
        self._served = dict(self._entries)  # as they were when they were loaded
        self._state: dict[str, tuple[str, str]] = {}
        self._lock = asyncio.Lock()

    def entries(self) -> dict[str, Entry]:
        """All models that may be served; what the sources say now, or said last if they are broken now."""
        with contextlib.suppress(InputError):
            self._entries = read_entries(self._sources)
        return self._entries

    def defaults(self, name: str) -> tuple[int | None, float | None]:
        """Priority and relative deadline (ms) of requests of a model that name none; None where it does not say."""
        entry = self._served.get(name)
        return (entry.priority, entry.timeout_ms) if entry else (None, None)

    def index(self) -> list[dict[str, str]]:
        """Every model with its name, version, state (READY, LOADING, UNAVAILABLE) and reason."""
        loaded = set(self._loaded())
        names = [*self.entries(), *sorted(loaded - set(self._entries))]
        rows = []
        for name in names:
            state, reason = ("READY", "") if name in loaded else ("UNAVAILABLE", "unloaded")
            state, reason = self._state.get(name, (state, reason))
            rows.append({"name": name, "version": "1", "state": state, "reason": reason})
        return rows

    async def load(self, name: str) -> None:
        """Load a model, or load it again.

        Raises:
            KeyError: no such model.
            InputError: it cannot be loaded, does not fit the memory limit, or the listing is malformed.
        """
        async with self._lock:
            entry = read_entries(self._sources).get(name)
            if entry is None:
                raise KeyError(name)
            if name not in self._loaded():
                self._state[name] = ("LOADING", "")
            before, self._served[name] = self._served.get(name, entry), entry
            try:
                await self._load(entry)
            except Exception as error:  # a model's own code runs here
                self._served[name] = before
                if name not in self._loaded():  # else the one that is served stays
                    self._state[name] = ("UNAVAILABLE", str(error))
                raise
            self._state.pop(name, None)
            self._entries[name] = entry

    async def unload(self, name: str) -> None:
        """End a model: what is queued is dropped, what is in flight ends.

        Raises:
            KeyError: it is not loaded.
            InputError: it is the only one.
        """
        async with self._lock:
            if name not in self._loaded():
                raise KeyError(name)
            self._state.pop(name, None)
            await self._unload(name)
