"""Checkpoints of training: everything that the future of a run depends on, in files that hold no code.

A checkpoint is a folder: ``policy.safetensors`` (also a policy file, see agents.learned.policy_file),
``optimizer.safetensors``, ``arrays.npz`` (worlds and random generators), during the look-ahead ``samples.safetensors``, and
``state.json`` (counters, and a checksum of each file). It is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from agents.learned.policy_file import read_policy, write_policy
from envs.simulation.config import EnvConfig
from traces.errors import InputError
from traces.files import naming

FORMAT = "strait-checkpoint/1"
POLICY, OPTIMIZER, ARRAYS, STATE = "policy.safetensors", "optimizer.safetensors", "arrays.npz", "state.json"
SAMPLES = "samples.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        weights: of the network, by name. optimizer: state tensors, named "PARAMETER.FIELD".
        arrays: the worlds (``Batch.state_dict``) and the random generators.
        state: counters of the run; numbers and strings.
        samples: of the look-ahead, where the run is still at it.
    """

    weights: dict[str, np.ndarray]
    optimizer: dict[str, torch.Tensor]
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    samples: dict[str, np.ndarray] = field(default_factory=dict)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer as flat tensors, without its settings, which the run's configuration holds."""
    return {f"{i}.{k}": v for i, entry in optimizer.state_dict()["state"].items() for k, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Set an optimizer's state from ``optimizer_tensors``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_arrays() -> dict[str, np.ndarray]:
    """The state of the random generators of torch, NumPy and Python."""
    _, key, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "random.torch": torch.get_rng_state().numpy(),
        "random.numpy": np.asarray(key),
        "random.numpy_rest": np.array([position, has_gauss, gauss]),
        "random.python": np.array(internal, np.uint64),
        "random.python_rest": np.array([version, np.nan if gauss_next is None else gauss_next]),
    }


def set_random(arrays: dict[str, np.ndarray]) -> None:
    """Set the random generators of torch, NumPy and Python from ``random_arrays``."""
    torch.set_rng_state(torch.as_tensor(arrays["random.torch"]))
    position, has_gauss, gauss = arrays["random.numpy_rest"]
    np.random.set_state(("MT19937", arrays["random.numpy"], int(position), int(has_gauss), float(gauss)))
    version, gauss_next = arrays["random.python_rest"]
    internal = tuple(int(v) for v in arrays["random.python"])
    random.setstate((int(version), internal, None if np.isnan(gauss_next) else float(gauss_next)))


def write_checkpoint(folder: Path, checkpoint: Checkpoint, env: EnvConfig, notes: Mapping[str, str]) -> None:
    """Write a checkpoint as ``folder``, whole or not at all; one that is there already is replaced.

    Args:
        folder: where to.
        checkpoint: what to write.
        env: settings of the worlds that the policy is trained in. notes: see ``write_policy``.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(folder):
            temporary.mkdir(parents=True)
            write_policy(temporary / POLICY, checkpoint.weights, env, notes)
            (temporary / OPTIMIZER).write_bytes(save_tensors(checkpoint.optimizer))
            np.savez_compressed(temporary / ARRAYS, allow_pickle=False, **checkpoint.arrays)  # type: ignore[arg-type]
            if checkpoint.samples:
                (temporary / SAMPLES).write_bytes(save_arrays(checkpoint.samples))
            sums = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(temporary.iterdir())}
            state = {"format": FORMAT, "crc32": sums, **checkpoint.state}
            (temporary / STATE).write_text(json.dumps(state, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: it is not there, not whole, or not one.
    """
    if not (folder / STATE).is_file():
        raise InputError(f"{folder}: no checkpoint there; expected a folder under checkpoints/ of a run")
    try:
        state = json.loads((folder / STATE).read_text())
        if state["format"] != FORMAT:
            raise InputError(f"{folder}: format is {state['format']!r}, expected {FORMAT!r}")
        for name, wanted in state["crc32"].items():
            if zlib.crc32((folder / name).read_bytes()) != wanted:
                raise InputError(f"{folder / name}: the file is damaged; resume from an earlier checkpoint")
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        weights = read_policy(folder / POLICY).weights
        optimizer = load_tensors((folder / OPTIMIZER).read_bytes())
        samples = load_arrays((folder / SAMPLES).read_bytes()) if SAMPLES in state["crc32"] else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: the checkpoint is damaged ({error}); resume from an earlier one") from None
    return Checkpoint(weights, optimizer, arrays, state, samples)


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("[0-9]*") if p.is_dir())


def find_checkpoint(path: str | Path) -> tuple[Path, Path]:
    """The run and the checkpoint that ``path`` means: a run (its newest checkpoint), or one of its checkpoints.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if (path / STATE).is_file():
        return path.resolve().parent.parent, path
    if not path.is_dir():
        raise InputError(f"--resume: no folder {str(path)!r}; expected a run under runs/, or one of its checkpoints")
    found = checkpoints(path)
    if not found:
        raise InputError(
            f"--resume: {path} holds no checkpoint; it was stopped before the first one was written: remove it, begin anew"
        )
    return path, found[-1]
