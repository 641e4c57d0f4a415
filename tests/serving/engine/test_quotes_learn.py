"""Which requests the quotes of a live engine learn from."""

from __future__ import annotations

import numpy as np
import pytest

from envs.profiles.profile import synthetic_profile
from serving.engine.quotes import LEARNED_RPS, Quotes
from serving.engine.request import RequestResult
from serving.engine.scheduler import LiveScheduler, unchanged


@pytest.mark.parametrize(
    ("rate", "learned"), [(20.0, 20.0), (150.0, 150.0), (5 * LEARNED_RPS, LEARNED_RPS), (1e4, LEARNED_RPS)]
)
def test_all_requests_are_learned_from_and_of_many_one_in_so_many(rate: float, learned: float) -> None:
    quotes = Quotes(LiveScheduler(synthetic_profile(seed=0), unchanged, 2, 16), lambda: 0, lambda: 0.0)
    at_ms = 1e6 + np.arange(int(4 * rate)) * 1e3 / rate
    for id_, now in enumerate(at_ms.tolist()):
        request = RequestResult(
            id=id_, model="model0", priority=0, arrival_ms=now, deadline_ms=now + 50.0, offered_ms=now
        )
        quotes.arrives(request, 0)
    last_second = [id_ for id_ in quotes._rows if at_ms[id_] >= at_ms[-1] - 1e3]
    assert len(last_second) == pytest.approx(learned, rel=0.1)
