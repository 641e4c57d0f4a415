"""Time to the first reset and step in a fresh process: ``python -m benchmarks.cold_start``.

``compile_s``: with an empty cache of compiled code, as right after installation. ``cached_s``: with what that run left.
Both count from ``gymnasium.make`` to the end of the first step, after the imports; ``import_s`` is the imports alone and
``process_s`` the whole cached process, interpreter included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.common.command import as_command
from traces.settings import check_settings

CODE = """
import json, time
start = time.perf_counter()
import gymnasium as gym
import envs
imported = time.perf_counter()
env = gym.make({name!r})
made = time.perf_counter()
env.reset(seed=0)
env.step(0)
end = time.perf_counter()
print(json.dumps({{"import_s": imported - start, "make_s": made - imported, "step_s": end - made}}))
"""
NAME = "Strait/DualPriority-v2"


@dataclass
class ColdStartBenchmark:
    """What to measure.

    Attributes:
        runs: starts with a filled cache, of which the fastest counts.
    """

    runs: int = 3

    def __post_init__(self) -> None:
        check_settings(self, "--", {"runs": 1})


def fresh_process(cache: str) -> dict[str, float]:
    """Times measured by a new process that keeps its compiled code in ``cache``."""
    begin = time.perf_counter()
    environment = os.environ | {"STRAIT_CACHE": cache}
    out = subprocess.check_output([sys.executable, "-c", CODE.format(name=NAME)], env=environment)
    return {"process_s": time.perf_counter() - begin} | json.loads(out)


def measure(config: ColdStartBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    with tempfile.TemporaryDirectory() as cache:
        cold = fresh_process(cache)
        warm = min((fresh_process(cache) for _ in range(config.runs)), key=lambda r: r["process_s"])
    return {
        "compile_s": cold["make_s"] + cold["step_s"],
        "cached_s": warm["make_s"] + warm["step_s"],
        "cached_make_s": warm["make_s"],
        "cached_step_s": warm["step_s"],
        "import_s": warm["import_s"],
        "process_s": warm["process_s"],
        "environment": NAME,
    }


main = as_command(measure, ColdStartBenchmark, "cold_start", __doc__)

if __name__ == "__main__":
    sys.exit(main())
