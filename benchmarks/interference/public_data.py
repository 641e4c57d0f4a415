"""Public GPU measurements of co-location, as co-runs. The tables are not shipped: see shared/data/SOURCES.md.

Each loader takes the folder of a data set and raises InputError naming the file, or the column or value that is wrong;
``find`` tells whether a set is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.interference.coruns import CoRuns
from traces.errors import InputError

# Closest relatives of the DISB models among those with published utilisations, since DISB publishes none.
RELATIVES = {
    "vgg19-imagenet": "vgg16",
    "resnet152-imagenet": "resnet50",
    "densenet201-imagenet": "densenet161",
    "inceptionv3-imagenet": "googlenet",
    "distilbert": "bert",
}
TRACE_RATE_RPS = 20.0  # rate of clients that replay a trace: that of the same clients in DISB's periodic workloads


def find(name: str, root: str | Path | None = None) -> Path | None:
    """Folder of a data set, or None where it is absent.

    Args:
        name: igniter_v100, disb or glet. root: folder that holds the sets; by default $STRAIT_DATA, then shared/data here or
            beside the project.
    """
    here = Path(__file__).resolve().parent.parent.parent
    roots = [Path(root)] if root else [here / "shared/data", here.parent / "shared/data"]
    if root is None and os.environ.get("STRAIT_DATA"):
        roots.insert(0, Path(os.environ["STRAIT_DATA"]))
    return next((r / name for r in roots if (r / name).is_dir()), None)


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not CSV: {error}") from None
    missing = [c for c in columns if c not in frame]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing; it has {', '.join(map(str, frame.columns))}")
    return frame


def load_glet(folder: str | Path, device: str = "3080") -> pd.DataFrame:
    """Solo durations and utilisations by model and batch (columns of SOURCES.md, percentages as fractions).

    Args:
        folder: the data set. device: 3080 or 2080ti.
    """
    columns = ("model", "batch", "duration_ms", "sm_pct", "l2_pct", "dram_pct")
    frame = _table(Path(folder) / f"util_{device}.csv", columns)
    percent = [c for c in map(str, frame.columns) if c.endswith("_pct")]
    return frame.assign(**{c[:-4]: frame[c] / 100.0 for c in percent}).drop(columns=percent)


def load_igniter(folder: str | Path) -> CoRuns:
    """Pairs on parts of a V100: a batch for each side, a group for each unordered pair of models, in file order.

    Demands: throughput against the model's best in the place of compute, DRAM and L2 utilisation.
    """
    folder = Path(folder)
    solo = _table(
        folder / "solo.csv", ("model", "batch", "share_pct", "latency_ms", "throughput_rps", "l2_pct", "dram_pct")
    )
    sides = ("model", "batch", "latency")
    names = [f"{s}_{i}" + ("_ms" if s == "latency" else "") for s in sides for i in (1, 2)]
    pairs = _table(folder / "pairs.csv", (*names, "share_1_pct"))
    known = solo.dropna(subset=["l2_pct", "dram_pct"]).reset_index(drop=True)
    place = {key: i for i, key in enumerate(zip(known["model"], known["batch"], known["share_pct"]))}
    models = sorted(set(known["model"]))
    n = len(pairs)
    variant = np.zeros(2 * n, np.int64)
    exec_ms = np.zeros(2 * n)
    for i in (1, 2):
        share = pairs["share_1_pct"] if i == 1 else 100 - pairs["share_1_pct"]
        for row, key in enumerate(zip(pairs[f"model_{i}"], pairs[f"batch_{i}"], share)):
            if key not in place:
                raise InputError(f"{folder / 'pairs.csv'}:{row + 2}: {key} is not in solo.csv with its utilisations")
            variant[2 * row + i - 1] = place[key]
        exec_ms[i - 1 :: 2] = pairs[f"latency_{i}_ms"]
    sets: dict[tuple[str, ...], int] = {}
    group = [sets.setdefault(tuple(sorted(p)), len(sets)) for p in zip(pairs["model_1"], pairs["model_2"])]
    best = known.groupby("model")["throughput_rps"].transform("max")
    rows = np.arange(2 * n)
    return CoRuns(
        variant=variant,
        exec_ms=exec_ms,
        lane=rows % 2,
        away=np.zeros(2 * n),
        group=np.repeat(group, 2),
        start_ms=(rows // 2).astype(float),
        end_ms=(rows // 2).astype(float) + 0.5,
        alone=np.zeros(2 * n, bool),
        batch=rows,
        dt_ms=exec_ms,
        others=(rows ^ 1)[:, None],
        solo_ms=known["latency_ms"].to_numpy(float),
        demand=np.stack(
            [known["throughput_rps"] / best, known["dram_pct"] / 100.0, known["l2_pct"] / 100.0], axis=1
        ).astype(float),
        model=known["model"].map({m: i for i, m in enumerate(models)}).to_numpy(np.int64),
        size=known["batch"].to_numpy(float),
        share=known["share_pct"].to_numpy(float) / 100.0,
        load=np.ones(len(known)),
        family=np.zeros(len(known), np.int64),
        high=np.zeros(len(known)),
        models=tuple(models),
    )


def load_disb(folder: str | Path, glet: str | Path) -> CoRuns:
    """Clients of a DISB workload beside each other: a batch for each client, a group for each workload.

    Each client is a variant of its own: its solo time is that measured for it. Utilisations come from the closest relative
    in the glet tables (RTX 3080, batch 1), since DISB publishes none.

    Args:
        folder: the data set. glet: that of the utilisations.
    """
    folder = Path(folder)
    columns = ("framework", "workload", "client", "standalone_total_us", "corun_total_us")
    results = _table(folder / "results_rtx3080.csv", columns)
    clients = _table(
        folder / "workloads.csv", ("workload", "client", "model", "batch", "priority", "arrivals", "rate_rps")
    )
    frame = results.merge(clients, on=["workload", "client"], how="left")
    if frame["model"].isna().any():
        row = int(np.argmax(frame["model"].isna().to_numpy()))
        raise InputError(f"{folder}: client {frame['client'].iloc[row]!r} of the results is not in workloads.csv")
    strange = sorted(set(frame["model"]) - set(RELATIVES))
    if strange:
        raise InputError(f"{folder / 'workloads.csv'}: model {strange[0]!r}; known are {', '.join(RELATIVES)}")
    use = load_glet(glet)
    use = use[use["batch"] == 1].set_index("model")
    relative = [RELATIVES[m] for m in frame["model"]]
    n = len(frame)
    key = list(zip(frame["framework"], frame["workload"]))
    others = np.full((n, max(key.count(k) for k in set(key)) - 1), -1)
    for i in range(n):
        beside = [j for j in range(n) if key[j] == key[i] and j != i]
        others[i, : len(beside)] = beside
    solo_ms = frame["standalone_total_us"].to_numpy(float) / 1e3
    exec_ms = frame["corun_total_us"].to_numpy(float) / 1e3
    rate = frame["rate_rps"].fillna(TRACE_RATE_RPS).to_numpy(float)
    continuous = (frame["arrivals"] == "continuous").to_numpy()
    family = {f: i for i, f in enumerate(sorted(set(frame["framework"])))}
    models = sorted(RELATIVES)
    rows = np.arange(n)
    return CoRuns(
        variant=rows,
        exec_ms=exec_ms,
        lane=rows,
        away=np.zeros(n),
        group=frame["workload"].map({w: i for i, w in enumerate(sorted(set(frame["workload"])))}).to_numpy(np.int64),
        start_ms=rows.astype(float),
        end_ms=rows + 0.5,
        alone=np.zeros(n, bool),
        batch=rows,
        dt_ms=exec_ms,
        others=others,
        solo_ms=solo_ms,
        demand=use.loc[relative, ["sm", "dram", "l2"]].to_numpy(float),
        model=frame["model"].map({m: i for i, m in enumerate(models)}).to_numpy(np.int64),
        size=frame["batch"].to_numpy(float),
        share=np.ones(n),
        load=np.where(continuous, 1.0, np.minimum(1.0, rate * solo_ms / 1e3)),
        family=frame["framework"].map(family).to_numpy(np.int64),
        high=(frame["priority"] == "high").to_numpy(float),
        models=tuple(models),
    )
