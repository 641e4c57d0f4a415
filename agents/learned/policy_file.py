"""Files of trained policies: weights in safetensors, with what is needed to check that they fit, and how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agents.policies.strait import StraitParams
from envs.scheduling.observation import CANDIDATE_FEATURES, N_CANDIDATE, N_SUMMARY, SCHEMA, SUMMARY_FEATURES
from envs.simulation.config import EnvConfig
from traces.errors import InputError
from traces.files import atomic_path

FORMAT = "strait-policy/2"
DATA = Path(__file__).resolve().parent / "data"
CHECKPOINT = DATA / "default.safetensors"
# What ships with the project: trained on a wide range of workloads, and on one machine as it served (configs default, live).
SHIPPED = {"ppo": CHECKPOINT}


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds.

    Attributes:
        weights: float32 arrays by name, normalisation included.
        metadata: strings: format, schema, features, hidden, drop, defer, command, seed and what else the writer noted.
    """

    weights: dict[str, np.ndarray]
    metadata: dict[str, str]

    @property
    def drop(self) -> float:
        """Drop scale that it was trained with."""
        return float(self.metadata["drop"])

    @property
    def defer(self) -> float:
        """Deferral timer that it was trained with, in ms."""
        return float(self.metadata["defer"])

    @property
    def max_batches_per_core(self) -> int:
        """Batches that it lets share a core; 0: no limit."""
        return int(self.metadata["max_batches_per_core"])


def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Arrays of a policy file and their shapes, by the width of the layers."""
    h = hidden
    return {
        "strait_bonus": (1,),
        "strait": (len(fields(StraitParams)),),
        "candidate_mean": (N_CANDIDATE,),
        "candidate_std": (N_CANDIDATE,),
        "summary_mean": (N_SUMMARY,),
        "summary_std": (N_SUMMARY,),
        "summary.weight": (h, N_SUMMARY),
        "summary.bias": (h,),
        "candidate.weight": (h, N_CANDIDATE),
        "candidate.bias": (h,),
        "context.weight": (h, h),
        "embed.weight": (h, h),
        "embed.bias": (h,),
        "score.weight": (1, h),
        "score.bias": (1,),
        "defer.weight": (h, 3 * h),
        "defer.bias": (h,),
        "defer_out.weight": (1, h),
        "defer_out.bias": (1,),
        "value.weight": (h, 3 * h),
        "value.bias": (h,),
        "value_out.weight": (1, h),
        "value_out.bias": (1,),
    }


# Note on whose parameters the Strait has that the network corrects: its own, or those tuned for the device that it serves on.
STRAIT_OF, OWN, DEVICE = "strait_of", "network", "device"


def write_policy(path: str | Path, weights: Mapping[str, np.ndarray], env: EnvConfig, notes: Mapping[str, str]) -> None:
    """Write a policy file, atomically.

    Args:
        path: where to.
        weights: arrays by name, see ``shapes``.
        env: settings of the worlds that it was trained in, some of which hold wherever it decides.
        notes: strings about how it was made; "command" and "seed" are expected of training.
    """
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in weights.items()}
    metadata = dict(notes) | {
        "format": FORMAT,
        "schema": SCHEMA,
        "candidate_features": json.dumps(list(CANDIDATE_FEATURES)),
        "summary_features": json.dumps(list(SUMMARY_FEATURES)),
        "hidden": str(arrays["summary.weight"].shape[0]),
        "drop": repr(float(env.drop)),
        "defer": repr(float(env.defer)),
        "max_batches_per_core": str(env.max_batches_per_core),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, metadata=metadata))


def read_policy(path: str | Path) -> PolicyFile:
    """Read a policy file.

    Raises:
        InputError: there is no such file, it is not one, or it was written for another observation.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; expected a policy.safetensors written by train.py")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    # The last two: arrays of bfloat16 and such, which NumPy does not know.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a safetensors file of a policy ({error}); expected one written by train.py"
        ) from None
    _check_metadata(path, metadata)
    _check_weights(path, weights, int(metadata["hidden"]))
    return PolicyFile(weights, metadata)


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}; was it written by train.py?"
        )
    if metadata.get("schema") != SCHEMA:
        raise InputError(
            f"{path}: trained on observations {metadata.get('schema')!r}, this version makes {SCHEMA!r}; train it again"
        )
    for key, mine in (("candidate_features", CANDIDATE_FEATURES), ("summary_features", SUMMARY_FEATURES)):
        try:
            theirs = tuple(json.loads(metadata.get(key, "null")) or ())
        except (ValueError, TypeError):
            theirs = ()
        if theirs != tuple(mine):
            odd = sorted(set(map(str, theirs)) ^ set(mine)) or ["their order"]
            raise InputError(f"{path}: {key} differ from this version's in {', '.join(odd)}; train it again")
    numbers = [("hidden", int, 1), ("drop", float, 0), ("defer", float, 0), ("max_batches_per_core", int, 0)]
    for key, kind, least in numbers:
        try:
            value = kind(metadata[key])
        except (KeyError, ValueError):
            value = -1
        if not least <= value < 1e6:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{path}: metadata {key!r} is {metadata.get(key)!r}; must be {what} of at least {least}")


def _check_weights(path: Path, weights: Mapping[str, np.ndarray], hidden: int) -> None:
    for name, shape in shapes(hidden).items():
        if name not in weights:
            raise InputError(f"{path}: lacks the array {name!r}")
        if weights[name].dtype != np.float32:
            raise InputError(f"{path}: array {name!r} is {weights[name].dtype}, expected float32")
        if weights[name].shape != shape:
            raise InputError(f"{path}: array {name!r} has shape {weights[name].shape}, expected {shape}")
        if not np.all(np.isfinite(weights[name])):
            raise InputError(f"{path}: array {name!r} has values that are not finite; the training diverged")
        if name.endswith("_std") and not np.all(weights[name] > 0):
            raise InputError(f"{path}: array {name!r} must be above 0")
