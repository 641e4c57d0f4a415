"""Lists of models: what a field may hold, and where factories are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serving.config import ServeConfig
from serving.models.load import load_model
from serving.models.repository import read_entries
from traces.errors import InputError


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("seed: -1", "an integer of at least 0"),
        ("seed: 1.5", "an integer of at least 0"),
        ("seed: true", "an integer of at least 0"),
        ("input_high: 0", "an integer of at least 1"),
        ("input_high: 1e3", "an integer of at least 1"),
        ("input_dtype: [float32]", "one of bool, "),
        ("input_dtype: 3", "one of bool, "),
        ("input_shape: [true]", "a list of sides, each an integer of at least 1"),
        ("input_shape: 4", "a list of sides"),
        ("input_shape: null", "a list of sides"),
        ("input_shape: [4, -1]", "a list of sides"),
        ("compiled: 'false'", "true or false"),
        ("compiled: 0", "true or false"),
        ("timeout_ms: true", "a number above 0"),
        ("timeout_ms: '5'", "a number above 0"),
        ("timeout_ms: .nan", "a number above 0"),
        ("priority: 1", "'high' or 'low'"),
        ("priority: [high]", "'high' or 'low'"),
        ("kind: [a]", "text"),
        ("source: 5", "text"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused_with_what_would_be_right(field: str, rule: str, tmp_path: Path) -> None:
    listing, name = tmp_path / "models.yaml", field.partition(":")[0]
    source = "" if name == "source" else "source: 'torch.nn:Identity', "
    listing.write_text(f"- {{name: mine, {source}{field}}}")
    with pytest.raises(InputError) as caught:
        read_entries([str(listing)])
    message = str(caught.value)
    assert message.startswith(f"{listing}: models[0] (mine): {name} is ") and f"it must be {rule}" in message
    assert "\n" not in message


@pytest.mark.parametrize("place", ["beside the list", "in the current folder"])
def test_a_factory_is_found(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, lists = tmp_path / "here", tmp_path / "lists"
    here.mkdir()
    lists.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"factory_{place.split()[0]}"
    folder = lists if place == "beside the list" else here
    (folder / f"{name}.py").write_text(f"from torch import nn\nfrom {name}_part import width\n"
                                       "def make(): return nn.Linear(width, 2)")  # fmt: skip
    (folder / f"{name}_part.py").write_text("width = 4")
    (lists / "models.yaml").write_text(f"- {{name: mine, source: '{name}:make', input_shape: [4]}}")
    entry = read_entries([str(lists)])["mine"]
    assert load_model(entry.spec).outputs[0].shape == (2,)


@pytest.mark.parametrize("sizes", [[2, 4], [0, 1], [4, 2, 1], [1, 1]])
def test_batch_sizes_that_a_lone_request_cannot_use_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InputError, match="--batch_sizes.*ascending from 1"):
        ServeConfig(batch_sizes=sizes)
