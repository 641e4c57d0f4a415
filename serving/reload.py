"""What changes in a server while it serves: models come and go, and policies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.scheduler import AdjustTables
from serving.executors.quiet import QuietThread
from serving.models.listing import Entry
from serving.models.served import ServedModel
from serving.models.tensors import split_bucket
from serving.observers.explain import require_learned
from serving.profiling.device_models import DeviceModels, known_buckets
from serving.residency import Evicted, LastUse, load_served
from traces.errors import InputError

log = logging.getLogger("serving")

AUTO = "auto"  # the policy that `serving.choosing` chooses
POLL_S = 0.005  # between two looks for a model without requests
NEXT = " (next)"  # behind the name of a model that is loaded, but not served yet; no name may hold it


def resolve_policy(config: ServeConfig) -> tuple[Policy, AdjustTables]:
    """The policy that the settings name, and the change that it makes to what the scheduler knows.

    Raises:
        InputError: there is no such policy, its file is malformed, or only the simulator can do what it does.
    """
    auto = config.policy == AUTO
    # All are told of before anything runs.
    named = {name: resolve(name, profile=SERVED) for name in (config.candidates if auto else (config.policy,))}
    for name, (policy, _) in named.items():
        if hasattr(getattr(policy, "params", None), "preemption"):
            flag = "--candidates" if auto else "--policy"
            raise InputError(f"{flag} {name}: it interrupts batches, which only the simulator can")
    policy, adjust_tables = resolve("strait", profile=SERVED) if auto else named[config.policy]
    if config.explain:
        require_learned(policy)
    return policy, adjust_tables


class Reloader:
    """Changes the models and the policy of a server that serves.

    Args:
        config: settings.
        models: on the device.
        engine: serves them; all methods are called on its loop.
        entries: where the models come from that are served, by name.
        evicted: those that did not fit the memory limit.

    Attributes:
        evicted: models that are out of memory, and served when a request asks for them.
        last_use: observes the engine.
    """

    def __init__(
        self,
        config: ServeConfig,
        models: DeviceModels,
        engine: Engine,
        entries: Mapping[str, Entry],
        evicted: Mapping[str, Evicted] | None = None,
    ) -> None:
        self._config = config
        self._models = models
        self._engine = engine
        self._quiet = QuietThread()
        self._entries = dict(entries)
        self._load_ms: dict[str, float] = {name: one.load_ms for name, one in (evicted or {}).items()}
        self.evicted = dict(evicted or {})
        self.last_use = LastUse()

    def close(self) -> None:
        """Load no more models."""
        self._quiet.close()

    async def add_model(self, entry: Entry) -> None:
        """Load a model, warm it up, measure it, and serve it, while others are served; until then one of its name is.

        Where the memory limit has no room, one of its name ends first, and then those are put out that were not used longest.

        Raises:
            InputError: it cannot be loaded, does not fit, or the profile lacks it; one of its name is then still served.
        """
        models, executor = self._models, self._models.executor
        name, begin_s = entry.spec.name, time.perf_counter()
        evicted = self.evicted.get(name)
        known = evicted.known if evicted is not None and evicted.entry == entry else None
        if known is None and self._config.profile != "auto":
            known = Profile.load(self._config.profile)
            if not known_buckets(known, name):
                known.select([name])
        buckets = [] if known is None else known_buckets(known, name)
        if evicted is not None:  # what it takes is known, so that there is room before it is loaded
            await self._make_room(evicted.models)
        # One that requests wait for is loaded as fast as can be, as long as its prediction says.
        loaded = await self._quiet.do(load_served, entry, buckets, evicted is None)
        names = [model.name for model in loaded]
        models.check_alone(loaded)
        if self._buckets_of(name) and not models.fits(loaded, beside=True):
            log.warning("model %s ends before it is loaded again: the memory limit has no room for both", name)
            await self.remove_model(name)
        await self._make_room(loaded)
        described = dict(models.described)
        try:
            await self._quiet.do(models.load, loaded, NEXT)
            for one in names if known is not None else ():
                await self._quiet.do(executor.warm_up, one + NEXT, models.batch_sizes, True)
            self._load_ms[name] = 1e3 * (time.perf_counter() - begin_s)
            profile = await self._quiet.do(models.know, names, known, NEXT)
            gone = set(self._buckets_of(name)) - set(names)
            for one in names:
                self._engine.put_model(profile.select([one]), one + NEXT)
        except Exception as error:
            for one in {one + NEXT for one in names} & set(executor.models):
                executor.unload(one)
            models.described.clear()
            models.described.update(described)
            raise InputError(str(error).replace(NEXT, "")) from error
        self._entries[name] = entry
        self.evicted.pop(name, None)
        for one in gone:
            await self._engine.remove_model(one)
            executor.unload(one)
        await self._quiet.do(executor.free_memory)
        log.info("model %s is served", name)

    async def _make_room(self, loaded: Sequence[ServedModel]) -> None:
        """Put models out, the one that was not used longest first, until another fits; waits for one without requests.

        Raises:
            InputError: it fits only alone, and one model must stay.
        """
        name, models = loaded[0].model, self._models
        while not models.fits(loaded, beside=True):
            others = [
                one for one in self.served_models() if one not in (name, f"{name}{NEXT}") and one in self._entries
            ]
            if not others or len(self.served_models()) < 2:
                models.check_memory(loaded, beside=True)
            waiting = {split_bucket(one.result.model)[0] for one in self._engine.ledger.inside.values()}
            idle = [one for one in others if one not in waiting]
            if not idle:
                await asyncio.sleep(POLL_S)
                continue
            await self._evict(self.last_use.oldest(idle))

    async def _evict(self, name: str) -> None:
        """Put a model out of memory; it is loaded again when a request asks for it."""
        names, engine = self._buckets_of(name), self._engine
        served = engine.served()
        known = engine.profile.select(names)
        self.evicted[name] = Evicted.of(
            self._entries[name], [served[one] for one in names], known, self._load_ms.get(name, 0.0)
        )
        del served
        log.info("model %s is put out of memory, where others are needed", name)
        await self.remove_model(name)

    def served_models(self) -> list[str]:
        """Names of the models that are served, as clients know them."""
        return list(dict.fromkeys(split_bucket(one)[0] for one in self._engine.models))

    def _buckets_of(self, name: str) -> list[str]:
        """The names under which a model is scheduled; none if it is not served."""
        return [one for one in self._engine.models if split_bucket(one)[0] == name]

    async def remove_model(self, name: str) -> None:
        """Serve a model no more; see `Engine.remove_model`."""
        scheduled = self._buckets_of(name) or [name]
        if len(scheduled) == len(self._engine.models):
            raise InputError(f"model {name!r} is the only one left; load another before it is unloaded")
        for one in scheduled:
            await self._engine.remove_model(one)
            self._models.executor.unload(one)
        await self._quiet.do(self._models.executor.free_memory)
        log.info("model %s is unloaded", name)

    async def install_policy(self, name: str) -> bool:
        """Let another policy decide; one that cannot be read is refused, and the present one stays."""
        return await self._install(replace(self._config, policy=name), "chosen")

    async def reload_policy(self) -> bool:
        """Read the policy again and let it decide; one that cannot be read is refused, and the present one stays."""
        if self._config.policy == AUTO:
            log.info("policy auto: a comparison every %g s chooses; nothing is reloaded", self._config.compare_s)
            return False
        return await self._install(self._config, "reloaded")

    async def _install(self, config: ServeConfig, how: str) -> bool:
        try:
            policy, adjust_tables = await asyncio.get_running_loop().run_in_executor(None, resolve_policy, config)
        except InputError as error:
            log.error("policy is not reloaded, %s stays in force: %s", self._engine.guard.name, error)
            return False
        await self._engine.reload_policy(policy, adjust_tables)
        log.info("policy %s was %s", policy.name, how)
        return True
