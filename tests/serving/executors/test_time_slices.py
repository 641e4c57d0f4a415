"""Short time slices: threads for the cores that are shared, which end when they are stopped."""

from __future__ import annotations

import sys

import numba
import pytest

from serving.executors.time_slices import SliceTimer


@pytest.mark.skipif(sys.platform != "linux" or numba.config.DISABLE_JIT, reason="they are compiled, and for Linux")
def test_shared_cores_have_a_thread_that_stops() -> None:
    slices = SliceTimer([0, 1], streams=3)
    assert [thread.name for thread in slices.threads] == ["slices-0"], (
        "core 1 has one stream, which shares it with none"
    )
    slices.running[0] = 1
    slices.stop()
    for thread in slices.threads:
        thread.join(10.0)
        assert not thread.is_alive()
