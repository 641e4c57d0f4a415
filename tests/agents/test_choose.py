"""Which policy to serve with: the learned one only where it is better, Strait elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.evaluation import choose
from agents.evaluation.choose import choose_policy
from agents.learned.network import CandidateNet
from agents.learned.policy_file import DEVICE, STRAIT_OF, write_policy
from envs.profiles.profile import Profile
from envs.simulation.config import EnvConfig
from traces.arrivals import poisson
from traces.errors import InputError
from traces.workload import WorkloadConfig, make_workload

PROFILE = Profile.load("synthetic:0")


def lazy_network(path: Path) -> str:
    """A policy file that defers."""
    net = CandidateNet(hidden=8, strait_bonus=1.0)
    net.defer_out.bias.data[:] = 50.0
    write_policy(path, {k: v.detach().numpy() for k, v in net.state_dict().items()}, EnvConfig(), {STRAIT_OF: DEVICE})
    return str(path)


def test_a_worse_policy_is_not_taken(tmp_path: Path) -> None:
    lazy = lazy_network(tmp_path / "lazy.safetensors")
    found = choose_policy(PROFILE, ["strait", lazy, "fifo"], 2)
    assert found.policy == "strait" and found.differences[lazy][0] > 0 and found.differences["fifo"][0] > 0
    assert "strait" in found.describe() and lazy in found.describe()


def test_one_that_is_no_better_is_not_taken_either() -> None:
    found = choose_policy(PROFILE, ["strait:no-transfer"], 2)
    assert found.policy == "strait" and found.differences["strait:no-transfer"] == (0.0, 0.0)


def test_a_better_policy_is_taken_and_the_same_seed_chooses_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "REFERENCE", "fifo")
    found = choose_policy(PROFILE, ["strait", "edf"], 2)
    assert found.policy == "strait" and sum(found.differences["strait"]) < 0
    assert choose_policy(PROFILE, ["strait", "edf"], 2) == found


def test_recorded_arrivals_are_compared_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "REFERENCE", "fifo")
    rng = np.random.default_rng(0)
    calm, rush = (
        make_workload(poisson(rate, 20_000.0, rng), PROFILE.models, PROFILE.solo_latency_ms, WorkloadConfig(), rng)
        for rate in (2.0, 400.0)
    )
    assert choose_policy(PROFILE, ["strait"], 2, workload=calm).policy == "fifo", "nothing violates, whoever serves"
    assert choose_policy(PROFILE, ["strait"], 2, workload=rush).policy == "strait"


def test_an_unknown_candidate_is_refused() -> None:
    with pytest.raises(InputError, match="nonesuch"):
        choose_policy(PROFILE, ["nonesuch"], 2)
