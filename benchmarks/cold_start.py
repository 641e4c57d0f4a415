"""Time to the first reset and step in a fresh process: ``python -m benchmarks.cold_start``.

``compile_s``: with an empty cache of compiled code, as right after installation. ``cached_s``: with what that run left.
Both count from ``gymnasium.make`` to the end of the first step, after the imports; ``import_s`` is the imports alone and
``process_s`` the whole cached process, interpreter included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from benchmarks.common.timing import report, timed

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
NAME = "Strait/DualPriority-v0"


def fresh_process(cache: str) -> dict[str, float]:
    """What a new process that keeps its compiled code in ``cache`` measures."""
    found: dict[str, float] = {}

    def work() -> None:
        got = subprocess.run(
            [sys.executable, "-c", CODE.format(name=NAME)],
            env=os.environ | {"STRAIT_CACHE": cache},
            capture_output=True,
            text=True,
            check=True,
        )
        found.update(json.loads(got.stdout))

    found["process_s"] = timed(work)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="starts with a filled cache (default: %(default)s)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as cache:
        cold = fresh_process(cache)
        warm = min((fresh_process(cache) for _ in range(runs)), key=lambda r: r["process_s"])
    report(
        {
            "compile_s": cold["make_s"] + cold["step_s"],
            "cached_s": warm["make_s"] + warm["step_s"],
            "cached_make_s": warm["make_s"],
            "cached_step_s": warm["step_s"],
            "import_s": warm["import_s"],
            "process_s": warm["process_s"],
            "environment": NAME,
        }
    )


if __name__ == "__main__":
    main()
