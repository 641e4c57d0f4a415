"""What changes in a server while it serves: models come and go, and policies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.scheduler import AdjustTables
from serving.executors.quiet import QuietThread
from serving.models.listing import Entry
from serving.models.load import load_buckets
from serving.models.served import ServedModel
from serving.models.tensors import split_bucket
from serving.observers.explain import require_learned
from serving.profiling.device_models import DeviceModels, known_buckets
from traces.errors import InputError

log = logging.getLogger("serving")

NEXT = " (next)"  # behind the name of a model that is loaded, but not served yet; no name may hold it


def resolve_policy(config: ServeConfig) -> tuple[Policy, AdjustTables]:
    """The policy that the settings name, and the change that it makes to what the scheduler knows.

    Raises:
        InputError: there is no such policy, or its file is malformed.
    """
    policy, adjust_tables = resolve(config.policy, profile=SERVED)
    if config.explain:
        require_learned(policy)
    return policy, adjust_tables


class Reloader:
    """Changes the models and the policy of a server that serves.

    Args:
        config: settings.
        models: on the device.
        engine: serves them; all methods are called on its loop.
    """

    def __init__(self, config: ServeConfig, models: DeviceModels, engine: Engine) -> None:
        self._config = config
        self._models = models
        self._engine = engine
        self._quiet = QuietThread()

    async def add_model(self, entry: Entry) -> None:
        """Load a model, warm it up, measure it, and serve it, while others are served; until then one of its name is.

        Where the memory limit has no room for both, the old one ends first.

        Raises:
            InputError: it cannot be loaded, does not fit, or the profile lacks it; one of its name is then still served.
        """
        models, executor = self._models, self._models.executor
        name = entry.spec.name
        profile = None if self._config.profile == "auto" else Profile.load(self._config.profile)
        if profile is not None and not (buckets := known_buckets(profile, name)):
            profile.select([name])
        buckets = [] if profile is None else buckets
        loaded = await self._quiet.do(load_buckets, entry.spec, buckets)
        names = [model.name for model in loaded]
        if self._buckets_of(name) and not self._has_room_beside(loaded):
            log.warning("model %s ends before it is loaded again: the memory limit has no room for both", name)
            await self.remove_model(name)
        described = dict(models.described)
        try:
            await self._quiet.do(models.load, loaded, NEXT)
            if profile is None:
                known = await self._quiet.do(models.measure, names, NEXT)
            else:
                known = profile.select(names)
                for one in names:
                    await self._quiet.do(executor.warm_up, one + NEXT, models.batch_sizes, True)
            gone = set(self._buckets_of(name)) - set(names)
            for one in names:
                self._engine.put_model(known.select([one]), one + NEXT)
        except Exception as error:
            for one in {one + NEXT for one in names} & set(executor.models):
                executor.unload(one)
            models.described.clear()
            models.described.update(described)
            raise InputError(str(error).replace(NEXT, "")) from error
        for one in gone:
            await self._engine.remove_model(one)
            executor.unload(one)
        await self._quiet.do(executor.free_memory)
        log.info("model %s is served", name)

    def served_models(self) -> list[str]:
        """Names of the models that are served, as clients know them."""
        return list(dict.fromkeys(split_bucket(one)[0] for one in self._engine.models))

    def _buckets_of(self, name: str) -> list[str]:
        """The names under which a model is scheduled; none if it is not served."""
        return [one for one in self._engine.models if split_bucket(one)[0] == name]

    def _has_room_beside(self, loaded: Sequence[ServedModel]) -> bool:
        """Whether a model fits beside all that are loaded.

        Raises:
            InputError: it would not even fit in place of the one of its name.
        """
        try:
            self._models.check_memory(loaded, beside=True)
        except InputError:
            self._models.check_memory(loaded)
            return False
        return True

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

    async def reload_policy(self) -> bool:
        """Read the policy again and let it decide; one that cannot be read is refused, and the present one stays."""
        try:
            policy, adjust_tables = await asyncio.get_running_loop().run_in_executor(None, resolve_policy, self._config)
        except InputError as error:
            log.error("policy is not reloaded, %s stays in force: %s", self._engine.guard.name, error)
            return False
        await self._engine.reload_policy(policy, adjust_tables)
        log.info("policy %s was reloaded", policy.name)
        return True
