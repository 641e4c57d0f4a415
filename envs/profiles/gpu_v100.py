"""A GPU profile from public measurements: ``python -m envs.profiles.gpu_v100``.

From numbers that others measured, not from a run of ours (SOURCES.md names them): igniter_v100 gives solo latencies and the
latencies of pairs on a V100 under MPS partitions, glet gives SM, L2 and DRAM utilisation on an RTX 2080 Ti and an RTX 3080.
What was not measured is derived as said at each function. The profile states this in its ``source``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from envs.profiles.fit import WEIGHT_BATCHES
from envs.profiles.profile import Profile, predictor_start
from envs.scheduling.predictor import N_DEVICE_FEATURES, features
from envs.scheduling.state import N_DEMAND, N_FEATURES
from traces.command import run_command
from traces.errors import InputError
from traces.tables import read_table

SIZES = (1, 2, 4, 8, 16, 32)
GBPS = 11.5  # PCIe 3.0 x16 in practice, SOURCES.md
COPY_MS = 0.01  # fixed cost of a copy, assumed
DISPATCH_MS = 0.05  # cost of a dispatch, assumed
PIXEL_BYTES = 3 * 4
INPUT_BYTES = {"ssd": 300 * 300 * PIXEL_BYTES}  # others take 224x224 images
OUTPUT_BYTES = {"ssd": 8732 * 25 * 4}  # boxes and classes; others give 1000 scores
RIDGE = 1e-3


def at_full_share(rows: pd.DataFrame, value: str) -> float:
    """A quantity of one (model, batch) on the whole device: ``a + b / share``, fitted to the partitions measured.

    Most were measured on up to 80 % of the device only. Shares count by their square, since the fit is read at 100 %.
    """
    rows = rows.dropna(subset=[value])
    share = rows["share_pct"].to_numpy(float) / 100
    x = np.stack([np.ones_like(share), 1 / share], axis=1) * share[:, None] ** 2
    a, b = np.linalg.lstsq(x, rows[value].to_numpy(float) * share**2, rcond=None)[0]
    return float(a + b)


def solo_and_demand(solo: pd.DataFrame, glet: pd.DataFrame, models: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Solo latency (M, B) in ms on the whole device, and demand (M, B, 3).

    Memory and cache demand are DRAM and L2 utilisation. SM utilisation was not measured on the V100: compute demand follows
    from the two by the linear relation that they have on glet's GPUs.
    """
    known = np.stack([np.ones(len(glet)), glet["l2_pct"] / 100, glet["dram_pct"] / 100], axis=1)
    relation = np.linalg.lstsq(known, glet["sm_pct"].to_numpy(float) / 100, rcond=None)[0]
    latency = np.empty((len(models), len(SIZES)))
    demand = np.empty((*latency.shape, N_DEMAND))
    for i, model in enumerate(models):
        for j, size in enumerate(SIZES):
            rows = solo[(solo["model"] == model) & (solo["batch"] == size)]
            if len(rows) < 2:
                raise InputError(f"solo.csv: model {model!r} at batch {size} was measured on fewer than 2 shares")
            latency[i, j] = at_full_share(rows, "latency_ms")
            l2 = np.clip(at_full_share(rows, "l2_pct") / 100, 0, 1)
            dram = np.clip(at_full_share(rows, "dram_pct") / 100, 0, 1)
            demand[i, j] = np.clip(relation @ (1.0, l2, dram), 0, 1), dram, l2
    return latency, demand


def pair_rows(pairs: pd.DataFrame, models: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both batches of each pair on equal halves: index of the batch, of its neighbour, latency and its relative spread.

    Streams without partitions share the device about equally, so the halves stand for them.
    """
    even = pairs[pairs["share_1_pct"] == 50]
    even = even[even["batch_1"].isin(SIZES) & even["batch_2"].isin(SIZES)]

    def index(side: int) -> np.ndarray:
        model = even[f"model_{side}"].map(models.index).to_numpy()
        return model * len(SIZES) + even[f"batch_{side}"].map(SIZES.index).to_numpy()

    first, second = index(1), index(2)
    latency = np.concatenate([even["latency_1_ms"], even["latency_2_ms"]])
    spread = np.concatenate([even["std_1_ms"], even["std_2_ms"]]) / latency
    return np.concatenate([first, second]), np.concatenate([second, first]), latency, spread


def fit_pairs(
    own: np.ndarray, other: np.ndarray, slow: np.ndarray, demand: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log slowdown (M*B, M*B) of a batch by its neighbour, and the residual of each measured one.

    Linear in the demands of both and their products, with a small ridge.
    """
    flat = demand.reshape(-1, N_DEMAND)

    def design(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        product = (flat[i][:, :, None] * flat[j][:, None, :]).reshape(len(i), -1)
        return np.concatenate([np.ones((len(i), 1)), flat[i], flat[j], product], axis=1)

    x = design(own, other)
    theta = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ np.log(slow))
    n = len(flat)
    at = np.arange(n * n)
    pair = np.maximum(design(at // n, at % n) @ theta, 0.0)
    return pair.reshape(n, n), np.log(slow) - x @ theta


def fit_weights(
    own: np.ndarray, other: np.ndarray, slow: np.ndarray, demand: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (F,) and covariance (F, F) of the online predictor's start, on the measured pairs."""
    flat = demand.reshape(-1, N_DEMAND)
    x = np.zeros((len(own), N_FEATURES))
    for row, i, j in zip(x, own, other, strict=True):
        features(1.0, 1.0, *flat[i], *flat[j], row)  # every stream is a core of its own
    x = x[:, :N_DEVICE_FEATURES]
    gram = x.T @ x / len(x) + RIDGE * np.eye(N_DEVICE_FEATURES)
    return np.linalg.solve(gram, x.T @ (slow - 1.0) / len(x)), np.linalg.inv(gram * WEIGHT_BATCHES)


def build(data: Path, name: str = "gpu-v100") -> Profile:
    """The profile.

    Args:
        data: folder that holds igniter_v100 and glet.
        name: name of the profile.

    Raises:
        InputError: a file or a column is missing.
    """
    utilisation = ("sm_pct", "l2_pct", "dram_pct")
    solo = read_table(data / "igniter_v100" / "solo.csv", ("model", "batch", "share_pct", "latency_ms", "l2_pct"))
    pairs = read_table(data / "igniter_v100" / "pairs.csv", ("model_1", "model_2", "share_1_pct", "std_2_ms"))
    glet = pd.concat([read_table(data / "glet" / f"util_{gpu}.csv", utilisation) for gpu in ("2080ti", "3080")])
    models = tuple(sorted(solo["model"].unique()))
    latency, demand = solo_and_demand(solo, glet, models)
    n = np.array(SIZES)
    input_bytes = np.array([INPUT_BYTES.get(m, 224 * 224 * PIXEL_BYTES) for m in models])[:, None] * n
    output_bytes = np.array([OUTPUT_BYTES.get(m, 4000) for m in models])[:, None] * n
    own, other, together, spread = pair_rows(pairs, models)
    slow = np.maximum(together / latency.ravel()[own], 1.0)
    pair, residual = fit_pairs(own, other, slow, demand)
    weight, cov = predictor_start(*fit_weights(own, other, slow, demand))
    # What the fit leaves is a bias of each pair, known to nobody beforehand; what spreads from run to run comes on top.
    both = np.sqrt(residual**2 + spread**2) * np.sign(residual)
    return Profile(
        name=name,
        models=models,
        batch_sizes=SIZES,
        cores=0.0,
        solo_ms=latency,
        h2d_ms=COPY_MS + input_bytes / (GBPS * 1e6),
        d2h_ms=COPY_MS + output_bytes / (GBPS * 1e6),
        demand=demand,
        share=np.ones(latency.shape),
        weight=weight,
        cov=cov,
        count=np.ones(3),
        pair=pair,
        residual=np.sort(both - np.median(both)),
        dispatch_ms=DISPATCH_MS,
        source="built by envs.profiles.gpu_v100 from public numbers, not measured by us: igniter_v100 (V100, TensorRT, MPS "
        "partitions; solo latency extrapolated to the whole device, pairs on equal halves) and glet (SM utilisation from "
        f"L2 and DRAM); copies from sizes at {GBPS} GB/s; dispatch {DISPATCH_MS} ms and copy set-up {COPY_MS} ms assumed",
    )


@dataclass
class GpuProfileConfig:
    """What to build from.

    Attributes:
        data: folder that holds igniter_v100 and glet.
        out: profile to write (JSON).
    """

    data: str = "../shared/data"
    out: str = "envs/profiles/data/gpu-v100.json"


def run(config: GpuProfileConfig) -> None:
    """Build and write the profile, and say what is in it."""
    profile = build(Path(config.data), Path(config.out).stem)
    profile.save(config.out)
    low, middle, high = np.quantile(np.exp(profile.pair), [0.05, 0.5, 0.95])
    print(f"{config.out}: {', '.join(profile.models)} at batch sizes {list(profile.batch_sizes)}")
    print(f"  slowdown by a neighbour p5/p50/p95 {low:.2f} {middle:.2f} {high:.2f}")
    print(f"  residual p5/p50/p95 {np.round(np.quantile(profile.residual, [0.05, 0.5, 0.95]), 3).tolist()}")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run, GpuProfileConfig, argv, "python -m envs.profiles.gpu_v100", __doc__)


if __name__ == "__main__":
    sys.exit(main())
