"""Trace files that are odd but legal: read as they are meant, or refused with a way out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import InputError
from traces.formats import load_arrivals, load_trace
from traces.tables import line_of, read_csv
from traces.workload import Workload

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
OWN = "arrival_ms,model,priority,deadline_ms\n"
EPOCH_S = 1_715_299_200


def json_lines(path: Path, stamps: list[float], **more: object) -> Path:
    rows = [{"timestamp": stamp, "input_length": 1, "output_length": 1, **more} for stamp in stamps]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def burstgpt(path: Path, stamps: list[float]) -> Path:
    path.write_text(BURSTGPT + "".join(f"{stamp},ChatGPT,1,1,2,API log\n" for stamp in stamps))
    return path


@pytest.mark.parametrize(
    "stamps", [[12.0 * k for k in range(300)], [0.25 * k for k in range(300)], list(range(0, 3600, 12))]
)
def test_seconds_under_mooncakes_names_are_refused_unless_the_format_is_named(
    tmp_path: Path, stamps: list[float]
) -> None:
    path = json_lines(tmp_path / "t.jsonl", stamps)
    with pytest.raises(InputError, match=f"unit of timestamp.*mooncake:{path} if it is ms, bailian:{path} if it is s"):
        load_arrivals(path)
    assert load_arrivals(f"mooncake:{path}").duration_ms == pytest.approx(stamps[-1])
    assert load_arrivals(f"bailian:{path}").duration_ms == pytest.approx(1e3 * stamps[-1])
    assert load_arrivals(path, format="bailian").duration_ms == pytest.approx(1e3 * stamps[-1])


def test_a_chat_trace_is_in_seconds_unless_that_would_be_absurd(tmp_path: Path) -> None:
    chats = json_lines(tmp_path / "a.jsonl", [12.5 * k for k in range(301)], chat_id=1, parent_chat_id=-1)
    assert load_arrivals(chats).duration_ms == 3_750_000
    with pytest.raises(InputError, match="unit of timestamp"):
        load_arrivals(json_lines(tmp_path / "b.jsonl", [12_500 * k for k in range(301)], chat_id=1))


@pytest.mark.parametrize("unit_ms", [1e3, 1.0, 1e-3, 1e-6])
def test_stamps_since_1970_show_their_unit(tmp_path: Path, unit_ms: float) -> None:
    stamps = [int((EPOCH_S * 1e3 + 2000 * k) / unit_ms) for k in range(20)]
    assert load_arrivals(json_lines(tmp_path / "t.jsonl", stamps)).duration_ms == pytest.approx(38_000, abs=1)
    assert load_arrivals(burstgpt(tmp_path / "t.csv", stamps)).duration_ms == pytest.approx(38_000, abs=1)


@pytest.mark.parametrize("start_s", [0, 2_592_000, EPOCH_S])
@pytest.mark.parametrize(
    "kind", ["burstgpt", "own", "mooncake", "azure_functions_2021", "azure_llm", "parquet", "workload"]
)
def test_a_slice_begins_at_0_and_is_stretched_evenly(tmp_path: Path, kind: str, start_s: int) -> None:
    seconds = [start_s + 2 * k for k in range(300)]
    path = tmp_path / "t.csv"
    if kind == "burstgpt":
        burstgpt(path, seconds)
    elif kind == "mooncake":
        json_lines(path := tmp_path / "t.jsonl", [1000 * s for s in seconds])
    elif kind == "azure_functions_2021":
        path.write_text("app,func,end_timestamp,duration\n" + "".join(f"a,f,{s + 0.5},0.5\n" for s in seconds))
    elif kind == "azure_llm":
        stamps = pd.to_datetime(seconds, unit="s").astype(str)
        path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{s},1,1\n" for s in stamps))
    elif kind == "parquet":
        pd.DataFrame({"arrival_ms": pd.to_datetime(seconds, unit="s")}).to_parquet(path := tmp_path / "t.parquet")
    else:
        path.write_text(OWN + "".join(f"{s * 1000},a,high,10\n" for s in seconds))
    found = Workload.load(path) if kind == "workload" else load_arrivals(path)
    assert found.arrival_ms == pytest.approx(np.arange(300) * 2000.0, abs=0.01)
    gaps = np.diff(found.rescaled(10.0).arrival_ms)
    assert gaps == pytest.approx(np.full(299, gaps[0]), rel=1e-3) and 90 < gaps[0] < 110


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 100_000), min_size=2, max_size=50))
def test_no_arrival_leaves_the_step_that_its_format_has(
    tmp_path_factory: pytest.TempPathFactory, stamps: list[int]
) -> None:
    path = burstgpt(tmp_path_factory.mktemp("t") / "t.csv", stamps)
    moved = load_arrivals(path).arrival_ms - 1e3 * (np.sort(stamps) - min(stamps))
    assert np.all((moved >= 0) & (moved <= 1050))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_and_dates_in_parquet_are_times(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame({"model": "a", "priority": "high", "deadline_ms": [5.0, 6.0, 7.0]})
    durations = np.array([0, 1, 2], "timedelta64[s]").astype(f"timedelta64[{unit}]")
    for arrivals in (durations, np.datetime64("2024-05-10T00:00:00", unit) + durations):
        frame.assign(arrival_ms=arrivals).to_parquet(path)
        assert load_arrivals(path).arrival_ms.tolist() == Workload.load(path).arrival_ms.tolist() == [0, 1000, 2000]
    frame.assign(arrival_ms=[0, 1, 2], deadline_ms=durations + durations[1]).to_parquet(path)
    assert Workload.load(path).deadline_ms.tolist() == [1000, 2000, 3000]


@pytest.mark.parametrize(
    "column", [[True, False], pd.to_datetime(["2024-05-10", None]), pd.to_timedelta([1, None], unit="s")]
)
def test_a_column_that_is_no_time_is_refused_with_its_row(tmp_path: Path, column: object) -> None:
    pd.DataFrame({"arrival_ms": column}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet:[01]: arrival_ms is .*; expected a"):
        load_arrivals(tmp_path / "t.parquet")


def test_a_deadline_is_no_date(tmp_path: Path) -> None:
    date = pd.to_datetime(["2024-05-10"])
    pd.DataFrame({"arrival_ms": [0], "model": "a", "priority": "low", "deadline_ms": date}).to_parquet(
        tmp_path / "t.parquet"
    )
    with pytest.raises(InputError, match="deadline_ms is .*; expected a number"):
        Workload.load(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "header",
    ['"Timestamp","Model","Total tokens"', '"Timestamp", "Model", "Total tokens",', "Timestamp,Model,Total tokens,,"],
)
def test_headers_may_be_quoted_and_end_in_columns_without_a_name(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f'{header}\n"5","a, b","2"{"," * header.count(",,")}\n7,a,2\n')
    assert load_arrivals(tmp_path / "t.csv").arrival_ms.tolist() == [0, 2000]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.sampled_from('ab,"\n '), max_size=6), max_size=8))
def test_the_line_that_is_named_is_the_line_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, notes: list[str]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["note", "arrival_ms"], *([note, k] for k, note in enumerate(notes))]
    )
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text(text.getvalue() + "x,oops\n")
    line = text.getvalue().count("\n") + 1
    assert line_of(path, len(notes) + 1) == line
    with pytest.raises(InputError, match=f"t.csv:{line}: arrival_ms is 'oops'"):
        load_arrivals(path)
    path.write_text(text.getvalue() + "x,1,2,3,4\n")
    with pytest.raises(InputError, match=f"t.csv:{line}: more fields"):
        list(read_csv(path, ["arrival_ms"]))


def test_a_users_file_is_requests_where_it_has_them_and_else_arrivals(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(OWN + "1,a,high,10\n2,b,low,10\n")
    found = load_trace(tmp_path / "t.csv")
    assert isinstance(found, Workload) and found.models == ("a", "b")
    assert load_trace(burstgpt(tmp_path / "b.csv", [1, 2])).arrival_ms.tolist() == [0, 1000]
    with pytest.raises(InputError, match="expected one of a"):
        load_trace(tmp_path / "t.csv", ["a"])
