"""Models whose factories bring a fault into the server's process: they run there, before the first request."""

from __future__ import annotations

import ctypes
import itertools
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from toy_models import Double

from agents.policies.base import Policy


class Crash(nn.Module):
    """Crashes the process at the magic number, by a segmentation fault; at another, keeps Python's lock for half a minute."""

    def forward(self, x: Tensor) -> Tensor:
        first = float(x.flatten()[0])
        if first == 669:
            ctypes.string_at(0)
        if first == 670:
            ctypes.PyDLL(None).sleep(30)
        return 2 * x


def crash() -> nn.Module:
    return Crash()


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, math.nan)


def nan() -> nn.Module:
    return Nan()


def jumping_clock() -> nn.Module:
    """From now on the wall clock jumps by an hour, forth and back, at each look."""
    true, looks = time.time, itertools.count()
    time.time = lambda: true() + 3600.0 * (next(looks) % 3 - 1)
    return Double()


def nan_policy() -> nn.Module:
    """From now on policies other than the fallback answer NaN."""
    return _policy(lambda action, wake: (math.nan, wake))


def slow_policy() -> nn.Module:
    """From now on policies other than the fallback take 30 ms a decision."""

    def answer(action: int, wake: float) -> tuple[int, float]:
        time.sleep(0.03)
        return action, wake

    return _policy(answer)


def _policy(answer: Any) -> nn.Module:
    true = Policy.decide

    def decide(self: Policy, *args: Any) -> Any:
        made = true(self, *args)
        return made if self.name == "strait" else answer(*made)

    Policy.decide = decide  # type: ignore[method-assign]
    return Double()
