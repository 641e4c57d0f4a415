"""Registers the environments with Gymnasium; ``import envs`` does it.

Gymnasium from 1.0 on does not look for entry points of other packages, so somebody has to import this package: the user, or
Gymnasium itself when the id names it, ``gym.make("envs:Strait/DualPriority-v0")``. It imports nothing but Gymnasium.
"""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register

# What sets each variant apart from the defaults of envs.simulation.config.EnvConfig.
VARIANTS: dict[str, dict[str, Any]] = {
    "Strait/DualPriority-v0": {},
    "Strait/DualPriority-Overload-v0": {"load": (1.1, 1.6)},
    "Strait/DualPriority-Bursty-v0": {"burst": (4.0, 8.0), "burst_share": (0.05, 0.12)},
    "Strait/DualPriority-Trace-v0": {"workload": "twin:azure_llm_2023"},
    "Strait/DualPriority-Tiny-v0": {
        "profile": "synthetic:0",
        "models": ("model0", "model1"),
        "streams": 2,
        "load": (0.8, 0.8),
        "duration_ms": (300.0, 300.0),
    },
}


for _name, _settings in VARIANTS.items():
    register(
        id=_name,
        entry_point="envs.dual_priority:DualPriorityEnv",
        vector_entry_point="envs.vector:DualPriorityVectorEnv",
        kwargs=_settings,
    )
