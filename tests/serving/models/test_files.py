"""A large TorchScript file that is read by taking it apart is the model that it was, and holds nobody up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serving.models import torch_program
from serving.models.files import load_apart, weights_of
from serving.models.load import load_buckets
from serving.models.served import ModelSpec
from traces.errors import InputError


class Tied(nn.Module):
    """Weights of two names, a buffer without dimensions, a half type, and a tensor that is neither parameter nor buffer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("halves", torch.linspace(0, 1, width, dtype=torch.bfloat16))
        self.shift = torch.arange(width).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(torch.relu(self.first(x)))) * self.scale + self.halves.float() + self.shift


def write(module: nn.Module, path: Path, width: int) -> Path:
    torch.jit.save(torch.jit.trace(module.eval(), torch.randn(2, width)), str(path))
    return path


def test_what_was_taken_apart_is_the_same_and_stays_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = write(Tied(), tmp_path / "tied.pt", 8)
    graph, expected = load_apart(path, "cpu"), torch.jit.load(str(path))
    given = torch.randn(5, 8)
    assert torch.equal(graph(given), expected(given))
    mine, theirs = weights_of(graph), weights_of(expected)
    assert (
        mine.keys() == theirs.keys() >= {"first.weight", "second.weight", "scale", "halves", "norm.num_batches_tracked"}
    )
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert mine["first.weight"].data_ptr() == mine["second.weight"].data_ptr()
    assert mine["first.bias"].data_ptr() != mine["second.bias"].data_ptr()


def test_a_large_file_is_taken_apart_while_others_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, taken = write(Tied(), tmp_path / "tied.pt", 8), []
    monkeypatch.setattr(torch_program, "LARGE", 0)
    monkeypatch.setattr(
        torch_program, "load_apart", lambda path, device: taken.append(path) or load_apart(path, device)
    )
    spec = ModelSpec("tied", str(path), (8,))
    answers = []
    for quiet in (True, False):
        (model,) = load_buckets(spec, quiet=quiet)
        answers.append(model.build("cpu")(torch.ones(2, 8)))
        assert taken == [path]
    np.testing.assert_array_equal(*answers)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"tied.pt is not a readable TorchScript .* file"):
        load_buckets(spec, quiet=True)


def test_nothing_large_is_loaded_under_pythons_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.jit.load holds the lock for as long as what it reads is large; here it reads the graph alone."""
    path = write(nn.Sequential(*(nn.Linear(500, 500) for _ in range(5))), tmp_path / "large.pt", 500)
    load, read_bytes = torch.jit.load, []

    def load_and_note(file: str, **given: Any) -> torch.jit.ScriptModule:
        read_bytes.append(Path(file).stat().st_size)
        return load(file, **given)

    monkeypatch.setattr(torch.jit, "load", load_and_note)
    load_apart(path, "cpu")
    assert path.stat().st_size > 5e6
    assert len(read_bytes) == 1
    assert read_bytes[0] < 1e5
