"""Short turns: threads for the cores that are shared, which end when told to."""

from __future__ import annotations

import sys

import numba
import pytest

from serving.executors.core_turns import Beat


@pytest.mark.skipif(sys.platform != "linux" or numba.config.DISABLE_JIT, reason="beats are compiled, and for Linux")
def test_shared_cores_have_a_beat_that_stops() -> None:
    beat = Beat([0, 1], streams=3)
    assert [thread.name for thread in beat.threads] == ["beat-0"], "core 1 has one stream: nobody to take turns with"
    beat.running[0] = 1
    beat.stop()
    for thread in beat.threads:
        thread.join(10.0)
        assert not thread.is_alive()
