"""--policy auto: what is best serves, at the start and as the load or the device changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.evaluation.choose import Choice
from agents.learned.network import CandidateNet
from agents.learned.policy_file import write_policy
from agents.policies.registry import make_policy
from envs.profiles.profile import Profile
from envs.simulation.config import EnvConfig
from serving import choosing, server
from serving.api.plane import Listener, Plane
from serving.choosing import LEAST_REQUESTS, ShadowComparison, policy_for
from serving.config import ServeConfig
from serving.engine.request import RequestResult
from serving.engine.scheduler import unchanged
from serving.reload import resolve_policy
from traces.errors import InputError

PROFILE = Profile.load("synthetic:0")
SPAN_MS = 5_000.0  # of what was recorded: enough for a policy that defers to fall behind
NOW_COUNTS = 7.5  # high priority, whatever it was configured with


@pytest.fixture
def lazy(tmp_path: Path) -> str:
    """A policy that always defers."""
    net = CandidateNet(hidden=8)
    net.defer_out.bias.data[:] = 50.0
    path = tmp_path / "lazy.safetensors"
    write_policy(path, {k: v.detach().numpy() for k, v in net.state_dict().items()}, EnvConfig(), {})
    return str(path)


def result(at_ms: float, model: str) -> RequestResult:
    return RequestResult(
        id=0, model=model, priority=1, outcome="met", arrival_ms=at_ms, offered_ms=at_ms, deadline_ms=at_ms + 90.0
    )


def shadow(config: ServeConfig, chosen: str = "strait") -> tuple[ShadowComparison, list[str]]:
    installed: list[str] = []

    async def install(name: str) -> bool:
        installed.append(name)
        return True

    made = ShadowComparison(config, lambda: (PROFILE, NOW_COUNTS), install, Choice(chosen, {}))
    rng = np.random.default_rng(0)
    for at_ms in np.sort(rng.uniform(0.0, SPAN_MS, 2 * LEAST_REQUESTS)):
        made.request_ended(result(float(at_ms), PROFILE.models[int(rng.integers(len(PROFILE.models)))]))
    return made, installed


async def test_a_policy_that_is_worse_on_the_served_models_does_not_begin(lazy: str) -> None:
    policy, _, found = await policy_for(ServeConfig(policy="auto", candidates=("strait", lazy), streams=2), PROFILE)
    assert policy.name == "strait" and found is not None and found.differences[lazy][0] > 0


async def test_a_policy_that_is_named_is_not_compared() -> None:
    policy, _, found = await policy_for(ServeConfig(policy="edf"), PROFILE)
    assert policy.name == "edf" and found is None


def test_an_unknown_candidate_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="nonesuch"):
        resolve_policy(ServeConfig(policy="auto", candidates=("strait", "nonesuch")))


async def test_a_policy_that_falls_behind_strait_serves_no_longer(lazy: str) -> None:
    compared, installed = shadow(ServeConfig(policy="auto", candidates=("strait", lazy), streams=2), chosen=lazy)
    await compared.compare()  # in a process of its own
    assert installed == ["strait"] and compared.choice.policy == "strait" and compared.choice.differences[lazy][0] > 0
    await compared.compare()
    assert installed == ["strait"], "what serves already is not installed again"


async def test_another_policy_takes_over_when_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(*words: str) -> str:
        assert words[words.index("--high_weight") + 1] == str(NOW_COUNTS), "not what was configured at the start"
        return json.dumps({"policy": "ppo", "differences": {"ppo": [-2.0, 0.5]}})

    monkeypatch.setattr(choosing, "_run_nicely", found)
    compared, installed = shadow(ServeConfig(policy="auto"))
    await compared.compare()
    assert installed == ["ppo"] and compared.choice == Choice("ppo", {"ppo": (-2.0, 0.5)})


async def test_a_comparison_that_fails_says_so_and_few_requests_say_nothing() -> None:
    config = ServeConfig(policy="auto", candidates=("strait", "nonesuch"))
    compared, installed = shadow(config)
    with pytest.raises(RuntimeError, match="nonesuch"):
        await compared.compare()
    few, _ = shadow(replace(config))
    few._requests.clear()
    await few.compare()
    assert few.compared == 0 and installed == []


@pytest.mark.parametrize("compare_s", [0.0, 600.0])
async def test_the_status_says_why_the_policy_was_chosen(compare_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    planes: list[Plane] = []

    async def chosen(config: ServeConfig, profile: Profile) -> tuple:
        return make_policy("edf"), unchanged, Choice("edf", {"edf": (-1.5, 0.25)})

    async def listen(plane: Plane, tls: object) -> list[Listener]:
        planes.append(plane)
        return []

    monkeypatch.setattr(server, "policy_for", chosen)
    monkeypatch.setattr(server, "listen", listen)
    settings = {"device": "sim:cpu2", "profile": "cpu2", "models": "mobilenet=builtin:empty"}
    opened = server.Server(ServeConfig(port=0, policy="auto", compare_s=compare_s, **settings)).open()
    running = await opened.start()
    said = planes[0].status()["server"]
    assert said["policy"] == "edf" and said["reason"].startswith("--policy auto: edf (")
    assert "edf -1.50 +- 0.25" in said["reason"]
    await running.close()
    await opened.close()
