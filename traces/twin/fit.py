"""Fit the built-in arrival generator to the statistics of real traces.

    python -m traces.twin.fit azure_llm_2023 mooncake                  # known traces, from ../shared/data
    python -m traces.twin.fit mine=path/to/trace.csv --out fitted.json # any trace in a known format

What is written are parameters and statistics of each trace, with its source; no arrival of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from traces.arrivals import autocorrelation, dispersion
from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_write_text, rounded
from traces.formats import load_arrivals
from traces.settings import check_settings
from traces.twin.generator import FITTED, SCHEMA, TwinParameters
from traces.twin.known import KNOWN, SHARED
from traces.twin.theory import expected_autocorrelation, expected_dispersion

WINDOWS_MS = (100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5)
LAG_WINDOW_MS = 1e4
LAGS = (1, 2, 5, 10, 20, 40)
TAUS_MS = (300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6)
MIN_WINDOWS = 8
MIN_ARRIVALS = 500
MAX_RISE = 0.02
DIGITS = 6  # of what is written, to keep the file short and the same on every machine


def statistics(arrival_ms: np.ndarray, duration_ms: float, resolution_ms: float = 0.0) -> dict:
    """Rate, index of dispersion by window and autocorrelation by lag of a record, as fitted.json keeps them.

    Windows shorter than the resolution of the record, or of which fewer than eight fit, are left out.
    """
    windows = [w for w in WINDOWS_MS if w >= resolution_ms and duration_ms >= MIN_WINDOWS * w]
    lag_window_ms = max(LAG_WINDOW_MS, resolution_ms)
    lags = [lag for lag in LAGS if duration_ms >= MIN_WINDOWS * lag * lag_window_ms]
    if len(arrival_ms) < MIN_ARRIVALS or len(windows) < 2:
        raise InputError(f"{len(arrival_ms)} arrivals in {duration_ms / 1e3:g} s are too few to fit a generator to")
    return {
        "arrivals": len(arrival_ms),
        "duration_ms": duration_ms,
        "resolution_ms": resolution_ms,
        "rate_rps": len(arrival_ms) / duration_ms * 1e3,
        "windows_ms": windows,
        "dispersion": dispersion(arrival_ms, windows, duration_ms).tolist(),
        "lag_window_ms": lag_window_ms,
        "lags": lags,
        "autocorrelation": autocorrelation(arrival_ms, lag_window_ms, lags, duration_ms).tolist(),
    }


def fit(target: dict) -> TwinParameters:
    """Parameters whose expected statistics, in a record as long as the target's, are nearest to the target's.

    Residuals are the log ratio of dispersions over its sampling error, and the difference of autocorrelations over 0.1.
    From all time constants, those that earn least are dropped one by one while the cost rises by at most `MAX_RISE`.
    """
    # What happens below the resolution is not known: gaps are then taken as exponential.
    free_cv = target["resolution_ms"] == 0
    taus = tuple(tau for tau in TAUS_MS if target["windows_ms"][0] <= tau <= target["duration_ms"])
    starts = [TwinParameters(0.0, cv, taus, (var,) * len(taus)) for cv in (0.9, 1.2) for var in (0.0025, 0.04)]
    best, cost = min((_least_squares(target, start, free_cv) for start in starts), key=lambda pair: pair[1])
    limit = cost * (1 + MAX_RISE) + 0.05
    while len(best.tau_ms) > 1:
        fewer = [_without(best, number) for number in range(len(best.tau_ms))]
        shorter, cost = min((_least_squares(target, start, free_cv) for start in fewer), key=lambda pair: pair[1])
        if cost > limit:
            break
        best = shorter
    variance = tuple(round(float(value), 6) for value in best.variance)
    return TwinParameters(best.rate_rps, round(best.cv, 4), best.tau_ms, variance)


def _without(parameters: TwinParameters, number: int) -> TwinParameters:
    """Parameters less one component, whose variance goes to the one next to it in time."""
    taus, variance = list(parameters.tau_ms), list(parameters.variance)
    lost = variance.pop(number)
    taus.pop(number)
    variance[max(number - 1, 0)] += lost
    return TwinParameters(parameters.rate_rps, parameters.cv, tuple(taus), tuple(variance))


def _least_squares(target: dict, start: TwinParameters, free_cv: bool) -> tuple[TwinParameters, float]:
    """Best variances (and cv) for the time constants of `start`, and the cost reached."""
    taus = start.tau_ms
    windows, lags = np.array(target["windows_ms"]), np.array(target["lags"])
    observed, correlation = np.array(target["dispersion"]), np.array(target["autocorrelation"])
    duration_ms = target["duration_ms"]
    error = np.hypot(np.sqrt(2 / (duration_ms / windows)), 0.03)

    def unpack(x: np.ndarray) -> TwinParameters:
        # Standard deviations are the unknowns: of them, unlike of variances, none is stuck near a bound.
        return TwinParameters(target["rate_rps"], float(x[-1]) if free_cv else 1.0, taus, tuple(x[: len(taus)] ** 2))

    def residuals(x: np.ndarray) -> np.ndarray:
        guess = unpack(x)
        ratio = np.log(np.maximum(expected_dispersion(guess, windows, duration_ms), 1e-3) / observed) / error
        if not len(lags):
            return ratio
        expected = expected_autocorrelation(guess, target["lag_window_ms"], lags, duration_ms)
        return np.concatenate([ratio, (expected - correlation) / 0.1])

    lower = np.array([0.0] * len(taus) + [0.3] * free_cv)
    upper = np.array([1.5] * len(taus) + [4.0] * free_cv)
    first = np.array([*np.clip(np.sqrt(start.variance), 0.01, 1.4), *([start.cv] * free_cv)])
    best = least_squares(residuals, first, bounds=(lower, upper), max_nfev=80, diff_step=1e-4, ftol=1e-6)
    return unpack(best.x), float(best.cost)


@dataclass
class TwinFitConfig:
    """What to fit.

    Attributes:
        traces: known traces by name, or trace files as PATH or NAME=PATH; also the words in front of the first flag.
        out: file to write; by default the one that ships.

    Raises:
        InputError: no trace is given.
    """

    traces: list[str]
    out: str = str(FITTED)

    def __post_init__(self) -> None:
        check_settings(self, "--", not_empty=["traces"])


def fit_all(config: TwinFitConfig) -> None:
    """Fit every trace and write the parameters; what was found is printed."""
    entries = {}
    for text in config.traces:
        name, path, source = _resolve(text)
        trace = load_arrivals(path, name=name)
        print(trace.describe(), file=sys.stderr)
        target = statistics(trace.arrival_ms, trace.duration_ms, trace.resolution_ms)
        found = fit(target)
        _report(target, found)
        entries[name] = {"source": source, "target": target, "parameters": asdict(found)}
    atomic_write_text(config.out, json.dumps({"schema": SCHEMA, "traces": rounded(entries, DIGITS)}, indent=1) + "\n")
    print(json.dumps({"out": config.out, "traces": list(entries)}))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(fit_all, TwinFitConfig, argv, "python -m traces.twin.fit", __doc__, leading="traces")


def _resolve(text: str) -> tuple[str, Path, str]:
    """Name, file and source of a trace given on the command line."""
    if text in KNOWN:
        return text, SHARED / KNOWN[text].file, KNOWN[text].citation
    name, _, rest = text.rpartition("=")
    path = Path(rest)
    for known, trace in KNOWN.items():
        if not name and path.name == Path(trace.file).name:
            return known, path, trace.citation
    return name or path.name.split(".")[0], path, f"file {path.name}, given by a user"


def _report(target: dict, found: TwinParameters) -> None:
    """Print the parameters, and the statistics of the trace beside those that they are expected to give."""
    windows, lags, length = np.array(target["windows_ms"]), np.array(target["lags"]), target["duration_ms"]
    labels = [f"dispersion {w / 1e3:g} s" for w in windows]
    labels += [f"correlation {lag * target['lag_window_ms'] / 1e3:g} s" for lag in lags]
    expected = [*expected_dispersion(found, windows, length)]
    expected += [*expected_autocorrelation(found, target["lag_window_ms"], lags, length)]
    print(f"  parameters {json.dumps(rounded(asdict(found), DIGITS))}", file=sys.stderr)
    print(f"  {'':18}{'trace':>10}{'twin':>10}", file=sys.stderr)
    for row in zip(labels, [*target["dispersion"], *target["autocorrelation"]], expected):
        print("  {:18}{:10.3f}{:10.3f}".format(*row), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
