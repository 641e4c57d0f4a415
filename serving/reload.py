"""What changes in a server while it serves: models come and go, and policies."""

from __future__ import annotations

import asyncio
import logging

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.scheduler import AdjustTables
from serving.models.load import load_model
from serving.models.repository import Entry
from serving.models.served import ServedModel
from serving.observers.explain import require_learned
from serving.profiling.device_models import DeviceModels
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

    async def add_model(self, entry: Entry) -> None:
        """Load a model, warm it up, measure it, and serve it, while others are served; until then one of its name is.

        Where the memory limit has no room for both, the old one ends first.

        Raises:
            InputError: it cannot be loaded, does not fit, or the profile lacks it; one of its name is then still served.
        """
        loop, models, executor = asyncio.get_running_loop(), self._models, self._models.executor
        name = entry.spec.name
        auto = self._config.profile == "auto"
        known = None if auto else Profile.load(self._config.profile).select([name])
        model = await loop.run_in_executor(None, load_model, entry.spec)
        if name in self._engine.models and not self._has_room_beside(model):
            log.warning("model %s ends before it is loaded again: the memory limit has no room for both", name)
            await self.remove_model(name)
        before = models.described.get(name)
        try:
            await loop.run_in_executor(None, models.load, model, NEXT)
            if known is None:
                known = await loop.run_in_executor(None, models.measure, (name,), NEXT)
            else:
                await loop.run_in_executor(None, executor.warm_up, name + NEXT, models.batch_sizes)
            self._engine.put_model(known, name + NEXT)
        except Exception:
            if name + NEXT in executor.models:
                executor.unload(name + NEXT)
            models.described.pop(name, None)
            if before is not None:
                models.described[name] = before
            raise
        log.info("model %s is served", name)

    def _has_room_beside(self, model: ServedModel) -> bool:
        """Whether a model fits beside all that are loaded.

        Raises:
            InputError: it would not even fit in place of the one of its name.
        """
        try:
            self._models.check_memory(model, NEXT)
        except InputError:
            self._models.check_memory(model)
            return False
        return True

    async def remove_model(self, name: str) -> None:
        """Serve a model no more; see `Engine.remove_model`."""
        await self._engine.remove_model(name)
        self._models.executor.unload(name)
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
