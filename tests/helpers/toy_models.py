"""Tiny models whose answers and faults are known, for tests of the server."""

from __future__ import annotations

import threading
import time

import fake_cuda
import torch
from torch import Tensor, nn

GATE = threading.Event()  # closed as a test begins (conftest.py), and open after it
HELD = 1e6


def pass_gate() -> None:
    if not GATE.wait(60.0):
        raise RuntimeError("the test did not open the gate")


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


class Slow(nn.Module):
    """Takes as many ms as the first number of its first input, or until the gate is open for `HELD`, and doubles."""

    def forward(self, x: Tensor) -> Tensor:
        ms = max(float(x.flatten()[0]), 0.0)
        if ms == HELD:
            pass_gate()
        else:
            time.sleep(ms / 1e3)
        return 2 * x


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pass_gate()
        return 2 * x


def gated() -> nn.Module:
    return Gated()


class Faulty(nn.Module):
    """Doubles, unless an input begins with a magic number."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        if bool((first == 666).any()):
            raise RuntimeError("this input is cursed")
        if bool((first == 667).any()) and len(x) > 1:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        if bool((first == 668).any()):
            raise SystemExit("a model that ends its thread")
        return 2 * x


class Rounds(nn.Module):
    """Multiplies matrices as many times as the first number of its first input says, and doubles."""

    def forward(self, x: Tensor) -> Tensor:
        square = torch.ones(64, 64)
        for _ in range(int(x.flatten()[0])):
            square = torch.mm(square, square) / 64.0
        return 2 * x + 0 * square[0, 0]


def rounds() -> nn.Module:
    """A model that runs without Python, from one end to the other."""
    return torch.jit.script(Rounds())


def double() -> nn.Module:
    return Double()


def triple() -> nn.Module:
    return Triple()


def triple_behind_gate() -> nn.Module:
    """A model that is built once the gate is open."""
    pass_gate()
    return Triple()


def slow() -> nn.Module:
    return Slow()


def faulty() -> nn.Module:
    return Faulty()


def wide() -> nn.Module:
    """A model that really computes for a few ms."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 4))


COLD: list[float] = []  # seconds that `cold` takes the first time, as what imports a library does


def cold() -> nn.Module:
    """As `wide`, the first time late."""
    time.sleep(COLD.pop() if COLD else 0.0)
    return wide()


def unbuilt() -> nn.Module:
    raise RuntimeError("this model cannot be built")


class Baked(nn.Module):
    """Doubles on the host, so that a graph holds the answer of its capture for ever."""

    def forward(self, x: Tensor) -> Tensor:
        if fake_cuda.capturing():
            self.answer = 2 * x
        return self.answer if fake_cuda.replaying() else 2 * x
