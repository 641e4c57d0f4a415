from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_training import ENV

from agents.learned.forward import logits_of, memory_size, observation_of, pack
from agents.learned.forward import score as forward_score
from agents.learned.network import MASKED, CandidateNet, CandidatePolicy, weights_of
from agents.learned.policy import LearnedPolicy
from agents.training.ppo.strait_bonus import StraitBonus
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, observation_size
from envs.simulation.config import EnvConfig
from traces.errors import InputError


def random_obs(n: int, candidates: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(n, observation_size(candidates))).astype(np.float32)
    rows = obs[:, :-N_SUMMARY].reshape(n, candidates, N_CANDIDATE)
    valid = rng.random((n, candidates)) < 0.5
    rows *= valid[:, :, None]
    rows[:, :, 0] = valid
    return obs


def random_net(hidden: int, seed: int = 0) -> CandidateNet:
    torch.manual_seed(seed)
    net = CandidateNet(hidden)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    net.set_normalisation(torch.randn(100, N_CANDIDATE) * 2 + 1, torch.randn(100, N_SUMMARY) - 1)
    return net


@pytest.mark.parametrize(("hidden", "candidates"), [(1, 12), (7, 12), (32, 12), (32, 320)])
def test_compiled_forward_gives_the_logits_of_torch(hidden: int, candidates: int) -> None:
    net = random_net(hidden)
    obs = random_obs(20, candidates)
    obs[0, :-N_SUMMARY] = 0.0  # nothing is valid
    with torch.no_grad():
        logits = net(torch.as_tensor(obs))[0].numpy()
    packed = pack({k: v.numpy() for k, v in net.state_dict().items()}, 2.0)
    for row, wanted in zip(obs, logits, strict=True):
        memory = np.zeros(memory_size(hidden, candidates))
        observation_of(memory, hidden, candidates)[:] = row
        best = forward_score(packed, memory, candidates)
        got = logits_of(memory, hidden, candidates)
        valid = wanted > MASKED / 2
        np.testing.assert_allclose(got[valid], wanted[valid], rtol=1e-4, atol=1e-5)
        assert np.all(got[~valid] == -np.inf)
        assert best == np.argmax(wanted)


def test_weights_and_memory_of_a_decision_begin_with_a_line_of_the_cache() -> None:
    weights = {k: v.numpy() for k, v in random_net(48).state_dict().items()}
    for n in (1, 3, 8):
        policy = LearnedPolicy(weights, n)
        assert [array.ctypes.data % 64 for array in (policy.vector, policy.memory)] == [0, 0]


def test_weights_that_are_not_numbers_defer() -> None:
    net, candidates = random_net(4), 6
    with torch.no_grad():
        net.embed.weight.fill_(float("nan"))
    memory = np.zeros(memory_size(4, candidates))
    observation_of(memory, 4, candidates)[:] = random_obs(1, candidates)[0]
    assert (
        forward_score(pack({k: v.numpy() for k, v in net.state_dict().items()}, 2.0), memory, candidates) == candidates
    )


def test_candidates_that_are_not_valid_change_nothing() -> None:
    """So the same weights serve any number of models: more models are more rows."""
    net = random_net(16)
    few, many = 8, 40
    obs = random_obs(10, few)
    wide = np.zeros((10, observation_size(many)), np.float32)
    wide[:, : few * N_CANDIDATE] = obs[:, :-N_SUMMARY]
    wide[:, -N_SUMMARY:] = obs[:, -N_SUMMARY:]
    with torch.no_grad():
        a, value_a = net(torch.as_tensor(obs))
        b, value_b = net(torch.as_tensor(wide))
    torch.testing.assert_close(a[:, :few], b[:, :few])
    torch.testing.assert_close(a[:, few], b[:, many])
    torch.testing.assert_close(value_a, value_b)
    assert torch.all(b[:, few:many] == MASKED)


def test_order_of_candidates_only_permutes_logits() -> None:
    net, candidates = random_net(16), 9
    obs = random_obs(5, candidates)
    order = np.random.default_rng(1).permutation(candidates)
    moved = obs.copy()
    moved[:, :-N_SUMMARY] = obs[:, :-N_SUMMARY].reshape(5, candidates, -1)[:, order].reshape(5, -1)
    with torch.no_grad():
        a, b = net(torch.as_tensor(obs))[0], net(torch.as_tensor(moved))[0]
    torch.testing.assert_close(a[:, order], b[:, :candidates])


def make_policy(env: SB3VecEnv, hidden: int = 8) -> CandidatePolicy:
    torch.manual_seed(0)
    policy = CandidatePolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=hidden)  # type: ignore[arg-type]
    policy.net.load_state_dict(random_net(hidden).state_dict())
    return policy


def test_deployed_policy_decides_as_the_trained_one() -> None:
    env = SB3VecEnv(4, config=ENV)
    policy = make_policy(env)
    env.observed = StraitBonus(env.env.worlds, policy.net.strait.numpy()).observed
    env.seed(3)
    env.reset()
    deployed = LearnedPolicy(weights_of(policy), 4)
    worlds = env.env.worlds
    actions, wakes = np.zeros(4, np.int64), np.zeros(4)
    n_compared = 0
    for _ in range(50):
        wanted = policy(torch.as_tensor(worlds.obs), deterministic=True, action_masks=worlds.masks)[0].numpy()
        deployed.decide_all(worlds.sim.state, worlds.sim.tables, np.zeros(4, bool), actions, wakes)
        # On an idle device it does not defer, whatever the network says; the rule is tested with the law of no idling.
        idle = ~worlds.sim.state.stream["busy"].any(axis=1)
        same = ~idle | (wanted < worlds.sim.n_actions - 1)
        assert list(actions[same]) == list(wanted[same])
        n_compared += int(same.sum())
        assert np.all(np.isfinite(wakes) == (actions == worlds.sim.n_actions - 1))
        env.step(actions)
    assert n_compared > 100


def test_one_policy_serves_other_models() -> None:
    weights = weights_of(make_policy(SB3VecEnv(1, config=ENV)))
    env = SB3VecEnv(2, config=EnvConfig(profile="synthetic:1", load=(1.0, 1.0)))
    env.reset()
    sim = env.env.worlds.sim
    logits = LearnedPolicy(weights, 2).logits(sim.state, sim.tables)
    assert len(logits) == sim.n_actions
    assert np.all(np.isfinite(logits) == env.masks[0])


def test_sampled_actions_are_valid_and_log_probabilities_agree() -> None:
    env = SB3VecEnv(8, config=ENV)
    env.reset()
    policy = make_policy(env)
    obs = torch.as_tensor(env.env.worlds.obs)
    for _ in range(20):
        actions, values, log_p = policy(obs, action_masks=env.masks)
        assert env.masks[np.arange(8), actions.numpy()].all()
        again, log_p2, entropy = policy.evaluate_actions(obs, actions, torch.as_tensor(env.masks))
        torch.testing.assert_close(log_p, log_p2)
        torch.testing.assert_close(values, again)
        assert entropy is not None and torch.all(entropy >= 0) and torch.all(torch.isfinite(entropy))


def test_observation_that_does_not_fit_is_told() -> None:
    box = spaces.Box(-4, 4, (10,), np.float32)
    with pytest.raises(InputError, match="does not fit 3 actions"):
        CandidatePolicy(box, spaces.Discrete(3), lambda _: 1e-3)
