"""A profile: what is known of the models and the device, as arrays. Built from measurements by ``envs.fit``.

It holds two things that are kept apart on purpose: what the scheduler is told (solo latencies, demands, the prior of its
predictor: ``tables``) and what the simulated device does (``truth``: count and pair slowdowns, residuals).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from envs.scheduling.state import (
    CORES,
    DISPATCH,
    FORGETTING,
    MEMORY,
    N_DEMAND,
    N_FEATURES,
    QUANTILE_RATE,
    QUANTILES,
    SPEED_RATE,
    TURN_MS,
    UNIT,
    Tables,
)
from envs.simulation.records import Truth
from traces.errors import InputError
from traces.files import atomic_write_text

SCHEMA = "strait-profile/2"
DATA = Path(__file__).resolve().parent / "data"
_ARRAYS = (
    "solo_ms", "h2d_ms", "d2h_ms", "demand", "prior", "prior_cov", "count", "pair", "residual", "weight_bytes", "load_ms",
    "speed",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """Models and device as arrays: M models, B batch sizes, K streams. Times in ms.

    Attributes:
        name: what it was measured on.
        models: names. batch_sizes: ascending.
        cores: stream k is pinned to core k % cores, and the batches on one core are time-sliced; 0 where every stream is
            a core of its own (a GPU).
        solo_ms: (M, B) execution alone. h2d_ms: (M, B) copy in. d2h_ms: (M, B) copy back.
        demand: (M, B, 3) compute, memory bandwidth and cache as fractions of the device.
        prior: (F,) predictor weights fitted offline. prior_cov: (F, F) their covariance.
        count: (n + 1,) slowdown by number of batches that execute on one core, index 0 unused; beyond n it is linear.
        pair: (M*B, M*B) log slowdown by co-runner on another core.
        residual: (R,) measured log residuals.
        drift: standard deviation of the drift of log execution times, and the time between its knots in ms.
        weight_bytes: (M,) bytes of weights. load_ms: (M,) time to bring them into the device's memory.
        memory_bytes: memory for weights; 0: all models fit.
        dispatch_ms: cost of a dispatch before its copy begins.
        completion_ms: time from a batch's end until the scheduler sees it. timer_ms: by how much a timer rings late.
        crowded_ms: what the hand-over of a batch and the sight of its end take longer while batches share another core, and
            while they share its own. These three are of the truth alone; a live engine measures them (envs.profiles.delays).
        turn_ms: length of the turns that batches on one core take, the newest first; 0: they share it evenly.
        straggler: probability and factor of a straggler.
        speed: (C, S) log of the factor on execution times on each core over time, as it was measured, every ``drift[1]`` ms: it
            takes the place of the drift, and each episode begins anywhere in it. Core k is row k % C; S = 0: there is none.
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
    prior: np.ndarray
    prior_cov: np.ndarray
    count: np.ndarray
    pair: np.ndarray
    residual: np.ndarray
    dispatch_ms: float = 0.1
    completion_ms: float = 0.0
    timer_ms: float = 0.0
    crowded_ms: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    straggler: tuple[float, float] = (0.0, 1.0)
    drift: tuple[float, float] = (0.0, 1000.0)
    weight_bytes: np.ndarray = None  # type: ignore[assignment]  # zeros when not given
    load_ms: np.ndarray = None  # type: ignore[assignment]
    memory_bytes: float = 0.0
    source: str = ""
    forgetting: float = 0.998
    quantile_rate: float = 0.05
    speed_rate: float = 0.2
    turn_ms: float = 0.0
    speed: np.ndarray = None  # type: ignore[assignment]  # none when not given

    def __post_init__(self) -> None:
        m, b = len(self.models), len(self.batch_sizes)
        for key in ("weight_bytes", "load_ms"):
            if getattr(self, key) is None:
                object.__setattr__(self, key, np.zeros(m))
        if self.speed is None:
            object.__setattr__(self, "speed", np.zeros((1, 0)))
        if self.speed.ndim != 2 or len(self.speed) == 0:
            raise InputError(
                f"profile {self.name!r}: field 'speed' has shape {self.speed.shape}, expected (cores, knots)"
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
            "prior": (N_FEATURES,),
            "prior_cov": (N_FEATURES, N_FEATURES),
            "pair": (m * b, m * b),
            "weight_bytes": (m,),
            "load_ms": (m,),
        }
        for key, shape in shapes.items():
            got = np.shape(getattr(self, key))
            if got != shape:
                raise InputError(f"profile {self.name!r}: field {key!r} has shape {got}, expected {shape}")
        for key in _ARRAYS:
            if not np.all(np.isfinite(getattr(self, key))):
                raise InputError(f"profile {self.name!r}: field {key!r} has a value that is not finite")
        if not np.all(self.solo_ms > 0):
            raise InputError(f"profile {self.name!r}: solo latencies must be above 0 ms")

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
            pair=self.pair[np.ix_(flat, flat)],
            weight_bytes=self.weight_bytes[at],
            load_ms=self.load_ms[at],
        )

    def tables(self) -> Tables:
        """What the scheduler is told."""
        device = np.zeros((1, 9))
        device[0, CORES] = self.cores
        device[0, DISPATCH] = self.dispatch_ms
        device[0, FORGETTING] = self.forgetting
        device[0, QUANTILE_RATE] = self.quantile_rate
        device[0, UNIT] = self.unit_ms
        device[0, SPEED_RATE] = self.speed_rate
        device[0, MEMORY] = self.memory_bytes
        device[0, TURN_MS] = self.turn_ms
        spread = np.sqrt(np.var(self.residual) + self.drift[0] ** 2)
        quantile = np.exp(np.median(self.residual) + spread * ndtri(np.array(QUANTILES)))
        return Tables(
            size=np.array(self.batch_sizes, np.int32),
            solo=self.solo_ms[None].copy(),
            h2d=self.h2d_ms[None].copy(),
            d2h=self.d2h_ms[None].copy(),
            log_rate=np.log(np.array(self.batch_sizes) * self.unit_ms / self.solo_ms)[None],
            demand=self.demand[None].copy(),
            weights=self.weight_bytes[None].copy(),
            load=self.load_ms[None].copy(),
            device=device,
            quantile=quantile[None],
            prior=self.prior[None].copy(),
            prior_cov=self.prior_cov[None].copy(),
        )

    def truth(self, n_streams: int, weights: tuple[float, float] = (5.0, 1.0), noise: bool = True) -> Truth:
        """What the simulated device does.

        Args:
            n_streams: number of streams K.
            weights: what a violation of high and of low priority costs in the reward.
            noise: whether to draw residuals and stragglers.
        """
        count = np.ones(n_streams + 1)
        have = len(self.count)
        for n in range(1, n_streams + 1):
            # Beyond what was measured the last step of the slowdown goes on.
            count[n] = self.count[n] if n < have else count[n - 1] + (self.count[-1] - self.count[-2])
        p, x = self.straggler if noise else (0.0, 1.0)
        drift = (self.drift[0] * noise, self.drift[1])
        return Truth(
            solo=self.solo_ms[None].copy(),
            h2d=self.h2d_ms[None].copy(),
            d2h=self.d2h_ms[None].copy(),
            load=self.load_ms[None].copy(),
            count=count[None],
            pair=self.pair[None].copy(),
            residual=np.exp(self.residual if noise else np.zeros(1))[None],
            device=np.array(
                [[self.dispatch_ms, p, x, *drift, *weights, self.completion_ms, self.timer_ms, self.turn_ms, 1.0]]
            ),
            crowded=np.array([self.crowded_ms], float).reshape(1, 2, 2),
            speed=self.speed[np.arange(n_streams) % len(self.speed), : None if noise else 0][None].copy(),
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        data = asdict(self) | {"schema": SCHEMA}
        for key in _ARRAYS:
            data[key] = np.round(np.asarray(data[key]), 6).tolist()
        atomic_write_text(path, json.dumps(data))

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Read a profile: a path to a JSON file, or the name of one that ships with the project.

        Raises:
            InputError: no such file, not JSON, another schema, or a field that is missing or malformed.
        """
        path = Path(path)
        if not path.is_file() and path.suffix == "" and (DATA / f"{path}.json").is_file():
            path = DATA / f"{path}.json"
        if not path.is_file():
            shipped = sorted(p.stem for p in DATA.glob("*.json"))
            raise InputError(f"{path}: no such profile; give a JSON file or one of {', '.join(shipped)}")
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InputError(f"{path}: field 'schema' must be {SCHEMA!r}; was this file written by envs.fit?")
        for key in ("schema", "extra"):  # older files have an empty "extra"
            data.pop(key, None)
        try:
            data.setdefault("speed", [[]])
            for key in _ARRAYS:
                data[key] = np.asarray(data[key], float)
            data["models"] = tuple(data["models"])
            data["batch_sizes"] = tuple(data["batch_sizes"])
            data["straggler"] = tuple(data["straggler"])
            data["drift"] = tuple(data["drift"])
            return Profile(**data)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from None
            raise InputError(f"{path}: malformed or missing field ({error})") from None


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
    prior = np.zeros(N_FEATURES)
    prior[3], prior[5] = 0.15, 0.1
    return Profile(
        name=f"synthetic-{seed}",
        models=tuple(f"model{i}" for i in range(n_models)),
        batch_sizes=sizes,
        cores=cores,
        solo_ms=solo,
        h2d_ms=0.02 + 0.05 * np.ones((n_models, 1)) * n,
        d2h_ms=0.02 + 0.005 * np.ones((n_models, 1)) * n,
        demand=demand,
        prior=prior,
        prior_cov=0.1 * np.eye(N_FEATURES),
        count=count,
        pair=pair,
        residual=0.05 * r.standard_normal(256),
        source="made up by envs.profiles.profile.synthetic_profile",
    )
