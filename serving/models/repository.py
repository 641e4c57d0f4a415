"""Which of the models that may be served are loaded, and whether they fit into the memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from serving.models.listing import Entry, read_entries
from serving.models.served import ServedModel
from serving.models.tensors import VERSION_MARK
from traces.errors import InputError


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

    Attributes:
        evicted: models that are out of memory, and loaded when they are asked for (`serving.residency.Evicted`).
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
        self.evicted: Mapping[str, Any] = {}

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
            state, reason = ("READY", "") if name in loaded or name in self.evicted else ("UNAVAILABLE", "unloaded")
            if name not in loaded:  # a load that has just ended may still be noted as one under way
                state, reason = self._state.get(name, (state, reason))
            entry = self._entries.get(name, self._served.get(name))
            version = entry.spec.version if entry else "1"
            public = name.partition(VERSION_MARK)[0]
            rows.append({"name": public, "version": version, "state": state, "reason": reason})
        return rows

    def _key(self, entries: Mapping[str, Entry], name: str, version: str) -> str:
        """The name of a version of a model; without a version, that which is served under the model's name alone."""
        own = entries.get(name)
        return name if not version or (own and own.spec.version == version) else f"{name}{VERSION_MARK}{version}"

    async def load(self, name: str, version: str = "") -> None:
        """Load a model, or load it again.

        Args:
            name: of the model.
            version: of it, beside others; "" for the newest, or the chosen one, in place of what has the name.

        Raises:
            KeyError: no such model.
            InputError: it cannot be loaded, does not fit the memory limit, or the listing is malformed.
        """
        async with self._lock:
            entries = read_entries(self._sources)
            name = self._key(entries, name, version)
            entry = entries.get(name)
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

    async def bring_back(self, name: str) -> None:
        """Load a model that was put out of memory, if it still is; errors as of `load`, but for KeyError."""
        async with self._lock:
            evicted = self.evicted.get(name)
            if evicted is not None:
                await self._load(evicted.entry)

    async def unload(self, name: str, version: str = "") -> None:
        """End a model: what is queued is dropped, what is in flight ends.

        Raises:
            KeyError: it is not loaded.
            InputError: it is the only one.
        """
        async with self._lock:
            name = self._key(self._served, name, version)
            if name in self.evicted and name not in self._loaded():
                self.evicted.pop(name)  # type: ignore[attr-defined]
                return
            if name not in self._loaded():
                raise KeyError(name)
            self._state.pop(name, None)
            await self._unload(name)
