"""A profile: what is known of the models and the device, as arrays. Built from measurements by ``envs.fit``.

It holds two things that are kept apart on purpose: what the scheduler is told (solo latencies, demands, the prior of its
predictor: ``tables``) and what the simulated device does (``truth``: count and pair slowdowns, residuals).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from envs.profiles.truth import Truth, truth_device_t
from envs.scheduling.predictor import (
    CACHE_BOTH,
    COMPUTE_BOTH,
    HOST_OTHERS,
    HOST_SLACK,
    MEMORY_BOTH,
    N_DEVICE_FEATURES,
)  # fmt: skip
from envs.scheduling.state import COMPUTE, N_DEMAND, N_FEATURES, QUANTILES, Tables, device_t, records
from traces.errors import InputError
from traces.files import atomic_write_text
from traces.settings import check_settings

SCHEMA = "strait-profile/3"
MOST_LOG = 10.0  # of a factor on a time; one that is larger is no measurement, and overflows
DATA = Path(__file__).resolve().parent / "data"
_ARRAYS = (
    "solo_ms", "h2d_ms", "d2h_ms", "demand", "share", "weight", "cov", "count", "pair", "residual", "log_slowdown",
)  # fmt: skip


# What the truth takes over as it is.
TRUTH_FIELDS = (
    "device_slowdown", "host_slowdown", "dispatch_ms", "completion_ms", "timer_ms", "time_slice_ms", "drift_knot_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """Models and device as arrays: M models, B batch sizes, K streams. Times in ms.

    Attributes:
        name: what it was measured on.
        models: names.
        batch_sizes: ascending.
        cores: stream k is pinned to core k % cores, and the batches on one core are time-sliced; 0 where every stream is
            a core of its own (a GPU).
        solo_ms: (M, B) execution alone.
        h2d_ms: (M, B) copy in.
        d2h_ms: (M, B) copy back.
        demand: (M, B, 3) compute, memory bandwidth and cache as fractions of the device.
        share: (M, B) share of the solo execution in which the device, not the host that launches work, is the bottleneck.
        weight: (F,) weights that the scheduler's predictor starts from.
        cov: (F, F) their covariance.
        device_slowdown: by how much the device's part of a batch's work is stretched for each ms of a co-runner's share.
        host_slowdown: by how much the host's part is, for each co-runner.
        count: (n + 1,) slowdown by number of batches that execute on one core, index 0 unused; beyond n it is linear.
        pair: (M*B, M*B) log slowdown by a co-runner on another core.
        residual: (R,) measured log residuals.
        dispatch_ms: cost of a dispatch before its copy begins.
        completion_ms: from a batch's end until the scheduler sees it. Of the truth alone, as the next two are; a live engine
            measures them (envs.profiles.delays).
        timer_ms: by how much a timer rings late.
        shared_core_wait_ms: what the hand-over of a batch and the sight of its end take longer while batches share another
            core, and while they share its own.
        time_slice_ms: of the batches on a shared core, the newest first; 0: they share it evenly.
        drift_spread: standard deviation of the drift of log execution times.
        drift_knot_ms: time between its knots.
        log_slowdown: (C, S) log of the factor on execution times on each core over time, as it was measured at every knot: it
            takes the place of the drift, and each episode begins anywhere in it. Core k is row k % C; S = 0: there is none.
        forgetting: factor of the scheduler's online predictor.
        quantile_rate: learning rate of its calibrated quantiles.
        log_slowdown_rate: learning rate of its estimate of the device's log slowdown.
        source: where the numbers come from.
    """

    name: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    cores: float
    solo_ms: np.ndarray
    h2d_ms: np.ndarray
    d2h_ms: np.ndarray
    demand: np.ndarray
    share: np.ndarray
    weight: np.ndarray
    cov: np.ndarray
    count: np.ndarray
    pair: np.ndarray
    residual: np.ndarray
    device_slowdown: float = 0.0
    host_slowdown: float = 0.0
    dispatch_ms: float = 0.1
    completion_ms: float = 0.0
    timer_ms: float = 0.0
    shared_core_wait_ms: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    time_slice_ms: float = 0.0
    drift_spread: float = 0.0
    drift_knot_ms: float = 1000.0
    log_slowdown: np.ndarray = field(default_factory=lambda: np.zeros((1, 0)))
    forgetting: float = 0.998
    quantile_rate: float = 0.05
    log_slowdown_rate: float = 0.2
    source: str = ""

    def __post_init__(self) -> None:
        m, b = len(self.models), len(self.batch_sizes)
        at_least = dict.fromkeys((*TRUTH_FIELDS, "cores", "drift_spread"), 0) | {"batch_sizes": 1}
        above = dict.fromkeys(("drift_knot_ms", "forgetting", "quantile_rate", "log_slowdown_rate"), 0)
        most = dict.fromkeys(("forgetting", "quantile_rate", "log_slowdown_rate"), 1)
        check_settings(self, f"profile {self.name!r}: field ", at_least, above, most, ["models"])
        if len(set(self.models)) < m:
            raise InputError(f"profile {self.name!r}: field 'models' names one twice: {', '.join(self.models)}")
        if self.log_slowdown.ndim != 2 or len(self.log_slowdown) == 0:
            raise InputError(
                f"profile {self.name!r}: field 'log_slowdown' has shape {self.log_slowdown.shape}, expected (cores, knots)"
            )
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            raise InputError(
                f"profile {self.name!r}: batch sizes {list(self.batch_sizes)} must be ascending, without repeats"
            )
        shapes = {
            "solo_ms": (m, b),
            "h2d_ms": (m, b),
            "d2h_ms": (m, b),
            "demand": (m, b, N_DEMAND),
            "share": (m, b),
            "weight": (N_FEATURES,),
            "cov": (N_FEATURES, N_FEATURES),
            "pair": (m * b, m * b),
        }
        for key, shape in shapes.items():
            got = np.shape(getattr(self, key))
            if got != shape:
                raise InputError(f"profile {self.name!r}: field {key!r} has shape {got}, expected {shape}")
        for key in _ARRAYS:
            if not np.all(np.isfinite(getattr(self, key))):
                raise InputError(f"profile {self.name!r}: field {key!r} has a value that is not finite")
        if self.count.ndim != 1 or len(self.count) < 2 or not np.all(self.count[1:] > 0):
            raise InputError(
                f"profile {self.name!r}: field 'count' must be two or more numbers, above 0 from the second on"
            )
        if self.residual.ndim != 1 or len(self.residual) == 0:
            raise InputError(f"profile {self.name!r}: field 'residual' must be a list of numbers, at least one")
        if not np.all(self.solo_ms > 0):
            raise InputError(f"profile {self.name!r}: solo latencies must be above 0 ms")
        for key in ("h2d_ms", "d2h_ms", "demand", "share"):
            if np.any(getattr(self, key) < 0):
                raise InputError(f"profile {self.name!r}: field {key!r} has a value below 0")
        for key in ("residual", "log_slowdown", "pair"):
            if np.any(np.abs(getattr(self, key)) > MOST_LOG):
                raise InputError(f"profile {self.name!r}: field {key!r} has a log of a factor beyond {MOST_LOG:g}")

    @property
    def unit_ms(self) -> float:
        """Time scale of the observation: mean solo latency at batch size 1, in ms."""
        return float(np.mean(self.solo_latency_ms))

    @property
    def solo_latency_ms(self) -> np.ndarray:
        """(M,) copies and execution of one request alone on the device, in ms."""
        return self.h2d_ms[:, 0] + self.solo_ms[:, 0] + self.d2h_ms[:, 0]

    def index(self, model: str) -> int:
        """Index of a model by name. Raises InputError when the profile lacks it."""
        if model not in self.models:
            raise InputError(f"profile {self.name!r} lacks model {model!r}; it has {', '.join(self.models)}")
        return self.models.index(model)

    def select(self, models: tuple[str, ...] | list[str]) -> Profile:
        """The profile of some of its models, in the order given."""
        at = np.array([self.index(m) for m in models])
        b = len(self.batch_sizes)
        flat = (at[:, None] * b + np.arange(b)).ravel()
        return replace(
            self,
            models=tuple(models),
            solo_ms=self.solo_ms[at],
            h2d_ms=self.h2d_ms[at],
            d2h_ms=self.d2h_ms[at],
            demand=self.demand[at],
            share=self.share[at],
            pair=self.pair[np.ix_(flat, flat)],
        )

    def tables(self) -> Tables:
        """What the scheduler is told."""
        device = records((1,), device_t)
        device["cores"] = self.cores
        device["mixed_batches"] = 1.0
        device["time_slice_ms"] = self.time_slice_ms
        device["dispatch_ms"] = self.dispatch_ms
        device["unit_ms"] = self.unit_ms
        device["forgetting"] = self.forgetting
        device["quantile_rate"] = self.quantile_rate
        device["log_slowdown_rate"] = self.log_slowdown_rate
        spread = np.sqrt(np.var(self.residual) + self.drift_spread**2)
        quantile = np.exp(np.median(self.residual) + spread * np.array([NormalDist().inv_cdf(q) for q in QUANTILES]))
        return Tables(
            size=np.array(self.batch_sizes, np.int32),
            solo=self.solo_ms[None].copy(),
            h2d=self.h2d_ms[None].copy(),
            d2h=self.d2h_ms[None].copy(),
            demand=self.demand[None].copy(),
            share=self.share[None].copy(),
            device=device,
            quantile=quantile[None],
            weight=self.weight[None].copy(),
            cov=self.cov[None].copy(),
        )

    def truth(self, n_streams: int, noise: bool = True) -> Truth:
        """What the simulated device does.

        Args:
            n_streams: number of streams K.
            noise: whether execution times vary and drift.
        """
        device = records((1,), truth_device_t)
        for name in TRUTH_FIELDS:
            device[name] = getattr(self, name)
        device["drift_spread"] = self.drift_spread if noise else 0.0
        device["drift_from_anywhere"] = 1.0
        core = np.arange(n_streams) % len(self.log_slowdown)
        return Truth(
            solo=self.solo_ms[None].copy(),
            h2d=self.h2d_ms[None].copy(),
            d2h=self.d2h_ms[None].copy(),
            count=counts_to(self.count, n_streams)[None],
            share=self.share.reshape(1, -1).copy(),
            pair=self.pair[None].copy(),
            residual=np.exp(self.residual if noise else np.zeros(1))[None],
            device=device,
            shared_core_wait_ms=np.array([self.shared_core_wait_ms], float).reshape(1, 2, 2),
            log_slowdown=self.log_slowdown[core, : None if noise else 0][None].copy(),
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        data = asdict(self) | {"schema": SCHEMA}
        for key in _ARRAYS:
            data[key] = np.round(np.asarray(data[key]), 6).tolist()
        atomic_write_text(path, json.dumps(data))

    @staticmethod
    def load(path: str | Path) -> Profile:
        """A profile by name: a JSON file, one that ships with the project, or a made-up one, "synthetic:SEED" or "wide:SEED".

        Raises:
            InputError: no such file, not JSON, another schema, or a field that is missing or malformed.
        """
        kind, _, seed = str(path).partition(":")
        if kind in MADE_UP:
            if seed and not seed.isdecimal():
                raise InputError(f"profile {path!r}: must be '{kind}:SEED' with a whole number")
            return MADE_UP[kind](seed=int(seed or 0))
        path = Path(path)
        if not path.is_file() and path.suffix == "" and (DATA / f"{path}.json").is_file():
            path = DATA / f"{path}.json"
        if not path.is_file():
            shipped = sorted(p.stem for p in DATA.glob("*.json"))
            raise InputError(f"{path}: no such profile; give a JSON file or one of {', '.join(shipped)}")
        try:
            data = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InputError(f"{path}: field 'schema' must be {SCHEMA!r}; write the file anew with envs.fit")
        data.pop("schema")
        try:
            for key in _ARRAYS:
                data[key] = np.asarray(data[key], float)
            data["models"] = tuple(data["models"])
            data["batch_sizes"] = tuple(data["batch_sizes"])
            return Profile(**data)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from None
            raise InputError(f"{path}: malformed or missing field ({error})") from None


def counts_to(count: np.ndarray, most: int) -> np.ndarray:
    """Slowdowns by batches on a core up to ``most`` of them: (most + 1,); beyond what was measured the last step goes on."""
    out = np.ones(max(most + 1, len(count)))
    out[: len(count)] = count
    for n in range(len(count), len(out)):
        out[n] = out[n - 1] + (count[-1] - count[-2])
    return out[: most + 1]


def predictor_start(device_weight: np.ndarray, device_cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and covariance of the predictor from those of the device path alone; what tells the paths apart is known."""
    n = len(device_weight)
    weight, cov = np.zeros(N_FEATURES), np.zeros((N_FEATURES, N_FEATURES))
    weight[:n], weight[HOST_SLACK], cov[:n, :n] = device_weight, -1.0, device_cov
    return weight, cov


def synthetic_profile(n_models: int = 6, cores: float = 2.0, seed: int = 0) -> Profile:
    """A made-up but plausible profile, for tests and for domain randomisation; not a measurement.

    Solo latencies are log-uniform from 2 to 15 ms, batching saves up to 60 % a request, slowdowns grow with the demands.
    """
    r = np.random.default_rng(seed)
    sizes = (1, 2, 4, 8)
    base = np.exp(r.uniform(np.log(2.0), np.log(15.0), n_models))
    fixed = r.uniform(0.05, 0.6, n_models)
    n = np.array(sizes)
    solo = base[:, None] * (fixed[:, None] + (1 - fixed[:, None]) * n)
    demand = np.empty((n_models, len(sizes), N_DEMAND))
    demand[:, :, 0] = r.uniform(0.1, 0.6, (n_models, 1)) * (1 - 0.3 / n)
    demand[:, :, 1] = r.uniform(0.05, 0.5, (n_models, 1)) * (0.6 + 0.4 / n)
    demand[:, :, 2] = np.clip(r.uniform(0.1, 0.8, (n_models, 1)) * n**0.2, 0, 1)
    flat = demand.reshape(-1, N_DEMAND)
    pair = 0.15 * flat[:, 1:2] * flat[:, 1][None] + 0.1 * flat[:, 2:3] * flat[:, 2][None]
    pair *= np.exp(0.3 * r.standard_normal(pair.shape))
    count = np.maximum(np.arange(9.0), 1.0)
    weight = np.zeros(N_DEVICE_FEATURES)
    weight[MEMORY_BOTH], weight[CACHE_BOTH] = 0.15, 0.1
    start, cov = predictor_start(weight, 0.1 * np.eye(N_DEVICE_FEATURES))
    return Profile(
        name=f"synthetic-{seed}",
        models=tuple(f"model{i}" for i in range(n_models)),
        batch_sizes=sizes,
        cores=cores,
        solo_ms=solo,
        h2d_ms=0.02 + 0.05 * np.ones((n_models, 1)) * n,
        d2h_ms=0.02 + 0.005 * np.ones((n_models, 1)) * n,
        demand=demand,
        share=np.ones(solo.shape),
        weight=start,
        cov=cov,
        count=count,
        pair=pair,
        residual=0.05 * r.standard_normal(256),
        source="made up by envs.profiles.profile.synthetic_profile",
    )


def wide_profile(seed: int = 0) -> Profile:
    """A made-up GPU from one where a batch fills the device to one where overlap is free; not a measurement.

    2 to 16 models, from 0.01 ms to 3 s alone: such as no single time scale fits. For tests and domain randomisation.
    """
    r = np.random.default_rng(seed)
    n_models = int(r.integers(2, 17))
    profile = synthetic_profile(n_models, cores=0.0, seed=seed)
    fastest, slowest = np.sort(np.exp(r.uniform(np.log(0.01), np.log(3000.0), 2)))
    base = np.exp(r.uniform(np.log(fastest), np.log(slowest), n_models))
    solo = profile.solo_ms / profile.solo_ms[:, :1] * base[:, None]
    # A batch uses more of the device the larger it is; what the host takes meanwhile overlaps for free.
    share = np.clip(
        r.uniform(0.1, 1.0, (n_models, 1)) * np.array(profile.batch_sizes) ** r.uniform(0.0, 0.4), 0.05, 1.0
    )
    device_slowdown, host_slowdown = r.uniform(0.0, 1.2), r.uniform(0.0, 0.1)
    demand = np.zeros_like(profile.demand)
    demand[:, :, COMPUTE] = share
    weight, cov = predictor_start(np.zeros(N_DEVICE_FEATURES), np.zeros((N_DEVICE_FEATURES, N_DEVICE_FEATURES)))
    weight[COMPUTE_BOTH], weight[HOST_OTHERS] = device_slowdown, host_slowdown
    cov[COMPUTE_BOTH, COMPUTE_BOTH], cov[HOST_OTHERS, HOST_OTHERS] = 0.02, 0.001
    copy_ms = np.minimum(0.02, 0.1 * base)[:, None] * np.ones(len(profile.batch_sizes))
    return replace(
        profile,
        name=f"wide-{seed}",
        solo_ms=solo,
        h2d_ms=copy_ms,
        d2h_ms=copy_ms,
        demand=demand,
        share=share,
        weight=weight,
        cov=cov,
        count=np.ones(3),
        pair=np.zeros_like(profile.pair),
        device_slowdown=device_slowdown,
        host_slowdown=host_slowdown,
        dispatch_ms=min(0.02, 0.1 * float(base.min())),
        source="made up by envs.profiles.profile.wide_profile",
    )


MADE_UP: dict[str, Callable[..., Profile]] = {"synthetic": synthetic_profile, "wide": wide_profile}
