"""Lists of models: what a field may hold, and where factories are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from serving.config import ServeConfig
from serving.models.listing import initial_entries, read_entries
from serving.models.load import load_model
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


def test_versions_in_folders_are_read_and_the_newest_or_the_chosen_one_is_served_first(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        folder = tmp_path / "net" / version
        folder.mkdir(parents=True)
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, int(version))), folder / "model.pt")
    (tmp_path / "net" / "model.yaml").write_text("input_shape: [3]\n")
    found = read_entries([str(tmp_path)])
    assert {name: (one.spec.version, one.initial) for name, one in found.items()} == {
        "net:1": ("1", False),
        "net:2": ("2", False),
        "net": ("10", True),
    }
    assert load_model(found["net"].spec).outputs[0].shape == (10,)
    (tmp_path / "net" / "model.yaml").write_text("input_shape: [3]\nversion: 2\n")
    assert list(initial_entries([str(tmp_path)])) == ["net"]
    assert load_model(read_entries([str(tmp_path)])["net"].spec).outputs[0].shape == (2,)
    (tmp_path / "net" / "model.yaml").write_text("version: 3\n")
    with pytest.raises(InputError, match="version is 3; there are 1, 2, 10"):
        read_entries([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inputs: {ids: {shape: [0]}}", r"ids.shape is \[0\]; it must be a list of sizes"),
        ("inputs: {ids: {shape: [-1], color: 3}}", "unknown field 'color'; known are shape, datatype"),
        ("inputs: {ids: {datatype: INT7}}", "ids.datatype is 'INT7'; it must be one of BOOL"),
        ("inputs: 3", "expected a mapping from each tensor's name"),
        ("inputs: {ids: [-1]}\ninput_shape: [3]", "give inputs or input_shape"),
        ("buckets: [16, 8]", "buckets is .* ascending sizes"),
        ("max_size: 0", "max_size is 0"),
        ("outputs: [a, a]", "expected a mapping from each tensor's name"),
    ],
)
def test_what_a_list_says_of_tensors_is_checked(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(f"source: 'torch.nn:Identity'\n{text}\n")
    with pytest.raises(InputError, match=words):
        read_entries([str(tmp_path / "net.yaml")])
