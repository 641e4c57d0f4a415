"""``--policy auto``: the policy that does best on this device, chosen at the start and again while it serves.

At the start the candidates are compared with Strait on the profile of the models as they were measured
(agents.evaluation.choose). While serving, the same comparison is made again and again on the requests of late, in a process of
its own that gives way to everything else; what falls behind Strait serves no longer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from agents.evaluation.choose import Choice, choose_policy
from agents.learned.names import SERVED
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from serving.config import ServeConfig
from serving.engine.request import Observer, RequestResult
from serving.engine.scheduler import AdjustTables
from serving.observers.recorder import Asked, asked, workload_of
from serving.reload import AUTO, resolve_policy

log = logging.getLogger("serving")

MOST_REQUESTS = 20_000  # of late, that a comparison is made on
LEAST_REQUESTS = 500  # fewer say nothing
NICENESS = 19


async def policy_for(config: ServeConfig, profile: Profile) -> tuple[Policy, AdjustTables, Choice | None]:
    """The policy to begin with, the change that it makes to what the scheduler knows, and what was found if it was chosen.

    Raises:
        InputError: there is no such policy, or its file is malformed.
    """
    if config.policy != AUTO:
        return *resolve_policy(config), None
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(
        None, choose_policy, profile, config.candidates, config.streams, config.high_weight, SERVED, None, config.seed
    )
    log.info("policy auto: %s", found.describe())
    return *resolve_policy(replace(config, policy=found.policy)), found


class ShadowComparison(Observer):
    """Compares the candidates again on the requests of late, every ``config.compare_s`` seconds.

    Args:
        config: settings.
        served: gives the profile of the models that are served, and what high priority counts now.
        install: lets the policy of a name decide from now on.
        chosen: what was found at the start.

    Attributes:
        choice: what was found last. compared: how often.
    """

    of_model = True

    def __init__(
        self,
        config: ServeConfig,
        served: Callable[[], tuple[Profile, float]],
        install: Callable[[str], Awaitable[bool]],
        chosen: Choice,
    ) -> None:
        self.choice = chosen
        self.compared = 0
        self._config = config
        self._served = served
        self._install = install
        self._requests: deque[Asked] = deque(maxlen=MOST_REQUESTS)

    def request_ended(self, result: RequestResult) -> None:
        """Keep when it was offered, and what was asked for."""
        if result.deadline_ms > result.arrival_ms >= 0.0:
            self._requests.append(asked(result))

    async def run(self) -> None:
        """Compare again and again, until cancelled; a comparison that fails changes nothing."""
        while True:
            await asyncio.sleep(self._config.compare_s)
            try:
                await self.compare()
            except Exception:
                log.exception("policy auto: the comparison failed; %s goes on", self.choice.policy)

    async def compare(self) -> None:
        """Compare once, and let another policy decide if another one is better."""
        if len(self._requests) < LEAST_REQUESTS:
            return
        found = await self._compare_apart(list(self._requests), *self._served())
        self.compared += 1
        if found.policy != self.choice.policy:
            log.warning("policy auto: %s takes over from %s: %s", found.policy, self.choice.policy, found.describe())
            if not await self._install(found.policy):
                return
        self.choice = found

    async def _compare_apart(self, requests: list[Asked], profile: Profile, high_weight: float) -> Choice:
        """In a process of its own, which cannot hold up the loop, and which a core is given to last."""
        config = self._config
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            await asyncio.get_running_loop().run_in_executor(None, _write, at, requests, profile)
            flags = {
                "profile": at / "profile.json",
                "workload": at / "recent.parquet",
                "candidates": f"[{', '.join(config.candidates)}]",
                "tuned_for": SERVED,
                "streams": config.streams,
                "high_weight": high_weight,
                "seed": config.seed,
            }
            words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
            found = json.loads((await _run_nicely("agents.choose", *words)).splitlines()[-1])
        return Choice(found["policy"], {name: (mean, half) for name, (mean, half) in found["differences"].items()})


def _write(folder: Path, requests: list[Asked], profile: Profile) -> None:
    """Write the profile, and the requests of models that it knows, for the comparison."""
    profile.save(folder / "profile.json")
    known = set(profile.models)
    rows = pd.DataFrame([one for one in requests if one.model in known], columns=Asked._fields)
    workload_of(rows.sort_values("arrival_ms"), "recent").save(folder / "recent.parquet")


async def _run_nicely(module: str, *words: str) -> str:
    """Output of ``python -m module words`` with the least right to a core; ends with the calling task.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    nice = ("nice", "-n", str(NICENESS)) if shutil.which("nice") else ()
    process = await asyncio.create_subprocess_exec(
        *nice, sys.executable, "-m", module, *words, stdout=PIPE, stderr=PIPE, cwd=Path(__file__).parents[1]
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError((errors or output).decode().strip().splitlines()[-1])
    return output.decode().strip()
