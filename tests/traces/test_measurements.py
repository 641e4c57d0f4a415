"""Measurement campaigns: round trip, validation that names the place, solo medians."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from traces.errors import InputError
from traces.machine import DeviceInfo, MachineInfo, ModelInfo
from traces.measurements import COLUMN_TYPES, PHASES, Measurements


def model(name: str) -> ModelInfo:
    return ModelInfo(name, "convolutional", 10, 40, 1e6, 2e3, 12, 4, (3, 2, 2), "float32")


MACHINE = MachineInfo(
    created="2026-01-02",
    command="python -m serving.profiler",
    device=DeviceInfo("cpu", "test", 2, 2**30, 50.0, 10.0, "2.13.0"),
    streams=4,
    batch_sizes=(1, 2, 4, 8),
    models=(model("zeta"), model("alpha")),
)


def campaign(size: int = 40, runs: int = 4, seed: int = 0) -> Measurements:
    rng = np.random.default_rng(seed)
    phases = np.cumsum(rng.random((size, len(PHASES))) * [30, 1, 1, 1, 8, 1], axis=1)
    frame = pd.DataFrame(
        {
            "run": rng.integers(0, runs, size),
            "kind": rng.choice(["solo", "colocation", "live"], size),
            "batch_id": rng.permutation(size) + 100,
            "stream": rng.integers(0, 4, size),
            "priority": rng.integers(0, 2, size),
            "model": rng.choice(["alpha", "zeta"], size),
            "batch_size": rng.choice([1, 2, 4, 8], size),
            **{name: phases[:, number] for number, name in enumerate(PHASES)},
        }
    )
    return Measurements(MACHINE, frame)


def test_what_is_saved_is_loaded_exactly(tmp_path: Path) -> None:
    saved = campaign()
    saved.save(tmp_path / "new" / "c")
    loaded = Measurements.load(tmp_path / "new" / "c")
    assert loaded.machine == MACHINE
    assert {name: str(kind) for name, kind in loaded.batches.dtypes.items()} == COLUMN_TYPES
    for name in COLUMN_TYPES:
        assert loaded.batches[name].tolist() == saved.batches[name].tolist()
    assert sorted(file.name for file in (tmp_path / "new" / "c").iterdir()) == ["batches.parquet", "machine.json"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("kind", "duet", "row 5: column 'kind' is 'duet'"),
        ("model", "omega", "row 5: column 'model' is 'omega'; machine.json knows zeta, alpha"),
        ("batch_id", None, "row 5: column 'batch_id' is .*must be unique"),
        ("stream", 4, "row 5: column 'stream' is 4; must be from 0 to 3"),
        ("stream", 300, "row 5: column 'stream' is 300; must be from -128 to 127"),
        ("priority", 2, "row 5: column 'priority' is 2;"),
        ("batch_size", 0, "row 5: column 'batch_size' is 0; must be at least 1"),
        ("exec_end_ms", np.nan, r"row 5: column 'exec_end_ms' is empty \(NaN\)"),
        ("dispatch_ms", np.inf, "row 5: column 'dispatch_ms' is .*inf"),
        ("dispatch_ms", -1.0, "row 5: column 'dispatch_ms' is .*-1"),
        ("exec_start_ms", 0.0, "row 5: column 'exec_start_ms' is .*0.0.*before h2d_end_ms"),
        ("d2h_end_ms", 0.0, "row 5: column 'd2h_end_ms' is .*0.0.*before exec_end_ms"),
    ],
)
def test_a_wrong_value_is_named_by_column_row_and_value(tmp_path: Path, column: str, value: Any, message: str) -> None:
    good = campaign()
    frame = good.batches.copy()
    frame.loc[5, column] = frame.loc[2, column] if value is None else value
    with pytest.raises(InputError, match=message):
        replace(good, batches=frame).validate()
    # The same from a file that somebody else wrote.
    good.save(tmp_path)
    frame.to_parquet(tmp_path / "batches.parquet")
    with pytest.raises(InputError, match=f"batches.parquet: {message}"):
        Measurements.load(tmp_path)


def test_times_of_a_scheduler_are_saved_and_checked(tmp_path: Path) -> None:
    plain = campaign()
    decided = (plain.batches["dispatch_ms"] - 0.5).where(plain.batches["kind"] == "live")
    frame = plain.batches.assign(decided_ms=decided, seen_ms=plain.batches["d2h_end_ms"] + 0.25)
    replace(plain, batches=frame).save(tmp_path)
    loaded = Measurements.load(tmp_path).batches
    for name in ("decided_ms", "seen_ms"):
        np.testing.assert_array_equal(loaded[name], frame[name])
    for column, value, message in (
        ("decided_ms", 1e9, "row 5: column 'decided_ms' is 1000000000.0; must not be after dispatch_ms"),
        ("seen_ms", 0.0, "row 5: column 'seen_ms' is 0.0; must not be before d2h_end_ms"),
        ("seen_ms", np.inf, "row 5: column 'seen_ms' is inf; expected a finite time in ms, or none"),
        ("decided_ms", -np.inf, "row 5: column 'decided_ms' is -inf; expected a finite time"),
        ("seen_ms", "late", "column 'seen_ms' has type .*; expected numbers"),
    ):
        wrong = frame.astype({column: object}) if isinstance(value, str) else frame.copy()
        wrong.loc[5, column] = value
        with pytest.raises(InputError, match=message):
            replace(plain, batches=wrong).validate()
    with pytest.raises(InputError, match="column 'seen_ms' is missing"):
        replace(plain, batches=frame.drop(columns="seen_ms")).validate()


def test_nothing_is_written_when_a_value_is_wrong(tmp_path: Path) -> None:
    bad = campaign()
    bad.batches.loc[0, "batch_size"] = 0
    with pytest.raises(InputError):
        bad.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("column", list(COLUMN_TYPES))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    good = campaign()
    good.save(tmp_path)
    good.batches.drop(columns=column).to_parquet(tmp_path / "batches.parquet")
    with pytest.raises(InputError, match=f"column '{column}' is missing"):
        Measurements.load(tmp_path)


def test_columns_of_a_wrong_type_are_named() -> None:
    for column, values in {"stream": [0.5] * 40, "exec_end_ms": ["x"] * 40}.items():
        good = campaign()
        with pytest.raises(InputError, match=f"column '{column}' has type"):
            replace(good, batches=good.batches.assign(**{column: values})).validate()


@pytest.mark.parametrize("gone", ["", "machine.json", "batches.parquet"])
def test_a_missing_folder_or_file_is_named(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "c"
    if gone:
        campaign().save(folder)
        (folder / gone).unlink()
    with pytest.raises(InputError, match=f"{folder / gone}: no such"):
        Measurements.load(folder)


def test_files_of_another_type_are_refused(tmp_path: Path) -> None:
    campaign().save(tmp_path)
    (tmp_path / "batches.parquet").write_text("no")
    with pytest.raises(InputError, match="batches.parquet: not a Parquet file"):
        Measurements.load(tmp_path)
    (tmp_path / "machine.json").write_text('{\n "schema": oops')
    with pytest.raises(InputError, match="machine.json:2: not JSON"):
        Measurements.load(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["schema"], "strait-measurements/9", "schema is 'strait-measurements/9'; expected 'strait-measurements/1'"),
        (["schema"], None, "schema is None"),
        (["streams"], 0, "streams is 0"),
        (["streams"], "4", "streams is '4'; expected an integer"),
        (["streams"], True, "streams is True; expected an integer"),
        (["device", "peak_gflops"], "fast", "device.peak_gflops is 'fast'; expected a finite number"),
        (["device", "kind"], "tpu", "device.kind is 'tpu'"),
        (["models"], [], "models: expected a list"),
        (["models", 1, "name"], "zeta", "models: names repeat"),
        (["models", 1, "input_shape"], [3, "x"], r"models\[1\].input_shape\[1\] is 'x'"),
        (["batch_sizes"], [1, 2, 2], r"batch_sizes: \[1, 2, 2\]"),
    ],
)
def test_a_wrong_field_of_the_machine_is_named(tmp_path: Path, keys: list, value: Any, message: str) -> None:
    campaign().save(tmp_path)
    path = tmp_path / "machine.json"
    data = json.loads(path.read_text())
    place = data
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"machine.json: {message}"):
        Measurements.load(tmp_path)


def test_solo_table_holds_medians_in_the_order_of_the_machine() -> None:
    def row(number: int, name: str, size: int, h2d: float, run: float, d2h: float, kind: str = "solo") -> dict:
        times = np.cumsum([10.0 * number, 1.0, h2d, 0.5, run, d2h])
        ids = {"run": number, "kind": kind, "batch_id": number, "stream": 0, "priority": 0}
        return {**ids, "model": name, "batch_size": size, **dict(zip(PHASES, times))}

    rows = [
        row(0, "alpha", 2, 1, 5, 1),
        row(1, "zeta", 4, 1, 7, 2),
        row(2, "zeta", 1, 1, 2, 3),
        row(3, "zeta", 1, 3, 4, 5),
        row(4, "zeta", 1, 2, 9, 4),
        row(5, "zeta", 1, 2, 900, 4, kind="colocation"),
    ]
    measurements = Measurements(MACHINE, pd.DataFrame(rows))
    measurements.validate()
    table = measurements.solo_table()
    assert list(table.columns) == ["model", "batch_size", "h2d_ms", "exec_ms", "d2h_ms", "n"]
    assert table.round(9).to_numpy().tolist() == [
        ["zeta", 1, 2.0, 4.0, 4.0, 3],
        ["zeta", 4, 1.0, 7.0, 2.0, 1],
        ["alpha", 2, 1.0, 5.0, 1.0, 1],
    ]


def test_description_has_device_counts_and_models() -> None:
    text = campaign().describe()
    assert "2 cores" in text and "40 batches in 4 runs" in text and "zeta, alpha" in text
