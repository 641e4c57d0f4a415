"""Turns a module into an inference function that runs without Python's lock.

A forward of eager PyTorch takes the lock back between any two operations, so that batches on several threads hold each
other up. A traced and frozen TorchScript graph releases it once, for the whole forward.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from serving.models.served import Forward

log = logging.getLogger(__name__)


def compile_forward(module: nn.Module, example: Tensor) -> tuple[Forward, bool]:
    """Trace and freeze a module, or leave it as it is where a trace would answer wrongly.

    Args:
        module: a module in evaluation mode, eager or TorchScript, on the device of `example`.
        example: four inputs, (4, *input_shape): a trace is checked on one, three and four of them, so that one with a
            fixed batch size is found.

    Returns:
        The inference function, and whether it runs without Python's lock.
    """
    use_plain_executor()
    try:
        with silent_torchscript(), torch.no_grad():
            if isinstance(module, torch.jit.ScriptModule):
                compiled = torch.jit.freeze(module) if hasattr(module, "training") else module
            else:
                compiled = torch.jit.freeze(torch.jit.trace(module, example[:2], check_trace=False).eval())
        with torch.inference_mode():
            for size in (1, 3, 4):
                torch.testing.assert_close(compiled(example[:size]), module(example[:size]), rtol=1e-3, atol=1e-4)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        log.warning("runs uncompiled, holding Python's lock between operations: %s", str(error).strip().split("\n")[0])
        return uncompiled(module), isinstance(module, torch.jit.ScriptModule)
    # Neither its constants nor its inputs need gradients, so that inference mode would change nothing; and it has no hooks,
    # which is all that a module's call looks for. Without both, a small graph's call takes half as long.
    forward: Forward = compiled.forward
    return forward, True


def use_plain_executor() -> None:
    """Make TorchScript run graphs as they are.

    Its profiling executor records shapes in the first runs and specialises the graph for them later, so a model's
    latency would jump some batches after its warm-up, once for each batch size.
    """
    torch._C._jit_set_profiling_executor(False)
    torch._C._jit_set_profiling_mode(False)


@contextmanager
def silent_torchscript() -> Iterator[None]:
    """Hide the notices that torch.jit is deprecated and that a trace fixes Python values; results are checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def uncompiled(module: nn.Module) -> Forward:
    """The inference function of a module as it is."""

    def forward(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(batch)

    return forward
