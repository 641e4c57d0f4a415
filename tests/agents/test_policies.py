"""Each policy on small hand-made states, and that none ever names an action that is not valid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from agents.evaluation.rollout import run
from agents.learned.names import ABLATIONS, resolve
from agents.policies.base import Policy
from agents.policies.registry import kinds, make_policy
from envs.profiles.profile import synthetic_profile
from envs.scheduling.forecast import invalidate_forecast
from envs.scheduling.operations import action_of, candidate_of, clear, dispatch, enqueue, mask
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.workload import Workload

PROFILE = synthetic_profile(3, seed=1)
NAMES = sorted(kinds())
MET = 1
FAR = 1e4


class Scene:
    """One scheduler to fill by hand."""

    def __init__(self, streams: int = 4) -> None:
        self.sim = Simulator(PROFILE, 1, streams)
        self.st, self.tb = self.sim.state, self.sim.tables
        clear(self.st, self.tb, 0)
        self.next = 0

    def queue(self, priority: int, model: int, deadline: float = FAR, n: int = 1, at: float = 0.0) -> Scene:
        for _ in range(n):
            enqueue(self.st, self.tb, 0, at, priority, model, self.next, deadline)
            self.next += 1
        return self

    def run(self, priority: int, model: int, b: int = 0, deadline: float = FAR) -> Scene:
        self.queue(priority, model, deadline, int(self.tb.size[b]))
        dispatch(self.st, self.tb, 0, action_of(self.tb, 3, priority, model, b))
        return self

    def ask(self, policy: Policy | str) -> tuple[int, int, int] | None:
        """(priority, model, requests) of what the policy dispatches, None when it defers."""
        policy = make_policy(policy) if isinstance(policy, str) else policy
        action, wake = policy.decide(self.st, self.tb)
        valid = np.zeros(self.sim.n_actions, bool)
        mask(self.st, self.tb, 0, valid)
        assert valid[action]
        assert not np.isnan(wake)
        if action == self.sim.n_actions - 1:
            return None
        p, m, b = candidate_of(self.tb, 3, action)
        return int(p), int(m), int(self.tb.size[b])


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_defers_with_nothing_to_do(name: str) -> None:
    assert Scene().ask(name) is None
    busy = Scene(streams=1).run(1, 0).queue(0, 1)
    assert busy.ask(name) is None


@pytest.mark.parametrize("name", [*NAMES, *ABLATIONS])
def test_every_policy_serves_a_light_load_well(name: str) -> None:
    n = 40
    solo = PROFILE.solo_latency_ms
    workload = Workload(
        np.arange(n) * 40.0, np.arange(n) % 3, np.arange(n) % 2, np.full(n, 12 * solo.max()), PROFILE.models
    )
    policy, change = resolve(name, 1, use_tuned=False)
    sim = Simulator(PROFILE, 1, 4, n, tables=change(PROFILE.tables()))
    run(sim, policy, [workload], [3])
    assert sim.state.count.sum() == n
    assert sim.state.count[0, :, MET].sum() >= 0.9 * n


def test_fifo_takes_who_came_first_whatever_the_priority_and_deadline() -> None:
    scene = Scene().queue(1, 2, FAR, at=0.0).queue(0, 0, 30.0, at=1.0)
    assert scene.ask("fifo") == (1, 2, 1)


def test_edf_takes_the_earliest_deadline_whatever_the_priority() -> None:
    scene = Scene().queue(0, 0, 500.0).queue(1, 2, 300.0)
    assert scene.ask("edf") == (1, 2, 1)


@pytest.mark.parametrize("name", ["priority-edf", "preempt", "preempt-instant", "strait", "gpulet"])
def test_policies_with_priority_take_high_first(name: str) -> None:
    scene = Scene().queue(1, 2, 300.0).queue(0, 0, 500.0).queue(0, 1, 400.0)
    answer = scene.ask(name)
    assert answer is not None and answer[0] == 0


@pytest.mark.parametrize("name", ["fifo", "edf", "priority-edf", "preempt"])
def test_a_batch_is_as_large_as_the_queue_allows(name: str) -> None:
    scene = Scene().queue(0, 1, n=5)
    assert scene.ask(name) == (0, 1, 4)
    assert scene.ask(make_policy(name, max_batch=2)) == (0, 1, 2)


def test_triton_waits_for_its_preferred_batch_and_no_longer_than_its_delay() -> None:
    policy = make_policy("triton", preferred=4, max_delay=5.0)
    scene = Scene().queue(0, 1, n=2)
    action, wake = policy.decide(scene.st, scene.tb)
    assert action == scene.sim.n_actions - 1
    assert wake == 5.0
    assert scene.queue(0, 1, n=2).ask(policy) == (0, 1, 4)


def test_clockwork_runs_one_batch_at_a_time() -> None:
    assert Scene().run(0, 0).queue(0, 1).ask("clockwork") is None
    assert Scene().queue(0, 1).ask("clockwork") == (0, 1, 1)


def test_symphony_waits_while_a_larger_batch_could_still_be_in_time() -> None:
    scene = Scene().queue(0, 0, FAR)
    action, wake = make_policy("symphony").decide(scene.st, scene.tb)
    assert action == scene.sim.n_actions - 1
    assert 0 < wake < FAR
    assert scene.ask(make_policy("symphony", defer=0.0)) == (0, 0, 1)


def test_strait_does_not_let_low_priority_make_a_high_priority_batch_late() -> None:
    # A high-priority batch runs and would end just in time if none joined it on the other core.
    scene = Scene(3).run(0, 0).queue(1, 1)
    for risk in (0, 2):
        high = scene.st.stream[0, 0]
        high.deadline = scene.st.member[0, 0, 0].deadline = FAR
        policy = make_policy("strait", risk=risk)
        assert scene.ask(policy) == (1, 1, 1)
        scale = scene.st.scale[0, 1, risk - 1] if risk else 1.0
        high.deadline = scene.st.member[0, 0, 0].deadline = scale * high.finish + 0.01
        assert scene.ask(policy) is None


def test_strait_waits_where_running_side_by_side_loses_more_time_than_waiting() -> None:
    scene = Scene(3).run(0, 0).queue(0, 0)
    assert scene.ask("strait") == (0, 0, 1)
    scene.st.weight[0, 1] = 2.0  # each other core that executes something slows by twice the time alone
    invalidate_forecast(scene.st, 0)
    assert scene.ask("strait") is None
    assert scene.ask(resolve("strait:no-haste", use_tuned=False)[0]) == (0, 0, 1)
    # Nor does low priority take the place of the request that waits.
    assert scene.queue(1, 1).ask(make_policy("strait", low_haste=100.0)) is None


def test_strait_shares_a_core_only_where_waiting_would_make_the_request_late() -> None:
    def with_request(deadline: float) -> Scene:
        return Scene().run(1, 1, 1).run(1, 1, 1).queue(0, 2, deadline)

    busy = with_request(FAR)
    assert busy.ask("strait") is None
    first = float(busy.st.stream[0]["finish"][:2].min())
    alone = float(busy.tb.solo[0, 2, 0])
    assert first > 5.0 * alone
    urgent = 0.9 * first
    assert with_request(urgent).ask("strait") == (0, 2, 1)
    assert with_request(urgent).ask(resolve("strait:no-sharing", use_tuned=False)[0]) is None
    # It would be late beside the other batch, too.
    assert with_request(1.2 * alone).ask("strait") is None
    # The learned policy leaves this to Strait.
    assert with_request(urgent).ask(resolve("ppo")[0]) == (0, 2, 1)
    assert with_request(FAR).ask(resolve("ppo")[0]) is None
    # Low priority never shares.
    assert Scene().run(1, 1, 1).run(1, 1, 1).queue(1, 2, urgent).ask(make_policy("strait", low_streams=4)) is None


def test_strait_keeps_low_priority_back_while_high_priority_arrives_fast_but_does_not_starve_it() -> None:
    scene = Scene().queue(1, 1)
    assert scene.ask("strait-guard") == (1, 1, 1)
    scene.st.scheduler[0].rate_high = 8.0
    assert scene.ask("strait-guard") is None
    assert scene.ask("strait") == (1, 1, 1)
    scene.st.scheduler[0].now = 0.96 * FAR
    assert scene.ask("strait-guard") == (1, 1, 1)


def test_no_priority_ablation_treats_both_alike() -> None:
    scene = Scene().queue(0, 0, 900.0).queue(1, 0, 100.0)
    policy, _ = resolve("strait:no-priority", use_tuned=False)
    assert scene.ask("strait") == (0, 0, 1)
    assert scene.ask(policy) is not None


def test_an_unknown_parameter_and_an_unknown_switch_are_named() -> None:
    with pytest.raises(InputError, match="no parameter 'speed'"):
        make_policy("fifo", speed=2)
    with pytest.raises(InputError, match="unknown switch 'no-luck'"):
        resolve("strait:no-luck")


request = st_.tuples(st_.integers(0, 1), st_.integers(0, 2), st_.floats(0.0, 300.0), st_.integers(1, 9))
batch = st_.tuples(st_.integers(0, 1), st_.integers(0, 2), st_.integers(0, 3), st_.floats(1.0, 200.0))


@settings(max_examples=40, deadline=None)
@given(st_.lists(request, max_size=8), st_.lists(batch, max_size=4), st_.integers(1, 6))
def test_no_policy_ever_names_an_invalid_action(
    queued: list[tuple[int, int, float, int]], running: list[tuple[int, int, int, float]], streams: int
) -> None:
    scene = Scene(streams)
    for p, m, b, deadline in running[:streams]:
        scene.run(p, m, b, deadline)
    for p, m, deadline, n in queued:
        scene.queue(p, m, deadline, n)
    for name in NAMES:
        scene.ask(name)
