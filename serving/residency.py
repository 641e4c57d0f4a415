"""Models over the memory limit: which are in memory, which are put out by least use, and what it takes to load one again."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from envs.profiles.profile import Profile
from serving.api.processes.steps import check_steps
from serving.engine.request import Observer, RequestResult
from serving.models.listing import Entry
from serving.models.load import load_buckets
from serving.models.served import Forward, ServedModel
from serving.models.tensors import split_bucket
from serving.profiling.device_models import DeviceModels, known_buckets

log = logging.getLogger("serving")

_model_of = cache(lambda scheduled: split_bucket(scheduled)[0])


@dataclass(frozen=True)
class Evicted:
    """A model that was put out of memory, and is served again once a request asks for it.

    Attributes:
        entry: where it comes from.
        models: the model, or its buckets, without what runs them.
        known: what was measured of them.
        load_ms: how long it takes to load it.
    """

    entry: Entry
    models: tuple[ServedModel, ...]
    known: Profile
    load_ms: float

    @staticmethod
    def of(entry: Entry, models: Sequence[ServedModel], known: Profile, load_ms: float) -> Evicted:
        """What is kept of a model."""
        return Evicted(entry, tuple(replace(one, module=None, build=_gone) for one in models), known, load_ms)

    @property
    def alone_ms(self) -> dict[str, float]:
        """Time that one item takes in each bucket, on an idle device."""
        known = self.known
        total = known.h2d_ms[:, 0] + known.solo_ms[:, 0] + known.d2h_ms[:, 0]
        return dict(zip(known.models, total.tolist()))


def _gone(device: str) -> Forward:
    raise RuntimeError("the model is not in memory")


class LastUse(Observer):
    """When each model last answered, to put the one out that was not asked for longest."""

    def __init__(self) -> None:
        self._ended_ms: dict[str, float] = {}

    def request_ended(self, result: RequestResult) -> None:
        """Note it."""
        self._ended_ms[result.model] = result.finish_ms

    def oldest(self, models: Sequence[str]) -> str:
        """The one that was used least lately."""
        last = dict.fromkeys(models, 0.0)
        for scheduled, ended_ms in self._ended_ms.items():
            name = _model_of(scheduled)
            if name in last:
                last[name] = max(last[name], ended_ms)
        return min(models, key=last.__getitem__)


class _Loaded(NamedTuple):
    models: tuple[ServedModel, ...]
    device_ms: float  # that putting it on the device took


def load_served(entry: Entry, known: Sequence[int] = (), quiet: bool = False) -> tuple[ServedModel, ...]:
    """Load a model, or its buckets, and try its code on the host; arguments and errors as of `load_buckets`."""
    return check_steps(load_buckets(entry.spec, known, quiet))


def in_turn(entries: Mapping[str, Entry], number: int, of: int) -> dict[str, Entry]:
    """The models in the order in which a replica of several loads them: those that are loaded last, and stay, differ."""
    names = list(entries)
    first = number * len(names) // of
    return {name: entries[name] for name in (names[(first + i) % len(names)] for i in range(len(names)))}


def load_all(
    entries: Mapping[str, Entry], models: DeviceModels, profile: Profile | None
) -> tuple[list[str], dict[str, Evicted]]:
    """Load every model; where the memory limit has no room, those go out again that were loaded first.

    Args:
        entries: the models, by name.
        models: loads them.
        profile: of them; None: those that go out are measured before.

    Returns:
        The names under which those are scheduled that stay, and those that went out.

    Raises:
        InputError: a model cannot be loaded, or does not fit alone, or could never come back beside another.
    """
    loaded: dict[str, _Loaded] = {}
    evicted: dict[str, Evicted] = {}
    for name, entry in entries.items():
        buckets = load_served(entry, _known(profile, name))
        models.check_alone(buckets)
        while loaded and not models.fits(buckets):
            oldest = next(iter(loaded))
            names = [model.name for model in loaded[oldest].models]
            known = models.know(names, profile)
            evicted[oldest] = Evicted.of(entries[oldest], loaded[oldest].models, known, loaded[oldest].device_ms)
            del loaded[oldest]
            for one in names:
                models.executor.unload(one)
            models.executor.free_memory()
            log.info("model %s is put out of memory: --memory_limit has no room for all at once", oldest)
        begin_s = time.perf_counter()
        models.load(buckets)
        loaded[name] = _Loaded(buckets, 1e3 * (time.perf_counter() - begin_s))
    every = {name: one.models for name, one in evicted.items()} | {name: one.models for name, one in loaded.items()}
    for name, out in evicted.items():
        models.check_beside(out.models, [one for other, one in every.items() if other != name])
    for name, out in evicted.items():  # not beside those that go out, which would still take memory
        evicted[name] = replace(out, load_ms=out.load_ms + _host_ms(out.entry, _known(profile, name)))
    return [model.name for one in loaded.values() for model in one.models], evicted


def _known(profile: Profile | None, name: str) -> Sequence[int]:
    return () if profile is None else known_buckets(profile, name)


def _host_ms(entry: Entry, known: Sequence[int]) -> float:
    """Time that reading a model takes once more: its first time had what it imports to load, which no later one has."""
    begin_s = time.perf_counter()
    load_served(entry, known, quiet=True)
    return 1e3 * (time.perf_counter() - begin_s)
