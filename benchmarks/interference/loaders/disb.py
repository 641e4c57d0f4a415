"""Clients of DISB workloads beside each other on an RTX 3080, without partitions: see shared/data/SOURCES.md.

DISB publishes no utilisations: those of the closest relative in the tables of glet stand in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.interference.coruns import CoRuns, co_runs, whole_batches
from traces.errors import InputError
from traces.tables import read_table

# Closest relatives of the models among those with published utilisations.
RELATIVES = {
    "vgg19-imagenet": "vgg16",
    "resnet152-imagenet": "resnet50",
    "densenet201-imagenet": "densenet161",
    "inceptionv3-imagenet": "googlenet",
    "distilbert": "bert",
}
TRACE_RATE_RPS = 20.0  # rate of clients that replay a trace: that of the same clients in DISB's periodic workloads
RESULTS = ("framework", "workload", "client", "standalone_total_us", "corun_total_us")
CLIENTS = ("workload", "client", "model", "batch", "priority", "arrivals", "rate_rps")


def load(folder: Path, glet: Path) -> CoRuns:
    """A batch for each client, a group for each workload; every client is a variant with its own solo time.

    Args:
        folder: the data set.
        glet: the data set of the utilisations.
    """
    results = read_table(folder / "results_rtx3080.csv", RESULTS)
    clients = read_table(folder / "workloads.csv", CLIENTS)
    frame = results.merge(clients, on=["workload", "client"], how="left")
    for client in frame.loc[frame["model"].isna(), "client"]:
        raise InputError(f"{folder}: client {client!r} of the results is not in workloads.csv")
    for model in sorted(set(frame["model"]) - set(RELATIVES)):
        raise InputError(f"{folder / 'workloads.csv'}: model {model!r}; known are {', '.join(RELATIVES)}")
    use = utilisations(glet).reindex(frame["model"].map(RELATIVES)).reset_index(drop=True)
    solo_ms = frame["standalone_total_us"] / 1e3
    busy = np.minimum(1.0, frame["rate_rps"].fillna(TRACE_RATE_RPS) * solo_ms / 1e3)
    variants = pd.DataFrame(
        {
            "model": frame["model"].map(sorted(RELATIVES).index),
            "size": frame["batch"],
            "solo_ms": solo_ms,
            "compute": use["sm_pct"] / 100.0,
            "memory": use["dram_pct"] / 100.0,
            "cache": use["l2_pct"] / 100.0,
            "load": np.where(frame["arrivals"] == "continuous", 1.0, busy),
            "family": pd.factorize(frame["framework"], sort=True)[0],
            "high": frame["priority"] == "high",
        }
    )
    rows = np.arange(len(frame))
    run = frame.groupby(["framework", "workload"]).ngroup().to_numpy()
    others = np.full((len(rows), int(np.bincount(run).max()) - 1), -1)
    for i in rows:
        beside = np.flatnonzero((run == run[i]) & (rows != i))
        others[i, : len(beside)] = beside
    group = pd.factorize(frame["workload"], sort=True)[0]
    exec_ms = frame["corun_total_us"].to_numpy(float) / 1e3
    return co_runs(whole_batches(rows, exec_ms, rows.astype(float), others, group), variants)


def utilisations(glet: Path) -> pd.DataFrame:
    """Utilisations in percent of the models on an RTX 3080 at batch size 1, by model."""
    use = read_table(glet / "util_3080.csv", ("model", "batch", "sm_pct", "l2_pct", "dram_pct"))
    return use[use["batch"] == 1].set_index("model")
