"""A measuring campaign of a device that behaves exactly as a profile says."""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.profiles.profile import Profile
from traces.machine import DeviceInfo, MachineInfo, ModelInfo
from traces.measurements import Measurements

MODELS, SIZES, STREAMS, CORES = 4, (1, 2, 4, 8), 4, 2


def made_up_campaign(profile: Profile, runs: int, noise: float = 0.0, seed: int = 0) -> Measurements:
    """Batches that progress exactly at the profile's true rates (plus log-normal noise)."""
    rng = np.random.default_rng(seed)
    n_sizes = len(profile.batch_sizes)
    rows = []

    def play(run: int, kind: str, plan: list[list[tuple[float, int]]]) -> None:
        t, at = 0.0, [0] * len(plan)
        running: dict[int, list[float]] = {}
        ready = [p[0][0] for p in plan]
        while any(a < len(p) for a, p in zip(at, plan)) or running:
            on = [sum(o % CORES == c for o in running) for c in range(CORES)]
            slow = {
                s: profile.count[on[s % CORES]]
                * np.exp(
                    sum(
                        profile.pair[plan[s][at[s]][1], plan[o][at[o]][1]] / on[o % CORES]
                        for o in running
                        if o % CORES != s % CORES
                    )
                )
                for s in running
            }
            ends = {s: t + r[0] * slow[s] for s, r in running.items()}
            begins = {s: ready[s] for s in range(len(plan)) if s not in running and at[s] < len(plan[s])}
            s_end = min(ends, key=ends.get) if ends else None
            s_begin = min(begins, key=begins.get) if begins else None
            begin_next = s_begin is not None and (s_end is None or begins[s_begin] <= ends[s_end])
            now = begins[s_begin] if begin_next else ends[s_end]
            for s, r in running.items():
                r[0] -= (now - t) / slow[s]
            t = now
            if begin_next:
                mb = plan[s_begin][at[s_begin]][1]
                work = profile.solo_ms.ravel()[mb] * np.exp(noise * rng.standard_normal())
                running[s_begin] = [work, t]
            else:
                start = running.pop(s_end)[1]
                mb = plan[s_end][at[s_end]][1]
                rows.append((run, kind, s_end, mb, start, t))
                at[s_end] += 1
                if at[s_end] < len(plan[s_end]):
                    ready[s_end] = t + plan[s_end][at[s_end]][0]

    run = 0
    for mb in range(MODELS * n_sizes):
        for _ in range(3):
            play(run, "solo", [[(0.0, mb)]])
            run += 1
    for _ in range(runs):
        n = int(rng.integers(2, STREAMS + 1))
        play(
            run,
            "colocation",
            [[(rng.uniform(0, 5), int(rng.integers(MODELS * n_sizes))) for _ in range(4)] for _ in range(n)],
        )
        run += 1
    frame = pd.DataFrame(rows, columns=["run", "kind", "stream", "mb", "start", "end"])
    out = pd.DataFrame(
        {
            "run": frame["run"],
            "kind": frame["kind"],
            "batch_id": np.arange(len(frame)),
            "stream": frame["stream"],
            "priority": 1,
            "model": [profile.models[i] for i in frame["mb"] // n_sizes],
            "batch_size": np.array(profile.batch_sizes)[frame["mb"] % n_sizes],
            "dispatch_ms": frame["start"],
            "h2d_start_ms": frame["start"],
            "h2d_end_ms": frame["start"],
            "exec_start_ms": frame["start"],
            "exec_end_ms": frame["end"],
            "d2h_end_ms": frame["end"],
        }
    )
    device = DeviceInfo("cpu", "made up", CORES, 2**30, 100.0, 20.0, "none")
    models = tuple(
        ModelInfo(m, "made up", 1, 10**6 * (i + 1), 5e7, 1e6, 100, 100, (3,), "float32")
        for i, m in enumerate(profile.models)
    )
    return Measurements(MachineInfo("2026-01-01", "made up", device, STREAMS, profile.batch_sizes, models), out)
