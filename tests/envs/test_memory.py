"""Models over the memory of the simulated device: what waits for one to be loaded, what is put out, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.rollout import run
from agents.policies.registry import make_policy
from envs.profiles.profile import Profile
from envs.scheduling.state import DROPPED, MET
from envs.simulation.config import EnvConfig
from envs.simulation.simulator import Simulator
from envs.simulation.worlds import Worlds, world_seed
from traces.errors import InputError
from traces.workload import Workload

PROFILE = Profile.load("cpu2").select(["resnet", "bert", "lstm"])
RESNET, BERT, LSTM = range(3)
LOAD_MS, PATIENT_MS = 200.0, 5000.0


def served(rows: list[tuple[float, int, float]], room: int, load_ms: float = LOAD_MS) -> Simulator:
    """Requests (arrival, model, deadline) served by FIFO, with memory for ``room`` models."""
    arrival, model, deadline = (np.array(column, float) for column in zip(*rows))
    sim = Simulator(PROFILE, 1, 2, len(rows), noise=False)
    sim.limit_memory(room, load_ms)
    workload = Workload(arrival, model.astype(np.int32), np.zeros(len(rows), np.int8), deadline, PROFILE.models)
    run(sim, make_policy("fifo"), [workload], [0])
    return sim


def starts(sim: Simulator) -> list[float]:
    return sim.world.request["start"][0, : sim.world.episode["n"][0]].tolist()


def test_a_request_waits_until_its_model_is_loaded_and_others_do_not_wait_for_it() -> None:
    first, second, third = starts(
        served([(0.0, LSTM, PATIENT_MS), (1.0, LSTM, PATIENT_MS), (50.0, BERT, PATIENT_MS)], 2)
    )
    assert first == second == LOAD_MS, "one load serves all that wait for it"
    assert third == 50.0


def test_the_model_that_answered_longest_ago_is_put_out() -> None:
    rows = [(0.0, BERT, PATIENT_MS), (100.0, RESNET, PATIENT_MS), (200.0, LSTM, PATIENT_MS)]
    again = starts(served([*rows, (900.0, RESNET, PATIENT_MS), (901.0, BERT, PATIENT_MS)], 2))
    assert again[2:] == [200.0 + LOAD_MS, 900.0, 901.0 + LOAD_MS]


def test_a_model_with_a_request_inside_stays_until_that_is_answered() -> None:
    sim = served([(0.0, RESNET, PATIENT_MS), (0.5, LSTM, PATIENT_MS)], 1)
    assert starts(sim)[1] == sim.world.request["finish"][0, 0] + LOAD_MS


def test_models_are_loaded_one_after_the_other_as_they_were_asked_for() -> None:
    later = starts(served([(0.0, LSTM, PATIENT_MS), (1.0, BERT, PATIENT_MS)], 1))
    assert later[0] == LOAD_MS and later[1] > 2 * LOAD_MS


def test_what_cannot_be_in_time_is_refused_as_it_comes() -> None:
    sim = served([(0.0, LSTM, LOAD_MS), (1.0, LSTM, LOAD_MS + 500.0)], 2)
    refused, met = sim.world.request[0, :2]
    assert refused.outcome == DROPPED and refused.finish == 0.0
    assert met.outcome == MET and met.start == 1.0 + LOAD_MS, "a request that is refused asks for no load"


@pytest.mark.parametrize("room", [0, 3, 7])
def test_memory_for_all_models_changes_nothing(room: int) -> None:
    rng = np.random.default_rng(0)
    rows = [(float(t), int(rng.integers(3)), 80.0) for t in np.cumsum(rng.exponential(4.0, 200))]
    assert served(rows, room).world.request.tobytes() == served(rows, 0, 0.0).world.request.tobytes()


def test_an_environment_has_the_memory_that_its_settings_say() -> None:
    def violated(**settings: float) -> int:
        worlds = Worlds(EnvConfig(profile="cpu2", load=(0.4, 0.4), duration_ms=(2000.0, 2000.0), **settings), 1, False)  # type: ignore[arg-type]
        worlds.reset(np.array([world_seed(1)], np.uint64))
        while not worlds.sim.done[0]:
            worlds.step(np.array([int(np.flatnonzero(worlds.masks[0])[0])]))
        return int(worlds.sim.state.count[0, :, MET + 1 :].sum())

    assert violated() < violated(models_in_memory=3, load_ms=20.0) < violated(models_in_memory=3, load_ms=500.0)
    with pytest.raises(InputError, match="models_in_memory"):
        EnvConfig(models_in_memory=-1)
