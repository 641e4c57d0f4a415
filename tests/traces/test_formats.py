"""Trace formats: each is recognised, read, and refused with file and line when malformed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import InputError
from traces.formats import FORMATS, detect, load_arrivals
from traces.formats.base import spread_steps
from traces.recorded import Arrivals
from traces.workload import Workload

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,10,1\n2024-05-10 00:00:01+00:00,5,5\n"
)
FUNCTIONS_2021 = "app,func,end_timestamp,duration\na1,f1,10.5,2.5\na1,f2,9.0,3.0\na2,f1,12,0\n"
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n7.25,GPT-4,10,5,15,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6, "output_length": 5, "hash_ids": [1]}\n'
    '{"timestamp": 270, "input_length": 1, "output_length": 1}\n'
)
MOONCAKE_CSV = "timestamp_ms,input_length,output_length\n0,6,5\n270,1,1\n"
OWN = "arrival_ms,model,priority,deadline_ms\n3.5,b,high,10\n1.5,a,low,20\n"


def functions_2019(rows: list[tuple[str, dict[int, int]]]) -> str:
    lines = ["HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 1441)))]
    for name, counts in rows:
        lines.append(f"o,a,{name},http," + ",".join(str(counts.get(minute, 0)) for minute in range(1, 1441)))
    return "\n".join(lines) + "\n"


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text", "format", "times"),
    [
        ("t.csv", AZURE_2023, "azure_llm", [0, 4314.579]),
        ("t.csv", AZURE_2024, "azure_llm", [0, 990.07]),
        ("t.csv", FUNCTIONS_2021, "azure_functions_2021", [0, 2000, 6000]),
        ("t.csv", BURSTGPT, "burstgpt", [0, 2250]),
        ("t.jsonl", MOONCAKE, "mooncake", [0, 270]),
        ("t.csv", MOONCAKE_CSV, "mooncake", [0, 270]),
        ("t.csv", OWN, "own", [0, 2]),
        ("t.csv", "arrival_ms\n2\n", "own", [0]),
    ],
)
def test_each_format_is_recognised_and_read(
    tmp_path: Path, suffix: str, name: str, text: str, format: str, times: list[float]
) -> None:
    path = write(tmp_path, name + suffix, text)
    assert detect(path).name == format
    found = load_arrivals(path)
    assert found.name == "t"
    assert found.arrival_ms == pytest.approx(times, abs=1e-3)
    assert np.array_equal(load_arrivals(path, format=format).arrival_ms, found.arrival_ms)


def test_windows_line_ends_byte_order_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "\ufeff" + AZURE_2023.replace("\n", "\r\n") + "\r\n\r\n")
    assert len(load_arrivals(path)) == 2


def test_counts_per_minute_become_arrivals_in_their_minute(tmp_path: Path) -> None:
    path = write(tmp_path, "day.csv", functions_2019([("f", {1: 3, 1440: 200}), ("g", {2: 1})]))
    found = load_arrivals(path, seed=1)
    minute = (found.arrival_ms // 60_000).astype(int) + 1
    assert minute.tolist() == [1] * 3 + [2] + [1440] * 200
    assert found.resolution_ms == 60_000 and np.all(np.diff(found.arrival_ms) >= 0)
    within = found.arrival_ms[4:] % 60_000
    assert within.min() < 6_000 and within.max() > 54_000  # spread over the whole minute
    assert np.array_equal(found.arrival_ms, load_arrivals(path, seed=1).arrival_ms)
    assert not np.array_equal(found.arrival_ms, load_arrivals(path, seed=2).arrival_ms)


def test_a_trace_too_large_for_memory_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = write(tmp_path, "day.csv", functions_2019([("f", {1: 10**12})]))
    with pytest.raises(InputError, match="more than 200000000 arrivals; keep fewer rows"):
        load_arrivals(path)


def test_steps_are_spread_over_the_step_and_not_beyond(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stamps = np.cumsum(rng.choice([2999, 3000, 3001], 400))
    stamps[200:] += 60_000  # an idle minute, into which nothing may be spread
    rows = [{"timestamp": int(t), "input_length": 1, "output_length": 1} for t in np.repeat(stamps, 10)]
    path = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    found = load_arrivals(path)
    assert found.resolution_ms == pytest.approx(3000, abs=1)
    stamps -= stamps[0]
    offset = found.arrival_ms - np.repeat(stamps, 10)
    assert np.all((offset >= 0) & (offset < 3000 * 1.06))
    assert np.histogram(offset, bins=5, range=(0, 3000))[0] == pytest.approx([800] * 5, abs=120)
    assert not np.any((found.arrival_ms > stamps[199] + 3200) & (found.arrival_ms < stamps[200]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(0, 100))
def test_spreading_keeps_order_and_number(stamps: list[int], seed: int) -> None:
    times = np.sort(np.array(stamps, dtype=np.float64)) * 1000
    spread, step = spread_steps(times, 1000.0, np.random.default_rng(seed))
    assert len(spread) == len(times) and np.all(np.diff(spread) >= 0)
    assert np.all((spread >= times) & (spread <= times + step * 1.05))


MALFORMED = [
    ("t.csv", AZURE_2023 + "yesterday,1,2\n", ":4: TIMESTAMP is 'yesterday'"),
    ("t.csv", AZURE_2023 + "\nlater,1,2\n", ":5: TIMESTAMP is 'later'"),
    ("t.csv", AZURE_2023 + "2023-11-16 18:15:51,1\n", ":4: a last field is missing"),
    ("t.csv.gz", AZURE_2023 + "2023-11-16 18:15:51,1,2,3,4,5\n", ":4: more fields"),
    ("t.csv", FUNCTIONS_2021 + "a,f,inf,1\n", ":5: end_timestamp is 'inf'"),
    ("t.csv", FUNCTIONS_2021 + "a,f,3,-1\n", ":5: duration is '-1'"),
    ("t.csv", BURSTGPT + ",ChatGPT,1,1,2,API log\n", ":4: Timestamp is ''"),
    ("t.jsonl", MOONCAKE + "\n{broken\n", ":4: '{broken' is not JSON"),
    ("t.jsonl", MOONCAKE + "[1]\n", ":3: timestamp is None"),
    ("t.jsonl", MOONCAKE + '{"timestamp": -1, "input_length": 1, "output_length": 1}\n', ":3: timestamp is -1"),
    ("t.jsonl", MOONCAKE + '{"timestamp": true, "input_length": 1, "output_length": 1}\n', ":3: timestamp is True"),
    ("t.jsonl", MOONCAKE + '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', ":3: timestamp is nan"),
    (
        "t.csv",
        functions_2019([("f", {1: 1})]).replace(",http,1,", ",http,1.5,"),
        ":2: 1 is '1.5'; expected a whole number",
    ),
    ("t.csv", functions_2019([("f", {7: -2})]), ":2: 7 is '-2'"),
    ("t.csv", functions_2019([("f", {1: 1})]).replace(",2,", ",1,", 1), ":1: column '1' is named twice"),
    ("t.jsonl", MOONCAKE + "[" * 100_000 + "\n", ":3: '[[[[["),
    ("t.csv", OWN + "soon,a,low,1\n", ":4: arrival_ms is 'soon'"),
    ("t.csv", "time,what\n1,2\n", ":1: 'time,what' is the header of no known format"),
    ("t.csv", "", ":1: empty"),
    ("t.csv", "arrival_ms\n", ": holds no arrival"),
]


@pytest.mark.parametrize(("name", "text", "message"), MALFORMED)
def test_a_malformed_line_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(InputError) as caught:
        load_arrivals(path)
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


def test_lines_are_counted_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traces.tables.read_csv.__defaults__", (7,))
    good = "\n".join(str(number) for number in range(50))
    path = write(tmp_path, "t.csv", f"arrival_ms\n{good}\nx\n{good}\n")
    with pytest.raises(InputError, match=":52: arrival_ms is 'x'"):
        load_arrivals(path)


def test_missing_files_unknown_formats_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_arrivals(tmp_path / "t.csv")
    with pytest.raises(InputError, match="no such file"):
        load_arrivals(tmp_path / "t.csv", format="own")
    with pytest.raises(InputError, match="format: 'nope'; expected auto or one of azure_llm"):
        load_arrivals(tmp_path / "t.csv", format="nope")
    with pytest.raises(InputError, match="column 'TIMESTAMP' is missing"):
        load_arrivals(write(tmp_path, "o.csv", OWN), format="azure_llm")
    whole = gzip.compress(
        "".join([AZURE_2023, *(f"2023-11-16 18:16:{n % 60}.{n},{n},1\n" for n in range(9999))]).encode()
    )
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut.csv.gz"):
        load_arrivals(cut)
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(whole[:5000] + b"\xff\xff\xff\xff" + whole[5004:])
    with pytest.raises(InputError, match="broken.csv.gz: after row"):
        load_arrivals(broken)
    odd = {"arrival_ms": [0.0], "model": [["a"]], "priority": ["low"], "deadline_ms": [1.0]}
    pd.DataFrame(odd).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(InputError, match="odd.parquet:0: model is .*expected the name of a model"):
        Workload.load(tmp_path / "odd.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(InputError, match="not a Parquet file"):
        load_arrivals(tmp_path / "bad.parquet")


def test_a_saved_workload_is_read_as_arrivals(tmp_path: Path) -> None:
    workload = Workload(np.array([1.0, 2.0]), np.array([1, 0]), np.array([0, 1]), np.ones(2), ("a", "b"))
    for name in ("w.parquet", "w.csv", "w.csv.gz"):
        workload.save(tmp_path / name)
        found = load_arrivals(tmp_path / name)
        assert found.arrival_ms.tolist() == [0, 1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1e8), min_size=2, max_size=40), st.floats(0.01, 1e4), st.floats(0.1, 0.9))
def test_arrivals_are_conserved_by_windows_and_rescaling(times: list[float], rate: float, part: float) -> None:
    times = sorted(times)
    if times[-1] < 1e-3:
        return
    whole = Arrivals(np.array(times), "t")
    scaled = whole.rescaled(rate)
    assert scaled.rate_rps == pytest.approx(rate)
    cut = part * scaled.duration_ms
    left, right = scaled.window(0, cut), scaled.window(cut, scaled.duration_ms * 2)
    assert len(left) + len(right) == len(whole)
    assert np.concatenate([left.arrival_ms, right.arrival_ms + cut]) == pytest.approx(scaled.arrival_ms, rel=1e-9)


def test_invalid_arrivals_are_refused() -> None:
    with pytest.raises(InputError, match="arrivals 't': request 1: arrival_ms is 1.0; must not be before"):
        Arrivals(np.array([2.0, 1.0]), "t")
    with pytest.raises(InputError, match="request 0: arrival_ms is inf"):
        Arrivals(np.array([np.inf]), "t")


def test_description_has_rate_and_burstiness() -> None:
    text = Arrivals(np.arange(0.0, 60_000.0, 10.0), "even").describe()
    assert "6000 arrivals in 59.990 s" in text and "per second 0.00 (Poisson: 1)" in text
    assert "count per second" not in Arrivals(np.arange(10.0), "short").describe()


def test_the_registry_names_every_file_of_the_folder() -> None:
    files = {path.stem for path in Path(__file__).parents[2].joinpath("traces/formats").glob("*.py")}
    assert files - {"__init__", "base"} == set(FORMATS)


def test_the_real_traces_are_read(shared_data: Path) -> None:
    azure = load_arrivals(shared_data / "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz")
    assert len(azure) == 19_366 and azure.resolution_ms == 0 and 3400e3 < azure.duration_ms < 3600e3
    mooncake = load_arrivals(shared_data / "mooncake/conversation_trace.csv.gz")
    assert len(mooncake) == 12_031 and 2990 < mooncake.resolution_ms < 3010
    assert "steps of" in mooncake.describe()
