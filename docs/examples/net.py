"""A model of your own: a Python factory, which the server calls, and the TorchScript file that running this writes."""

import sys

import torch
from torch import nn


def make() -> nn.Module:
    """A small classifier: (batch, 16) to (batch, 4)."""
    return nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 4))


if __name__ == "__main__":
    torch.jit.save(torch.jit.trace(make().eval(), torch.zeros(2, 16)), sys.argv[1])
