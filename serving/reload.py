"""What changes in a server while it serves: models come and go, and policies."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.scheduler import AdjustTables
from serving.executors.quiet import QuietThread
from serving.models.load import load_model
from serving.models.repository import Entry
from serving.models.served import ServedModel
from serving.observers.explain import require_learned
from serving.profiling.device_models import DeviceModels
from traces.errors import InputError

log = logging.getLogger("serving")

AUTO = "auto"  # the policy that `serving.choosing` chooses
NEXT = " (next)"  # behind the name of a model that is loaded, but not served yet; no name may hold it


def resolve_policy(config: ServeConfig) -> tuple[Policy, AdjustTables]:
    """The policy that the settings name, and the change that it makes to what the scheduler knows.

    Raises:
        InputError: there is no such policy, or its file is malformed.
    """
    if config.policy == AUTO:
        for name in config.candidates:
            resolve(name)  # an unknown one is told before anything runs
    policy, adjust_tables = resolve("strait" if config.policy == AUTO else config.policy, profile=SERVED)
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
        auto = self._config.profile == "auto"
        known = None if auto else Profile.load(self._config.profile).select([name])
        model = await self._quiet.do(load_model, entry.spec)
        if name in self._engine.models and not self._has_room_beside(model):
            log.warning("model %s ends before it is loaded again: the memory limit has no room for both", name)
            await self.remove_model(name)
        before = models.described.get(name)
        try:
            await self._quiet.do(models.load, model, NEXT)
            if known is None:
                known = await self._quiet.do(models.measure, (name,), NEXT)
            else:
                await self._quiet.do(executor.warm_up, name + NEXT, models.batch_sizes, True)
            self._engine.put_model(known, name + NEXT)
        except Exception as error:
            if name + NEXT in executor.models:
                executor.unload(name + NEXT)
            models.described.pop(name, None)
            if before is not None:
                models.described[name] = before
            raise InputError(str(error).replace(NEXT, "")) from error
        await self._quiet.do(executor.free_memory)
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
