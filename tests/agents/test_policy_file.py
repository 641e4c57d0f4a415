from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from agents.learned.policy import load_policy
from agents.learned.policy_file import read_policy, shapes, write_policy
from envs.simulation.config import EnvConfig
from traces.errors import InputError


def weights(hidden: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes(hidden).items()}
    return {k: np.abs(v) + 0.1 if k.endswith("_std") else v for k, v in made.items()}


def written(path: Path) -> Path:
    write_policy(path, weights(), EnvConfig(drop=0.5, defer=3.0), {"command": "python train.py", "seed": "7"})
    return path


def changed(path: Path, arrays: dict | None = None, **metadata: str) -> Path:
    file = read_policy(written(path))
    save_file(file.weights if arrays is None else arrays, path, metadata=file.metadata | metadata)
    return path


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    file = read_policy(written(tmp_path / "new" / "policy.safetensors"))
    assert all(np.array_equal(file.weights[k], v) for k, v in weights().items())
    assert (file.drop, file.defer, file.metadata["seed"]) == (0.5, 3.0, "7")
    policy = load_policy(tmp_path / "new" / "policy.safetensors", 2)
    assert (policy.drop, policy.params.defer, policy.hidden) == (0.5, 3.0, 4)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["policy.safetensors"]


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        read_policy(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 100])
def test_file_that_is_not_safetensors_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_policy(path)


def test_half_a_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="not a safetensors file"):
        read_policy(path)


def test_arrays_of_a_type_that_numpy_lacks_are_told(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        save_tensors({"score.bias": torch.zeros(1, dtype=dtype)}, tmp_path / "p.safetensors")
        # NumPy has them where a package like ml_dtypes was imported.
        with pytest.raises(InputError, match="not a safetensors file of a policy|format is None"):
            read_policy(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hidden": "4.0"}, "metadata 'hidden' is '4.0'; must be a whole number of at least 1"),
        ({"max_batches_per_core": "1.0"}, "metadata 'max_batches_per_core'"),
        ({"defer": "nan"}, "metadata 'defer'"),
        ({"format": "other"}, "format is 'other'"),
        ({"schema": "strait-observation/0"}, "train it again"),
        ({"candidate_features": json.dumps(["slack"])}, "candidate_features differ"),
        ({"summary_features": "nonsense"}, "summary_features differ"),
        ({"hidden": "-3"}, "metadata 'hidden'"),
        ({"drop": "x"}, "metadata 'drop'"),
        ({"hidden": "5"}, "has shape"),
    ],
)
def test_metadata_that_does_not_fit_is_told(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_policy(changed(tmp_path / "p.safetensors", **metadata))


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    path, good = tmp_path / "p.safetensors", weights()
    for name, value, message in (
        ("score.bias", np.array([np.nan], np.float32), "not finite"),
        ("score.bias", np.array([0.5], np.float16), "is float16, expected float32"),
        ("summary_std", np.zeros_like(good["summary_std"]), "above 0"),
        ("score.weight", np.zeros((2, 2), np.float32), "expected \\(1, 4\\)"),
    ):
        with pytest.raises(InputError, match=message):
            read_policy(changed(path, good | {name: value}))
    del good["embed.bias"]
    with pytest.raises(InputError, match="lacks the array 'embed.bias'"):
        read_policy(changed(path, good))
