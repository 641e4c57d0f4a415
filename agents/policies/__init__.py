"""The policies, one file each. Importing this package registers them."""

from agents.policies import (
    clipper,
    clockwork,
    cork,
    edf,
    fifo,
    gpulet,
    nexus,
    preempt,
    priority_edf,
    strait,
    symphony,
    triton,
)

__all__ = [
    "clipper",
    "clockwork",
    "cork",
    "edf",
    "fifo",
    "gpulet",
    "nexus",
    "preempt",
    "priority_edf",
    "strait",
    "symphony",
    "triton",
]
