"""The ledger of a door: what a replica says in its own times counts in those of the door."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.routing.registry import router
from envs.cluster.ledger import Routed
from envs.scheduling.state import HIGH, LOW
from serving.cluster.frames import COUNT, MS, Told
from serving.cluster.routing import LiveLedger, tables_of

TOTAL_MS = [[2.0, 3.0], [8.0, 12.0]]  # two models, batches of 1 and 4
SHARE = [[1.0, 1.0], [0.5, 1.0]]


def told(log_slowdown: float, *inside: int) -> Told:
    return Told(log_slowdown, 0, 0.0, np.array(inside, COUNT).tobytes())


def live_ledger(slowness: float) -> LiveLedger:
    ledger = LiveLedger(router("quote"), 2, tables_of([1, 4], TOTAL_MS, SHARE))
    lone_ms = [row[0] for row in TOTAL_MS]
    ledger.up(0, lone_ms)
    ledger.up(1, [slowness * ms for ms in lone_ms])
    return ledger


def test_what_a_replica_has_beside_what_this_door_sent_is_that_of_other_doors() -> None:
    live = live_ledger(1.0)
    live.ledger.replica["up"][0, 0] = 0
    for model in (0, 1):
        live.route(Routed(0.0, HIGH, model, 100.0), 1)
    live.told(1, 1.0, told(0.0, 1, 1, 0, 0))
    assert not live.ledger.beside[0, 1].any()
    # The second model takes half of the device.
    np.testing.assert_allclose(live.work_ms(1, 1.0), [TOTAL_MS[0][0] + TOTAL_MS[1][0] * 0.5, 0.0])
    # Three more of low priority of the first model make it a batch of 4.
    live.told(1, 2.0, told(0.0, 1, 1, 3, 0))
    assert live.work_ms(1, 2.0)[LOW] == pytest.approx(TOTAL_MS[0][1] - TOTAL_MS[0][0])
    assert live.ledger.beside[0, 1].tolist() == [[0.0, 0.0], [3.0, 0.0]]
    live.told(1, 3.0, told(0.0, 1, 1, 1, 3, 0, 0))  # it serves another model meanwhile, as it has yet to say
    assert live.ledger.beside[0, 1].tolist() == [[0.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize("measured", [1.0, 2.5])
@pytest.mark.parametrize(("slowdown", "believed"), [(0.2, 0.0), (-0.2, 0.0), (0.9, 0.9), (-0.7, -0.7), (99.0, 3.0)])
def test_a_replica_that_becomes_slow_says_so(measured: float, slowdown: float, believed: float) -> None:
    live = live_ledger(measured)
    live.told(1, 1.0, told(slowdown, 0, 0, 0, 0))
    assert live.ledger.replica["log_told"][0, 1] == pytest.approx(math.log(measured) + believed)
    live.told(1, 2.0, told(0.0, 0, 0, 0, 0))
    assert live.ledger.replica["log_told"][0, 1] == pytest.approx(math.log(measured))


def test_what_a_replica_has_to_load_counts_until_it_says_that_it_has_it() -> None:
    live = live_ledger(1.0)
    for replica, load_ms in ((0, [0.0, 400.0]), (1, [400.0, 0.0])):
        live.told(replica, 1.0, told(0.0, 0, 0, 0, 0)._replace(load_ms=np.array(load_ms, MS).tobytes()))
    for model in (0, 1):
        for _ in range(3):
            found = live.route(Routed(2.0, HIGH, model, 100.0), 1)
            assert found is not None and found[0].replica == model
    assert live.quote(Routed(2.0, HIGH, 1, 100.0)).probability > 0.5
    live.drains(1)
    assert live.quote(Routed(2.0, HIGH, 1, 100.0)).probability < 0.1
    live.told(0, 3.0, told(0.0, 0, 0, 0, 0))
    assert live.quote(Routed(3.0, HIGH, 1, 100.0)).probability > 0.5


def test_a_slow_replica_is_known_before_its_first_answer() -> None:
    live = live_ledger(2.5)
    assert live.ledger.replica["log_told"][0].tolist() == pytest.approx([0.0, math.log(2.5)])
    routed = [live.route(Routed(0.0, LOW, 1, 1000.0), 1) for _ in range(20)]
    to_slow = sum(sent.replica == 1 for sent, _ in filter(None, routed))
    assert 1 <= to_slow <= 8
