"""An A100 as it was measured without partitions: ``python -m envs.profiles.gpu_a100``.

From Abacus' co-runs (envs.profiles.abacus): PyTorch in fp16, one process per model under MPS, ends of 64,000 co-runs of two and
three models. Times alone and shares of the device follow from the two paths of envs.profiles.two_paths; what a pair of models
does beyond these is fitted to the ends of pairs and triples and goes into the truth alone, as the scatter does. Batch sizes 1
and 2 were not measured: there the host takes as long as at 4, and the device's time is linear in the batch, as it is above.
Copies follow from sizes, with bandwidths from public measurements; the cost of a dispatch is assumed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from envs.profiles import abacus
from envs.profiles.abacus import LAYERS, MODELS, CoRuns
from envs.profiles.fit import quantiles
from envs.profiles.profile import Profile
from envs.profiles.two_paths import HUBER, ROWS, TwoPaths, fit_layers, fit_two_paths
from envs.scheduling.predictor import COMPUTE_BOTH, HOST_OTHERS, HOST_SLACK
from envs.scheduling.state import COMPUTE, N_DEMAND, N_FEATURES
from traces.command import run_command

SIZES = (1, 2, 4, 8, 16, 32)
LEAST_MEASURED = 4
LENGTHS = (8, 16, 32, 64)  # of bert's sequences, tokens
GBPS = 25.0  # PCIe 4.0 x16, shared/data/pcie
COPY_MS = 0.01  # fixed cost of a copy, assumed
DISPATCH_MS = 0.05  # cost of a dispatch, assumed
HALF = 2  # bytes of a number
IMAGE_BYTES, INCEPTION_BYTES = 224 * 224 * 3 * HALF, 299 * 299 * 3 * HALF
TOKEN_BYTES, SCORE_BYTES = 8, 1000 * HALF
PAIR_SHRINK = 0.05  # penalty on the logs of pairs
SHORT_MS = 2.0  # rows shorter than this are mostly hand-over: they say nothing of the scatter


def served_models() -> dict[str, tuple[str, float]]:
    """Models of the profile by name, each with its model in the data and the items of one request; bert once per length."""
    out = {name: (name, 1.0) for name in MODELS if name != "bert"}
    return out | {f"bert-{length}": ("bert", length / abacus.LENGTH) for length in LENGTHS}


def whole_models(names: list[tuple[str, float]], size: int) -> CoRuns:
    """A co-run of one whole model for each name, as if each ran alone."""
    model = np.array([[MODELS.index(name)] for name, _ in names])
    first = np.array([[abacus.FIRST[name]] for name, _ in names])
    end = first + np.array([[LAYERS[name]] for name, _ in names])
    return CoRuns(model, first, end, np.array([[items * size] for _, items in names]), np.ones(len(names)))


def pair_logs(paths: TwoPaths, runs: CoRuns, seed: int = 0) -> np.ndarray:
    """Log of the factor (M, M) by which each model (column) slows each other (row) beyond the two paths.

    Shrunk to 0; fitted to the ends of pairs and triples together, so that what holds for three is in it, too.
    """
    runs = runs.take(np.flatnonzero(runs.running.sum(axis=1) > 1))
    runs = runs.take(np.random.default_rng(seed).permutation(len(runs))[: 2 * ROWS])
    n = len(MODELS)

    def errors(theta: np.ndarray) -> np.ndarray:
        error = np.log(end_with_pairs(paths, runs, theta.reshape(n, n)) / runs.ms) / np.sqrt(len(runs))
        return np.append(error, PAIR_SHRINK * theta / n)

    found = least_squares(errors, np.zeros(n * n), loss="soft_l1", f_scale=HUBER / np.sqrt(len(runs)), max_nfev=8)
    return found.x.reshape(n, n)


def end_with_pairs(paths: TwoPaths, runs: CoRuns, pair: np.ndarray) -> np.ndarray:
    """Predicted time (N,) until all have ended, with a factor for each pair (M, M) as a log."""
    beside = pair[runs.model[:, :, None], runs.model[:, None, :]]
    beside[:, np.arange(runs.model.shape[1]), np.arange(runs.model.shape[1])] = 0.0
    return paths.end_ms(runs, beside)


def join(*parts: CoRuns) -> CoRuns:
    """Co-runs of several files in one; those of fewer models get empty ranges."""
    width = max(part.model.shape[1] for part in parts)

    def padded(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if name == "ms":
            return np.concatenate(arrays)
        return np.concatenate(
            [
                np.pad(a, ((0, 0), (0, width - a.shape[1])), mode="edge" if name in ("model", "items") else "constant")
                for a in arrays
            ]
        )

    return CoRuns(**{name: padded(name) for name in CoRuns.__dataclass_fields__})


def build(data: Path, name: str = "gpu-a100") -> Profile:
    """The profile.

    Args:
        data: folder that holds abacus_a100.
        name: name of the profile.

    Raises:
        InputError: a file or a column is missing.
    """
    folder = data / "abacus_a100"
    pairs, triples = abacus.load(folder, "pairs"), abacus.load(folder, "triples")
    # The scheduler is told what pairs show; triples are for the truth.
    paths = fit_two_paths(pairs, fit_layers(pairs))
    runs = join(pairs, triples)
    logs = pair_logs(paths, runs)
    residual = np.log(runs.ms / end_with_pairs(paths, runs, logs))[
        (runs.running.sum(axis=1) > 1) & (runs.ms > SHORT_MS)
    ]
    served = served_models()
    source = list(served.values())
    n_sizes = len(SIZES)
    solo, share = np.empty((len(served), n_sizes)), np.empty((len(served), n_sizes))
    for b, size in enumerate(SIZES):
        runs_alone = whole_models(source, size)
        measured = whole_models(source, max(size, LEAST_MEASURED))
        time, used = paths.alone(runs_alone, factors_of=measured.items)
        solo[:, b], share[:, b] = time[:, 0], used[:, 0]
    index = np.array([MODELS.index(model) for model, _ in source])
    by_model = logs[np.ix_(index, index)]
    demand = np.zeros((*solo.shape, N_DEMAND))
    demand[:, :, COMPUTE] = share
    weight, cov = np.zeros(N_FEATURES), np.zeros((N_FEATURES, N_FEATURES))
    weight[COMPUTE_BOTH], weight[HOST_OTHERS], weight[HOST_SLACK] = paths.device_slowdown, paths.host_slowdown, -1.0
    cov[COMPUTE_BOTH, COMPUTE_BOTH], cov[HOST_OTHERS, HOST_OTHERS] = 0.02, 0.001
    n = np.array(SIZES)
    input_bytes = np.array(
        [
            INPUT_BYTES.get(model, IMAGE_BYTES) if model != "bert" else items * abacus.LENGTH * TOKEN_BYTES
            for model, items in source
        ]
    )
    return Profile(
        name=name,
        models=tuple(served),
        batch_sizes=SIZES,
        cores=0.0,
        solo_ms=solo,
        h2d_ms=COPY_MS + input_bytes[:, None] * n / (GBPS * 1e6),
        d2h_ms=COPY_MS + SCORE_BYTES * np.ones((len(served), 1)) * n / (GBPS * 1e6),
        demand=demand,
        share=share,
        weight=weight,
        cov=cov,
        count=np.ones(3),
        pair=np.repeat(np.repeat(by_model, n_sizes, axis=0), n_sizes, axis=1),
        residual=quantiles(residual - np.median(residual)),
        device_slowdown=paths.device_slowdown,
        host_slowdown=paths.host_slowdown,
        dispatch_ms=DISPATCH_MS,
        source="built by envs.profiles.gpu_a100 from public numbers, not measured by us: abacus_a100 (A100 40 GB, PyTorch "
        "fp16, one process per model under MPS, no partitions; 64,000 ends of co-runs of two and three models); batch sizes "
        f"1 and 2 by rule; copies from sizes at {GBPS} GB/s; dispatch {DISPATCH_MS} ms and copy set-up {COPY_MS} ms assumed",
    )


INPUT_BYTES = {"inception_v3": INCEPTION_BYTES}


@dataclass
class A100ProfileConfig:
    """What to build from.

    Attributes:
        data: folder that holds abacus_a100.
        out: profile to write (JSON).
    """

    data: str = "../shared/data"
    out: str = "envs/profiles/data/gpu-a100.json"


def run(config: A100ProfileConfig) -> None:
    """Build and write the profile, and say what is in it."""
    profile = build(Path(config.data), Path(config.out).stem)
    profile.save(config.out)
    print(f"{config.out}: device slowdown {profile.device_slowdown:.3f}, host slowdown {profile.host_slowdown:.3f}")
    for model, solo, share in zip(profile.models, profile.solo_ms, profile.share):
        print(f"  {model}: {np.round(solo, 2).tolist()} ms alone, device's share {np.round(share, 2).tolist()}")
    print(f"  residual p5/p50/p95 {np.round(np.quantile(profile.residual, [0.05, 0.5, 0.95]), 3).tolist()}")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run, A100ProfileConfig, argv, "python -m envs.profiles.gpu_a100", __doc__)


if __name__ == "__main__":
    sys.exit(main())
