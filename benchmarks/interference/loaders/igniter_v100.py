"""Pairs of models on parts of a V100 under MPS, measured by iGniter: see shared/data/SOURCES.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.interference.coruns import CoRuns, co_runs, whole_batches
from traces.errors import InputError
from traces.tables import read_table

SOLO = ("model", "batch", "share_pct", "latency_ms", "throughput_rps", "l2_pct", "dram_pct")
SIDES = ("model_1", "batch_1", "latency_1_ms", "model_2", "batch_2", "latency_2_ms", "share_1_pct")


def load(folder: Path) -> CoRuns:
    """A batch for each side of a pair, a group for each unordered pair of models, in file order.

    Demands: throughput against the model's best in the place of compute, DRAM and L2 utilisation.
    """
    solo = read_table(folder / "solo.csv", SOLO).dropna(subset=["l2_pct", "dram_pct"])
    pairs = read_table(folder / "pairs.csv", SIDES)
    variants = pd.DataFrame(
        {
            "model": pd.factorize(solo["model"], sort=True)[0],
            "size": solo["batch"],
            "device_share": solo["share_pct"] / 100.0,
            "solo_ms": solo["latency_ms"],
            "compute": solo["throughput_rps"] / solo.groupby("model")["throughput_rps"].transform("max"),
            "memory": solo["dram_pct"] / 100.0,
            "cache": solo["l2_pct"] / 100.0,
        }
    )
    place = {key: i for i, key in enumerate(zip(solo["model"], solo["batch"], solo["share_pct"]))}
    variant = np.zeros((len(pairs), 2), np.int64)
    for side, share in enumerate((pairs["share_1_pct"], 100 - pairs["share_1_pct"])):
        for row, key in enumerate(zip(pairs[f"model_{side + 1}"], pairs[f"batch_{side + 1}"], share)):
            if key not in place:
                raise InputError(f"{folder / 'pairs.csv'}:{row + 2}: {key} is not in solo.csv with its utilisations")
            variant[row, side] = place[key]
    names = ["+".join(sorted(pair)) for pair in zip(pairs["model_1"], pairs["model_2"])]
    rows = np.arange(variant.size)
    segments = whole_batches(
        variant=variant.ravel(),
        exec_ms=pairs[["latency_1_ms", "latency_2_ms"]].to_numpy(float).ravel(),
        start_ms=(rows // 2).astype(float),
        others=(rows ^ 1)[:, None],
        group=np.repeat(pd.factorize(np.array(names))[0], 2),
    )
    return co_runs(segments, variants)
