"""Tables in the documents come from files of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import fill, main, read_results, shown_tables, table_of
from traces.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
EMPTY = "# T\n\n<!-- figures: a -->\n\nNot measured yet.\n\n<!-- end -->\n\ntext\n\n<!-- figures: b -->\n<!-- end -->\n"
CELL = {"high": 1.0, "low": 2.0, "weighted": 1.5, "weighted_minus_strait": [-0.5, -0.25, 0.1]}
EVALUATION = {"suite": "quick", "loads": [0.9, 1.1], "policies": {"ppo": {"0.9": CELL, "1.1": CELL}}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "README.md").write_text(EMPTY)
    return tmp_path


def flat(text: str) -> str:
    """The text with the padding of table cells removed."""
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def table(record: dict[str, Any]) -> str:
    return flat(table_of([record], "here"))


def test_results_are_stored_and_fill_their_block_every_time(root: Path) -> None:
    run = root / "run.txt"
    for speed, cell in ((0.25, "| speed | 0.25 |"), (612345.0, "| speed | 612,345 |")):
        run.write_text(f"warming up\n{json.dumps({'speed': speed, 'machine': 'a box'})}\nbye\n")
        assert main([f"a={run}", "--root", str(root)]) == 0
        text = flat((root / "README.md").read_text())
        assert cell in text and "Measured: machine a box." in text
        assert "Not measured" not in text and "\ntext\n" in text and text.count("| speed |") == 1
        assert cell in flat((root / "docs" / "tables" / "a.md").read_text())
    (root / "results" / "b.json").write_text(json.dumps({"other": 1}))
    assert main(["--root", str(root)]) == 0
    text = flat((root / "README.md").read_text())
    assert "| other | 1 |" in text and "| speed | 612,345 |" in text


def test_a_picture_is_copied_and_shown(root: Path) -> None:
    (root / "drawn.png").write_bytes(b"picture")
    assert main([f"a={root / 'drawn.png'}", "--root", str(root)]) == 0
    assert (root / "docs" / "pictures" / "a.png").read_bytes() == b"picture"
    assert "![a](docs/pictures/a.png)" in (root / "README.md").read_text()


def test_loads_and_policies_of_an_evaluation_can_be_selected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "r.json").write_text(json.dumps(EVALUATION))
    words = [f"a={root / 'r.json'}", "--root", str(root)]
    assert main([*words, "--loads", "1.1", "--policies", "ppo"]) == 0
    text = flat((root / "README.md").read_text())
    assert "| policy | load 1.1 |" in text and "| ppo | 1.00 / 2.00 |" in text
    assert "| policy | load 1.1 minus Strait |" in text and "| ppo | -0.25 [-0.50, +0.10] |" in text
    assert main([*words, "--policies", "edf"]) == 2 and "'edf'" in capsys.readouterr().err


def test_routers_are_rows_and_their_arrivals_columns() -> None:
    cell = {"workload": "poisson", "load": 0.9, "high": 1.0, "low": 2.0}
    rows = [cell | {"router": "quote", "difference": [-2.0, -1.5, -1.0]}]
    rows += [cell | {"router": "power_of_two", "difference": [0.0, 0.0, 0.0]}]
    record = {"accelerators": 8, "doors": 4, "profile": "gpu-a100", "answer_delay_ms": 50.0, "routers": rows}
    text = table(record)
    assert "8 accelerators of gpu-a100 behind 4 doors, answers 50 ms on their way" in text
    assert "8 accelerators of gpu-a100, answers" in table(record | {"doors": 1})
    assert "| router | poisson 0.9 |" in text and "| quote | 1.00 / 2.00 |" in text
    assert "| quote | -1.50 [-2.00, -1.00] |" in text and "| power_of_two | - |" in text


def test_a_block_shows_the_rows_and_columns_that_it_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {load: CELL | {"high": 3.0} for load in ("0.9", "1.1")}
    record = EVALUATION | {"policies": {"ppo": other, "edf": other, "strait": {"0.9": CELL, "1.1": CELL}}}
    (root / "r.json").write_text(json.dumps(record))
    page = root / "docs" / "results.md"
    head = "<!-- figures: a; rows: strait | ppo; columns: load 1.1 | load 0.9 minus Strait -->\n"
    page.write_text(f"{head}<!-- end -->\n")
    for words in ([f"a={root / 'r.json'}"], []):  # the second time from the page of the table
        assert main([*words, "--root", str(root)]) == 0
        (root / "results" / "a.json").unlink(missing_ok=True)
        lines = flat(page.read_text()).splitlines()
        assert lines[2] == "| policy | load 1.1 | load 0.9 minus Strait |"
        assert lines[4:6] == [
            "| strait | 1.00 / 2.00 | -0.25 [-0.50, +0.10] |",
            "| ppo | 3.00 / 2.00 | -0.25 [-0.50, +0.10] |",
        ]
        page.write_text(f"{head}<!-- end -->\n")
    page.write_text(f"{head.replace('ppo', 'fifo')}<!-- end -->\n")
    assert main(["--root", str(root)]) == 2 and "'fifo'" in capsys.readouterr().err


def test_a_page_of_a_table_keeps_its_prose(root: Path) -> None:
    page = root / "docs" / "tables" / "a.md"
    page.parent.mkdir()
    page.write_text("# A\n\nMeasured with care.\n")
    (root / "r.json").write_text('{"speed": 1.5}')
    for _ in range(2):
        assert main([f"a={root / 'r.json'}", "--root", str(root)]) == 0
    text = flat(page.read_text())
    assert text.startswith("# A\n\nMeasured with care.\n") and text.count("| speed | 1.5 |") == 1


def test_the_documents_show_what_the_pages_of_tables_say() -> None:
    pages = {path.stem: path.read_text() for path in (REPOSITORY / "docs" / "tables").glob("*.md")}
    for path in (REPOSITORY / "README.md", REPOSITORY / "docs" / "results.md"):
        text = path.read_text()
        assert fill(text, shown_tables(pages)) == text, path


def test_figures_of_policies_and_loads_are_pivoted() -> None:
    times = {"p50_us": 1.5, "p99_us": 2.5}
    text = table({"machine": "a box", "edf": times, "fifo": times, "n": {"sent": 3}})
    assert "| | p50_us | p99_us |" in text and "| fifo | 1.5 | 2.5 |" in text and "| | sent |" in text
    text = table({"alone": {"0.9": 1.0}, "by": {"edf": {"0.9": 2.0, "1.1": 3.0}, "fifo": {"0.9": None}}})
    assert "| | 0.9 | 1.1 |" in text and "| alone | 1 | - |" in text and "| by edf | 2 | 3 |" in text


def test_live_runs_and_their_simulation_are_shown() -> None:
    row = {"policy": "edf", "runs": 6, "p99_high_ms": 50.0, "goodput": 99.6, "decision_p99_us": 90.0}
    row |= {rate: [1.0, 2.0, 3.0] for rate in ("high", "low", "weighted")}
    corrected = {"points": [-2.5, -1.5, -0.5], "clear": True}
    claim = {"strait - edf, high": {"points": [-3.0, -2.0, -1.0], "clear": True, "corrected_for_drift": corrected}}
    live = {"traces": ["t"], "loads": [0.9], "device": "d", "capacity_rps": 5.0, "policies": [row], "claims": claim}
    text = table(live)
    assert "| edf | 2.00 [1.00, 3.00] |" in text
    assert "| strait - edf, high | -2.00 [-3.00, -1.00] | -1.50 [-2.50, -0.50] |" in text
    cell: dict[str, Any] = {"load": 0.9, "policy": "edf"}
    keys = ("high", "low", "p50_ms", "p99_ms", "busy")
    cell |= {f"{side}_{key}": 0.5 for side in ("live", "sim") for key in keys}
    verdict = {"max_violation_difference_points": 1.5, "mean_violation_difference_points": 0.5}
    verdict |= {"max_p99_difference_pct": 7.0, "mean_p99_difference_pct": 3.0, "same_order": True}
    config = {"repetitions": 2, "duration": 5.0, "trace": "bursty"}
    text = table({"machine": "m", "config": config, "explained": {"+ noise": verdict}, "cells": [cell]})
    assert "| + noise | 1.50 | 0.50 | 7.0 % | 3.0 % | yes |" in text and "| 0.9 | edf | 0.50 / 0.50 % |" in text


def test_optimum_and_ablations_have_a_row_for_each_policy() -> None:
    cell = {"weighted": 12.5, "optimum": 10.0, "distance": [1.0, 2.5, 4.0], "at_optimum_pct": 75.0}
    text = table({"suite": "small", "instances": 8, "unproven": 1, "policies": {"edf": cell}})
    assert "| edf | 12.50 | +2.50 [+1.00, +4.00] | 75 % |" in text and "10.00 %, mean over 7 instances" in text
    text = table(EVALUATION | {"ablations": {"strait:static": [-0.1, 0.25, 0.5]}})
    assert "| strait:static | +0.25 [-0.10, +0.50] |" in text and "| ppo |" not in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("c", "NAME=FILE"),
        ("a=missing.json", "missing.json: no such file"),
        ("a=r.json", "a: not results of a known kind"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    word: str, message: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    (root / "r.json").write_text('{"claims": {}}')
    assert main([word, "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert (root / "README.md").read_text() == EMPTY and not (root / "results").exists()


def test_a_block_that_is_not_closed_is_reported() -> None:
    with pytest.raises(InputError, match="not closed"):
        fill("<!-- figures: a -->\n<!-- figures: b -->\n<!-- end -->\n", {"a": "x"})


def test_a_file_without_results_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("nothing\n")
    with pytest.raises(InputError, match="holds no JSON object"):
        read_results(tmp_path / "out.txt")
