"""The built-in workload: arrivals from a generator fitted to the statistics of real traces (data/fitted.json).

Model: a renewal process run in operational time, with the rate
    rate(t) = mean rate * exp(sum_k (s_k X_k(t) - s_k^2 / 2)),
where the X_k are independent stationary Ornstein-Uhlenbeck processes of unit variance with time constants tau_k, and
the gaps in operational time are Gamma with coefficient of variation `cv`. It is a log-Gaussian Cox process (Moller,
Syversveen and Waagepetersen, Scandinavian Journal of Statistics 25, 1998) with several time scales, generalised by the
Gamma gaps. Its index of dispersion and autocorrelation are integrals (traces.twin.theory), which traces.twin.fit inverts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from traces.arrivals import piecewise
from traces.errors import InputError

FITTED = Path(__file__).resolve().parent.parent / "data" / "fitted.json"
SCHEMA = "strait-fitted-arrivals/1"


@dataclass(frozen=True)
class TwinParameters:
    """Parameters of the generator.

    Attributes:
        rate_rps: mean rate.
        cv: coefficient of variation of the gaps in operational time.
        tau_ms: time constants of the components of the log rate.
        variance: variance of each component (s_k squared).
    """

    rate_rps: float
    cv: float
    tau_ms: tuple[float, ...]
    variance: tuple[float, ...]


def generate(parameters: TwinParameters, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals of the generator: sorted float64 ms in [0, duration_ms).

    The rate is a step function, each step a tenth of the shortest time constant (and of the duration at most).
    """
    if not (np.isfinite(duration_ms) and duration_ms > 0):
        raise InputError(f"duration_ms: {duration_ms}; must be above 0")
    # Imported here: it takes longer than all else that an environment without a twin needs.
    from scipy.signal import lfilter

    step_ms = min([duration_ms, *(tau / 10 for tau in parameters.tau_ms)])
    steps = int(np.ceil(duration_ms / step_ms))
    log_rate = np.zeros(steps)
    for tau_ms, variance in zip(parameters.tau_ms, parameters.variance):
        keep = np.exp(-step_ms / tau_ms)
        noise = rng.standard_normal(steps)
        noise[1:] *= np.sqrt(1 - keep**2)
        # An AR(1) recursion; its first value has the stationary distribution.
        log_rate += np.sqrt(variance) * lfilter([1.0], [1.0, -keep], noise) - variance / 2
    edges = np.minimum(np.arange(steps + 1) * step_ms, duration_ms)
    return piecewise(edges, parameters.rate_rps * np.exp(log_rate), rng, parameters.cv)


def twin(name: str, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals like those of the real trace `name` ("azure_llm_2023", "mooncake"): sorted ms in [0, duration_ms).

    Like the real one, a twin has slow swings, so the rate of a short run may be well off the mean rate; rescale it
    where that matters.

    Raises:
        InputError: no trace of that name was fitted.
    """
    return generate(parameters(name), duration_ms, rng)


def twin_names() -> tuple[str, ...]:
    """Names of the fitted traces."""
    return tuple(_fitted(FITTED)["traces"])


def parameters(name: str, path: Path = FITTED) -> TwinParameters:
    """Fitted parameters of a trace; InputError when it was not fitted."""
    traces = _fitted(path)["traces"]
    if name not in traces:
        raise InputError(f"twin: {name!r} was not fitted; fitted are {', '.join(traces)}")
    found = traces[name]["parameters"]
    return TwinParameters(found["rate_rps"], found["cv"], tuple(found["tau_ms"]), tuple(found["variance"]))


@cache
def _fitted(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; python -m traces.twin.fit writes it") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema is not {SCHEMA!r}")
    return data
