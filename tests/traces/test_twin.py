"""The fitted generator: theory against simulation, fitted parameters against the real traces, and real_or_twin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from traces.arrivals import autocorrelation, dispersion, gamma_renewal
from traces.errors import InputError
from traces.formats import load_arrivals
from traces.twin import fit, known
from traces.twin import generator as twin
from traces.twin.generator import TwinParameters
from traces.twin.theory import count_variance, expected_autocorrelation, expected_dispersion, renewal_variance

NAMES = ("azure_llm_2023", "mooncake")
TARGETS = {name: trace["target"] for name, trace in json.loads(twin.FITTED.read_text())["traces"].items()}


def records(parameters: TwinParameters, duration_ms: float, runs: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [twin.generate(parameters, duration_ms, rng) for _ in range(runs)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_renewal_variance_is_what_simulation_shows(cv: float) -> None:
    windows_ms = [100.0, 500.0, 2e3, 8e4]  # 0.5 to 400 mean gaps
    times = gamma_renewal(5.0, 4e7, cv, np.random.default_rng(1))
    expected = renewal_variance(cv, np.array(windows_ms) * 5e-3) / (np.array(windows_ms) * 5e-3)
    assert expected[:3] == pytest.approx(dispersion(times, windows_ms[:3], 4e7), rel=0.05)
    assert expected[-1] == pytest.approx(cv**2, rel=0.05)  # its limit


def test_count_variance_without_modulation_is_that_of_the_renewal_process() -> None:
    plain = TwinParameters(10.0, 1.0, (), ())
    assert count_variance(plain, np.array([100.0, 1000.0])) == pytest.approx([1.0, 10.0])


def test_expected_statistics_are_what_generated_records_show() -> None:
    parameters = TwinParameters(40.0, 1.5, (500.0, 20_000.0), (0.3, 0.1))
    windows, lags, length = [50.0, 1e3, 1e4], [1, 2, 5], 4e5
    runs = records(parameters, length, 60)
    assert np.mean([len(run) for run in runs]) / length * 1e3 == pytest.approx(40.0, rel=0.03)
    spread = np.mean([dispersion(run, windows, length) for run in runs], axis=0)
    assert spread == pytest.approx(expected_dispersion(parameters, np.array(windows), length), rel=0.1)
    related = np.mean([autocorrelation(run, 5e3, lags, length) for run in runs], axis=0)
    assert related == pytest.approx(expected_autocorrelation(parameters, 5e3, np.array(lags), length), abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_has_the_statistics_of_its_real_trace(name: str) -> None:
    """Stated tolerance, of the mean over 100 records as long as the trace.

    Rate 6 %; index of dispersion 12 % for windows up to 30 s and 25 % for longer ones, of which an hour holds few;
    autocorrelation 0.15 for lags up to 100 s. (Longer lags see the one hump of that one hour, which no stationary
    process has on average over an hour's records.)
    """
    target = TARGETS[name]
    runs = records(twin.parameters(name), target["duration_ms"], 100, seed=5)
    windows = np.array(target["windows_ms"])
    rate = np.mean([len(run) for run in runs]) / target["duration_ms"] * 1e3
    assert rate == pytest.approx(target["rate_rps"], rel=0.06)
    found = np.mean([dispersion(run, windows, target["duration_ms"]) for run in runs], axis=0)
    real = np.array(target["dispersion"])
    assert found[windows <= 3e4] == pytest.approx(real[windows <= 3e4], rel=0.12)
    assert found[windows > 3e4] == pytest.approx(real[windows > 3e4], rel=0.25)
    lags = [lag for lag in target["lags"] if lag * target["lag_window_ms"] <= 1e5]
    related = [autocorrelation(run, target["lag_window_ms"], lags, target["duration_ms"]) for run in runs]
    assert np.mean(related, axis=0) == pytest.approx(target["autocorrelation"][: len(lags)], abs=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_the_statistics_of_the_real_trace(name: str, shared_data: Path) -> None:
    trace = load_arrivals(shared_data / known.KNOWN[name].file)
    found = fit.statistics(trace.arrival_ms, trace.duration_ms, trace.resolution_ms)
    target = TARGETS[name]
    for field in ("rate_rps", "windows_ms", "lags", "arrivals"):
        assert found[field] == pytest.approx(target[field], rel=1e-4)
    assert found["dispersion"] == pytest.approx(target["dispersion"], rel=1e-3)
    assert found["autocorrelation"] == pytest.approx(target["autocorrelation"], abs=1e-3)


def test_fitting_finds_the_parameters_that_made_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TAUS_MS", (300.0, 3e3, 3e4, 3e5))  # fewer than usual, for a fast test
    truth = TwinParameters(20.0, 1.6, (3e3, 3e5), (0.2, 0.1))
    windows, lags, length = np.array(fit.WINDOWS_MS), np.array(fit.LAGS), 1e8
    target = {
        "duration_ms": length,
        "resolution_ms": 0.0,
        "rate_rps": 20.0,
        "windows_ms": windows.tolist(),
        "dispersion": expected_dispersion(truth, windows, length).tolist(),
        "lag_window_ms": fit.LAG_WINDOW_MS,
        "lags": lags.tolist(),
        "autocorrelation": expected_autocorrelation(truth, fit.LAG_WINDOW_MS, lags, length).tolist(),
    }
    found = fit.fit(target)
    assert expected_dispersion(found, windows, length) == pytest.approx(target["dispersion"], rel=0.05)
    assert found.tau_ms == truth.tau_ms
    assert found.variance == pytest.approx(truth.variance, rel=0.05)
    assert found.cv == pytest.approx(1.6, rel=0.05)


def test_the_command_fits_a_users_trace_and_writes_no_arrival_of_it(tmp_path: Path) -> None:
    times = twin.generate(TwinParameters(20.0, 1.0, (3e3,), (0.3,)), 3e5, np.random.default_rng(2))
    path, out = tmp_path / "mine.csv", tmp_path / "out" / "fitted.json"
    path.write_text("arrival_ms\n" + "\n".join(map(repr, times.tolist())))
    assert fit.main([f"cafe={path}", "--out", str(out)]) == 0
    data = json.loads(out.read_text())
    assert list(data["traces"]) == ["cafe"] and len(out.read_text()) < 5_000
    assert data["traces"]["cafe"]["target"]["arrivals"] == len(times)
    parameters = twin.parameters("cafe", out)
    assert parameters.rate_rps == pytest.approx(len(times) / times[-1] * 1e3, rel=1e-4)
    assert sum(parameters.variance) > 0.1


@pytest.mark.parametrize("text", ["arrival_ms\n1\nx\n", "arrival_ms\n1\n2\n", "what\n1\n"])
def test_the_command_answers_a_bad_trace_with_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    out = tmp_path / "fitted.json"
    assert fit.main([str(tmp_path / "t.csv"), "--out", str(out)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and not out.exists()


@pytest.mark.parametrize("name", NAMES)
def test_twins_are_sorted_within_the_duration_and_seeded(name: str) -> None:
    for length in (0.5, 1e3, 1e5):
        times = twin.twin(name, length, np.random.default_rng(1))
        assert np.all(np.diff(times) >= 0) and np.all((times >= 0) & (times < length))
        assert np.array_equal(times, twin.twin(name, length, np.random.default_rng(1)))


def test_unknown_names_and_durations_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="'nope' was not fitted; fitted are azure_llm_2023, mooncake"):
        twin.twin("nope", 10, rng)
    with pytest.raises(InputError, match="'nope' is no file and no known trace"):
        known.real_or_twin("nope", 10, rng)
    for length in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="duration_ms"):
            known.real_or_twin("mooncake", length, rng, shared=tmp_path)
    (tmp_path / "fitted.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="schema"):
        twin.parameters("mooncake", tmp_path / "fitted.json")


def test_the_twin_is_used_where_the_trace_is_absent(tmp_path: Path) -> None:
    found = known.real_or_twin("azure_llm_2023", 6e4, np.random.default_rng(0), shared=tmp_path)
    assert found.name == "azure_llm_2023-twin" and 0 < found.duration_ms < 6e4
    rates = [
        len(known.real_or_twin("mooncake", 6e4, np.random.default_rng(n), shared=tmp_path, rate_rps=50)) / 60
        for n in range(30)
    ]
    assert np.mean(rates) == pytest.approx(50, rel=0.1)


def test_a_given_file_is_windowed_at_random_starts_after_rescaling(tmp_path: Path) -> None:
    path = tmp_path / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    path.parent.mkdir()
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_ms\n" + "\n".join(str(n * 10) for n in range(1, 10_001)))  # 100 requests/s for 100 s
    seen = set()
    for seed in range(5):
        found = known.real_or_twin(str(trace), 1_000, np.random.default_rng(seed), rate_rps=200)
        assert found.name == "mine" and len(found) in (199, 200, 201) and found.duration_ms < 1_000
        seen.add(round(float(found.arrival_ms[0]), 6))
    assert len(seen) == 5
    whole = known.real_or_twin(str(trace), 1e9, np.random.default_rng(0))
    assert len(whole) == 10_000
    named = known.real_or_twin("mooncake", 1e9, np.random.default_rng(0), shared=trace)
    assert named.name == "mooncake" and len(named) == 10_000


@pytest.mark.parametrize("name", NAMES)
def test_the_real_trace_is_used_where_it_is(name: str, shared_data: Path) -> None:
    found = known.real_or_twin(name, 60_000, np.random.default_rng(3), shared=shared_data, rate_rps=100)
    assert found.name == name and 2_000 < len(found) < 15_000 and found.duration_ms < 60_000
