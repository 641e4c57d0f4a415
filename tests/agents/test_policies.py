"""Each policy on small hand-made states, and that none ever names an action that is not valid."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from agents.evaluation.rollout import run
from agents.learned.names import ABLATIONS, resolve
from agents.policies.base import Policy
from agents.policies.registry import kinds, make_policy
from envs.profiles.profile import synthetic_profile
from envs.scheduling.candidates import action_of, candidate_of, mask
from envs.scheduling.forecast import invalidate_forecast
from envs.scheduling.operations import clear, dispatch, enqueue
from envs.scheduling.rates import earned_per_ms
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


@pytest.mark.parametrize("name", ["priority-edf", "preempt", "preempt-instant", "strait:strict-priority", "gpulet"])
def test_policies_with_priority_take_high_first(name: str) -> None:
    scene = Scene().queue(1, 2, 300.0).queue(0, 0, 500.0).queue(0, 1, 400.0)
    answer = scene.ask(resolve(name, use_tuned=False)[0])
    assert answer is not None and answer[0] == 0


@pytest.mark.parametrize("name", ["fifo", "edf", "priority-edf", "preempt"])
def test_a_batch_is_as_large_as_the_queue_allows(name: str) -> None:
    scene = Scene().queue(0, 1, n=5)
    assert scene.ask(name) == (0, 1, 4)
    assert scene.ask(make_policy(name, max_batch=2)) == (0, 1, 2)


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(kinds()[n].params, "mixed_batches") and n != "clipper"])
def test_a_mixed_batch_holds_low_priority_of_the_same_model_too(name: str) -> None:
    at_once = {"symphony": {"defer": 0.0, "by_priority": True}, "cork": {"budget": 0.0}}.get(name, {})
    scene = Scene().queue(0, 1).queue(1, 1, n=4)
    assert scene.ask(make_policy(name, mixed_batches=True, **at_once)) == (0, 1, 4)
    assert scene.ask(make_policy(name, mixed_batches=False, **at_once)) == (0, 1, 1)


def test_clipper_fills_its_batch_with_low_priority() -> None:
    scene = Scene().queue(0, 1).queue(1, 1, n=4)
    for mixed, n in ((True, 2), (False, 1)):
        policy = make_policy("clipper", mixed_batches=mixed)
        policy.memory[:] = 2.0  # the size it has found for every model
        assert scene.ask(policy) == (0, 1, n)


def test_levels_of_triton_share_a_batch() -> None:
    scene = Scene().queue(0, 1).queue(1, 1, n=3)
    assert scene.ask(make_policy("triton", preferred=4, max_delay=5.0)) == (0, 1, 4)
    assert scene.ask(make_policy("triton", preferred=4, max_delay=5.0, levels=False)) is None


def test_gpulet_keeps_high_priority_in_a_mixed_batch_in_time_whoever_is_with_it() -> None:
    for low_deadline in (0.5, FAR):
        scene = Scene().queue(0, 0).queue(1, 0, low_deadline)
        dispatch(scene.st, scene.tb, 0, action_of(scene.tb, 3, 0, 0, 1))
        scene.queue(1, 1)
        assert scene.ask("gpulet") == (1, 1, 1)
        batch = scene.st.stream[0, 0]
        scene.st.member[0, 0, 0].deadline = batch.start + 1.11 * float(batch.solo + batch.post)
        assert scene.ask("gpulet") is None, f"low priority in its batch is due at {low_deadline}"


def test_cork_and_triton_do_not_wait_for_what_a_mixed_batch_has() -> None:
    scene = Scene().queue(0, 1, n=1).queue(1, 1, n=7)
    assert scene.ask(make_policy("cork", mixed_batches=True, max_batch=8)) == (0, 1, 8)
    scene.tb.device["mixed_batches"] = 0.0
    assert make_policy("triton", preferred=8, max_delay=5.0).decide(scene.st, scene.tb) == (
        scene.sim.n_actions - 1,
        5.0,
    )


def test_strait_takes_low_priority_along_where_that_costs_little() -> None:
    for longer, n in (([1.0, 1.1, 1.2, 1.3], 8), ([1.0, 2.0, 4.0, 8.0], 1)):
        scene = Scene().queue(0, 1).queue(1, 1, n=7)
        scene.tb.solo[0, 1] = scene.tb.solo[0, 1, 0] * np.array(longer)
        assert scene.ask("strait") == (0, 1, n)


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


def test_strait_starts_on_an_idle_device_whatever_could_be_in_time() -> None:
    for priority, model in product(range(2), range(3)):
        scene = Scene()
        scene.queue(priority, model, 1.01 * float(scene.tb.solo[0, model, 0]))
        assert scene.ask("strait") == (priority, model, 1), "though the calibrated quantiles say that it will be late"
        assert Scene().queue(priority, model).ask(make_policy("strait", price=100.0)) == (priority, model, 1)


def test_strait_does_not_let_low_priority_make_a_high_priority_batch_late() -> None:
    # A high-priority batch runs and would end just in time if none joined it on the other core.
    scene = Scene(3).run(0, 0).queue(1, 1)
    high = scene.st.stream[0, 0]
    for name in ("strait", "strait:strict-priority"):
        policy, _ = resolve(name, use_tuned=False)
        high.deadline = scene.st.member[0, 0, 0].deadline = FAR
        assert scene.ask(policy) == (1, 1, 1)
        high.deadline = scene.st.member[0, 0, 0].deadline = high.finish
        assert scene.ask(policy) is None
        assert Scene(3).run(1, 0, deadline=high.finish).queue(0, 1).ask(policy) == (0, 1, 1), (
            "the other way round it does"
        )


def earning(scene: Scene, per_ms: float) -> Scene:
    """The scene, where so much value has been met per ms for a long time."""
    own = scene.st.scheduler[0]
    own.met_low, own.met_time = per_ms, own.now
    own.met_low = per_ms**2 / earned_per_ms(scene.st, scene.tb, 0, 1.0)  # little time has passed: it is taken for more
    return scene


def test_strait_waits_where_running_side_by_side_earns_less_than_the_device_does() -> None:
    scene = Scene(3).run(0, 0).queue(1, 0)
    alone = 1.0 / float(scene.tb.solo[0, 0, 0])
    patient = {"level": 0.0, "patience": 1e6}
    assert earning(scene, alone).ask(make_policy("strait", **patient)) == (1, 0, 1)
    scene.st.weight[0, 1] = 3.0  # each other core that executes something slows by three times the time alone
    invalidate_forecast(scene.st, 0)
    assert scene.ask(make_policy("strait", **patient)) is None
    assert scene.ask(make_policy("strait", price=0.0)) == (1, 0, 1)


def test_a_deferral_of_strait_ends_when_the_slack_has_shrunk_enough() -> None:
    scene = Scene(3).run(0, 0, 3).queue(1, 1, deadline=300.0)
    earning(scene, 1.0 / float(scene.tb.solo[0, 1, 0]))
    action, wake = make_policy("strait", patience=1.0, level=0.0).decide(scene.st, scene.tb)
    assert action == scene.sim.n_actions - 1
    assert 0.0 < wake < 300.0


def test_strait_batches_low_priority_where_nobody_else_waits() -> None:
    scene = Scene().queue(1, 1, n=8)
    per_request = scene.tb.solo[0, 1] / scene.tb.size
    assert scene.ask("strait") == (1, 1, int(scene.tb.size[per_request.argmin()]))


def test_strait_looks_at_every_queue_of_many_models() -> None:
    sim = Simulator(synthetic_profile(40, seed=1), 1, 4)
    clear(sim.state, sim.tables, 0)
    solo = sim.tables.solo[0, :, 0]
    # All but the last cannot be in time even alone: only that one is worth a batch, wherever it ranks.
    for model in range(40):
        enqueue(sim.state, sim.tables, 0, 0.0, 1, model, model, (2.0 if model == 39 else 0.5) * float(solo[model]))
    action, _ = make_policy("strait").decide(sim.state, sim.tables)
    assert candidate_of(sim.tables, 40, action) == (1, 39, 0)


def test_without_priority_both_are_alike() -> None:
    policy, _ = resolve("strait:no-priority", use_tuned=False)
    for urgent in range(2):
        scene = Scene().queue(urgent, 0, 60.0).queue(1 - urgent, 0, 900.0)
        assert scene.ask(policy) == (urgent, 0, 2 if urgent == 0 else 1), "high priority takes low of its model along"
    assert Scene().queue(0, 0, 900.0).queue(1, 0, 890.0).ask("strait") == (0, 0, 1)


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
