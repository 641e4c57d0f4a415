"""Registers the environments with Gymnasium; ``import envs`` does it.

Gymnasium from 1.0 on does not look for entry points of other packages, so somebody has to import this package: the user, or
Gymnasium itself when the id names it, ``gym.make("envs:Strait/DualPriority-v2")``. It imports nothing but Gymnasium.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from gymnasium.envs.registration import register

# What sets each variant apart from the defaults of envs.simulation.config.EnvConfig.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "-Overload": {"load": (1.1, 1.6)},
    "-Bursty": {"burst": (4.0, 8.0), "burst_share": (0.05, 0.12)},
    "-Trace": {"workload": "twin:azure_llm_2023"},
    "-Tiny": {
        "profile": "synthetic:0",
        "models": ("model0", "model1"),
        "streams": 2,
        "load": (0.8, 0.8),
        "duration_ms": (300.0, 300.0),
    },
}
# The first version's device is made up; since the second it is the measured A100. In both a batch has one priority.
VERSIONS: dict[str, dict[str, Any]] = {
    "v0": {"profile": "synthetic:0", "mixed_batches": False},
    "v1": {"mixed_batches": False},
    "v2": {},
}


for (_version, _device), (_variant, _settings) in product(VERSIONS.items(), VARIANTS.items()):
    register(
        id=f"Strait/DualPriority{_variant}-{_version}",
        entry_point="envs.dual_priority:DualPriorityEnv",
        vector_entry_point="envs.vector:DualPriorityVectorEnv",
        kwargs=_device | _settings,
    )
