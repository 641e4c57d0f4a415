"""A learner that starts from Strait, and what it learns from trying actions in copies of the worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import ENV

from agents.evaluation.twins import Twins, _return
from agents.learned.forward import CHOSEN
from agents.learned.network import MASKED, weights_of
from agents.learned.policy import LearnedPolicy
from agents.policies.base import call_compiled
from agents.policies.registry import make_policy
from agents.training.config import PPOConfig
from agents.training.lookahead import (
    LookAheadConfig,
    Practice,
    Progress,
    _adopt,
    _gains_of,
    _propose,
    choose_margin,
    look_ahead,
    tau_ms,
)
from agents.training.ppo.learner import SchedulerPPO, make_model
from agents.training.ppo.strait_bonus import StraitBonus
from agents.training.samples import Samples
from agents.training.warm_start import normalise
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY
from envs.simulation.config import served_profile
from envs.simulation.simulator import Simulator
from envs.simulation.worlds import Worlds
from traces.errors import InputError
from traces.workload import Workload

N = 8


def started(strait_bonus: float = 5.0) -> tuple[SB3VecEnv, SchedulerPPO]:
    """Worlds whose observations are marked, and a learner with an untrained network."""
    env = SB3VecEnv(N, config=ENV)
    env.seed(0)
    strait = make_policy("strait", N)
    model = make_model(PPOConfig(n_envs=N, n_steps=16, hidden=16, strait_bonus=strait_bonus), env, 0, strait.vector)
    env.observed = StraitBonus(env.env.worlds, strait.vector).observed
    env.reset()
    return env, model


def test_untrained_network_decides_as_strait_wherever_it_runs() -> None:
    env, model = started()
    batch, strait = env.env.worlds, make_policy("strait", N)
    deployed = LearnedPolicy(weights_of(model.policy), N)  # type: ignore[arg-type]
    wanted, got, wakes = np.zeros(N, np.int64), np.zeros(N, np.int64), np.zeros(N)
    seen = set()
    for _ in range(60):
        strait.decide_all(batch.sim.state, batch.sim.tables, np.zeros(N, bool), wanted, wakes)
        deployed.decide_all(batch.sim.state, batch.sim.tables, np.zeros(N, bool), got, wakes)
        trained = model.policy(torch.as_tensor(batch.obs), deterministic=True)[0].numpy()
        assert list(trained) == list(wanted) == list(got)
        marks = batch.obs[:, :-N_SUMMARY].reshape(N, -1, N_CANDIDATE)[:, :, 0] == CHOSEN
        assert list(marks.any(axis=1)) == list(wanted < batch.sim.n_actions - 1)
        seen |= set(wanted)
        env.step(wanted)
    assert len(seen) > 2


def test_trained_correction_counts_alike_in_torch_and_deployed() -> None:
    env, model = started(strait_bonus=0.5)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = env.env.worlds
    deployed = LearnedPolicy(weights_of(model.policy), N)  # type: ignore[arg-type]
    for _ in range(30):
        logits = model.policy.net(torch.as_tensor(batch.obs))[0].detach().numpy()  # type: ignore[union-attr,operator]
        for e in range(N):
            mine = deployed.logits(batch.sim.state, batch.sim.tables, e)
            np.testing.assert_allclose(mine[batch.masks[e]], logits[e][batch.masks[e]], rtol=1e-3, atol=1e-4)
        env.step(logits.argmax(axis=1))


def test_samples_give_back_the_observations_they_were_made_of() -> None:
    env, _ = started()
    parts, whole = [], []
    for _ in range(5):
        env.step(np.zeros(N, np.int64))
        none = np.zeros((N, 1))
        parts.append(Samples.of(env.obs, np.zeros(N, np.int64), none.astype(np.int64), none))
        whole.append(env.obs.astype(np.float16))
    samples = Samples.joined(parts)
    index = np.random.default_rng(1).permutation(5 * N)[: 3 * N]
    np.testing.assert_array_equal(samples.observations(index, env.masks.shape[1] - 1), np.concatenate(whole)[index])


def everything(batch: Worlds) -> list[bytes]:
    return [a.tobytes() for a in (*batch.sim.state, *batch.sim.world)]


def test_trying_an_action_changes_no_world_and_the_own_action_gains_nothing() -> None:
    env, _ = started()
    batch, strait = env.env.worlds, make_policy("strait", N)
    twins = Twins(batch, 2, tau_ms(batch, LookAheadConfig()), LookAheadConfig.emphasis)
    env.began = twins.began
    twins.began(np.ones(N, bool))
    own, wakes = np.zeros(N, np.int64), np.zeros(N)
    rng, gained = np.random.default_rng(0), []
    for _ in range(60):
        strait.decide_all(batch.sim.state, batch.sim.tables, np.zeros(N, bool), own, wakes)
        other = np.array([rng.choice(np.flatnonzero(mask)) for mask in batch.masks])
        before = everything(batch)
        gains = twins.gains(np.stack([own, other, np.full(N, -1)], 1), own, strait)
        assert before == everything(batch)
        assert np.all(gains[:, 0] == 0.0) and np.all(np.isnan(gains[:, 2]))
        gained += list(gains[other != own, 1])
        env.step(own)
    assert min(gained) < 0.0 and np.std(gained) > 0.1
    twins.close()


def test_being_late_later_gains_nothing() -> None:
    profile = served_profile(ENV)
    strait = make_policy("strait", 1)
    sim = Simulator(profile, 1, 1, 1, noise=False)
    workload = Workload(np.zeros(1), np.zeros(1), np.ones(1), np.array([0.1]), profile.models)
    values = []
    # The first action of low priority serves the request too late, the last one lets it wait in vain.
    for action in ((sim.n_actions - 1) // 2, sim.n_actions - 1):
        sim.load([workload])
        sim.begin([0])
        args = (sim.arrays, 0, action, np.inf, 50.0, 1.4)
        values.append(call_compiled(_return, strait.kind.choose, strait.memory, strait.vector, *args))
    assert values == [pytest.approx(-np.exp(-0.1 / 50.0))] * 2


def test_what_a_network_believes_is_found_again() -> None:
    _, model = started(strait_bonus=3.0)
    config = LookAheadConfig()
    net: Any = model.policy.net
    fitted = _gains_of(net, config)
    assert float(fitted.strait_bonus) == 0.0
    before = {k: v.clone() for k, v in net.state_dict().items()}
    _adopt(net, fitted, config)
    for name, values in net.state_dict().items():
        torch.testing.assert_close(values, before[name])


def test_look_ahead_changes_the_correction_and_not_what_it_corrects() -> None:
    env, model = started(strait_bonus=3.0)
    strait = make_policy("strait", N)
    normalise(model.policy, env, [strait])  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in model.policy.net.state_dict().items()}  # type: ignore[union-attr,operator]
    config = LookAheadConfig(rounds=2, steps=60, epochs=2, batch_size=64)
    at = Progress()
    assert look_ahead(model.policy, env, [strait], config, 1, at)  # type: ignore[arg-type]
    after = model.policy.net.state_dict()  # type: ignore[union-attr,operator]
    assert (at.round, at.step) == (2, 0)
    assert float(after["strait_bonus"]) == 3.0 and torch.equal(after["strait"], before["strait"])
    assert not torch.equal(after["score.weight"], before["score.weight"])
    assert torch.equal(after["candidate_mean"], before["candidate_mean"])


def test_look_ahead_ends_when_its_time_is_over_and_keeps_what_it_saw() -> None:
    env, model = started(strait_bonus=3.0)
    strait = make_policy("strait", N)
    normalise(model.policy, env, [strait])  # type: ignore[arg-type]
    net: Any = model.policy.net
    before = net.score.weight.clone()
    left = iter([False] * 20 + [True] * 9)
    config = LookAheadConfig(rounds=2, steps=60, epochs=2, batch_size=64)
    at = Progress()
    assert look_ahead(model.policy, env, [strait], config, 1, at, lambda: next(left))  # type: ignore[arg-type]
    assert len(list(left)) == 7, "it ended after 21 decisions, and began no second round"
    assert not torch.equal(net.score.weight, before)


def test_only_valid_actions_that_are_not_straits_are_tried() -> None:
    logits = np.full((50, 6), MASKED, np.float32)
    logits[:, [1, 3, 5]] = 100.0, -100.0, 0.0
    obs = np.zeros((50, 5 * N_CANDIDATE + N_SUMMARY), np.float32)
    tried = _propose(obs, logits, np.full(50, 5), 4, np.random.default_rng(0))
    assert np.array_equal(np.sort(tried, axis=1), np.tile([-1, -1, 1, 3], (50, 1)))


def test_the_margin_is_the_one_that_loses_least() -> None:
    _, model = started()
    net: Any = model.policy.net
    config = LookAheadConfig(margins=(0.5, 1.0, 2.0), temperature=0.25)
    assert choose_margin(net, config, lambda n: abs(float(n.strait_bonus) - 4.1)) == pytest.approx(0.1)
    assert float(net.strait_bonus) == 4.0


def test_rounds_of_policy_iteration_let_the_network_decide_in_the_twins() -> None:
    env, model = started(strait_bonus=0.5)
    config = LookAheadConfig(rounds=1, iterations=1, steps=10, epochs=1, batch_size=64)
    rng = np.random.default_rng(0)
    practice = Practice(model.policy, env, [make_policy("strait", N)], 1, config, rng)  # type: ignore[arg-type]
    practice.let_learner_decide()
    sim = env.env.worlds.sim
    logits = model.policy.net(torch.as_tensor(env.obs))[0].detach().numpy()  # type: ignore[union-attr,operator]
    assert list(practice.deciding[0].actions(sim.state, sim.tables)) == list(logits.argmax(axis=1))
    practice.close()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"ppo\.strait_bonus"):
        PPOConfig(strait_bonus=0.0)
    with pytest.raises(InputError, match=r"look_ahead\.tau"):
        LookAheadConfig(tau=0.0)


def test_a_trial_lasts_until_a_backlog_is_gone_on_devices_that_run_little_at_once() -> None:
    env, _ = started()
    worlds, c = env.env.worlds, LookAheadConfig(tau=4.0, tau_requests=30.0)
    unit_ms = float(worlds.sim.tables.device["unit_ms"][0])
    assert tau_ms(worlds, c) == pytest.approx(30e3 / worlds.capacity_rps) and tau_ms(worlds, c) > 4.0 * unit_ms
    assert tau_ms(worlds, replace(c, tau_requests=0.0)) == pytest.approx(4.0 * unit_ms)
