"""Turns a module into an inference function that runs without Python's lock, where that answers as the module does.

A forward of eager PyTorch takes the lock back between any two operations, so that batches on several threads hold each
other up. A frozen TorchScript graph releases it once, for the whole forward. A trace is the simplest such graph, but holds
only what its example did: a module that looks at values is scripted instead, which keeps its branches and loops.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from serving.models.files import set_weights, weights_of, without_values
from serving.models.served import Forward
from serving.models.users_code import users_code
from traces.errors import InputError

log = logging.getLogger(__name__)

_TO_PYTHON = ("Converting a tensor to a Python", "Iterating over a tensor")  # what the tracer notes of shapes, too


Example = Sequence[Tensor]  # of each input, four items


def compile_forward(module: nn.Module, examples: Sequence[Example], name: str, by_shapes: bool = False) -> Forward:
    """The inference function of a module: a graph, or the module as it is where none answers alike; then the log says why.

    Args:
        module: a module in evaluation mode, eager or TorchScript, on the device of the examples.
        examples: four items of each size that it will run on.
        name: of the model.
        by_shapes: trace it although its steps may depend on shapes.
    """
    use_plain_executor()
    ways: dict[str, Callable[[nn.Module, Sequence[Example]], Any]]
    ways = {
        "trace": functools.partial(_trace, by_shapes=by_shapes),
        "script": lambda module, _: torch.jit.script(module),
    }
    if isinstance(module, torch.jit.ScriptModule):
        ways = {"graph": lambda module, _: module}
    reasons = []
    for way, make in ways.items():
        try:
            with users_code(way), silent_torchscript():
                return _checked(_frozen(make(module, examples)), module, examples)
        except InputError as error:
            reasons.append(str(error))
    log.warning("model %s runs uncompiled, holding Python's lock between operations: %s", name, "; ".join(reasons))
    return uncompiled(module)


def _trace(module: nn.Module, examples: Sequence[Example], by_shapes: bool = False) -> torch.jit.ScriptModule:
    """Trace a module, unless what it does depends on values.

    Raises:
        ValueError: it takes values into Python, of which the trace would know those of the example only.
    """
    with _ValuesRead() as values:
        for probe in _probes(examples):
            with suppress(Exception):
                uncompiled(module)(*probe)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        traced = torch.jit.trace(module, tuple(one[:2] for one in examples[0]), check_trace=False).eval()
    # An exported graph has its guards checked by torch itself (torch._check), and nothing else that warns.
    notes = [str(note.message).split(". ")[0] for note in caught
             if note.category is torch.jit.TracerWarning and note.filename != torch.__file__]  # fmt: skip
    # Of shapes as of values, a trace fixes what the example did; values are seen as they are read.
    for fixed in (*values.read, *(note for note in notes if not (by_shapes and note.startswith(_TO_PYTHON)))):
        raise ValueError(f"the module's steps depend on values ({fixed})")
    return traced


class _ValuesRead(TorchDispatchMode):
    """Notes the operations by which values of tensors get into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.read.add(str(func))
        return func(*args, **(kwargs or {}))


def _frozen(graph: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Freeze a graph that was made in this process so that it can be freed again.

    What Python made is kept for the life of the process, with the weights that freezing puts into it; what was loaded is
    not. So the graph is saved and loaded first, without its weights: they are not copied, nor is Python's lock held for that.
    """
    if not hasattr(graph, "training"):  # frozen already
        return graph
    weights = weights_of(graph)
    saved = io.BytesIO()
    try:
        set_weights(graph, without_values(weights))
        torch.jit.save(graph, saved)
    finally:
        set_weights(graph, weights)
    saved.seek(0)
    loaded = torch.jit.load(saved)
    set_weights(loaded, weights)
    return torch.jit.freeze(loaded.eval())


def _checked(graph: torch.jit.ScriptModule, module: nn.Module, examples: Sequence[Example]) -> Forward:
    for probe in _probes(examples):
        try:
            expected = uncompiled(module)(*probe)
        except Exception:  # noqa: S112 (it need not take what nobody has sent)
            continue
        if not alike(graph(*probe), expected):
            shapes = ", ".join(str(tuple(one.shape)) for one in probe)
            raise ValueError(f"it answers otherwise than the module on inputs of shape {shapes}")
    # Neither its constants nor its inputs need gradients, so that inference mode would change nothing; and it has no hooks,
    # which is all that a module's call looks for. Without both, a small graph's call takes half as long.
    forward: Forward = graph.forward
    return forward


def _probes(examples: Sequence[Example]) -> Iterator[Example]:
    """Inputs on which a graph must answer as its module: other sizes than it was traced with, and unusual values."""
    for example in examples:
        yield from ([one[:size] for one in example] for size in (1, 3, 4))
    pair = [one[:2] for one in examples[0]]
    yield from ([torch.zeros_like(one) for one in pair], [_half_zero(one) for one in pair])
    if any(one.is_floating_point() for one in pair):
        for change in (lambda x: 100 * x, torch.sigmoid, lambda x: torch.full_like(x, math.nan)):
            yield [change(one) if one.is_floating_point() else one for one in pair]


def _half_zero(values: Tensor) -> Tensor:
    padded = values.clone()
    padded.view(2, -1)[:, padded[0].numel() // 2 :] = 0
    return padded


def alike(output: Any, expected: Any) -> bool:
    """Whether two outputs, or tuples of them, are the same but for rounding."""
    if not isinstance(output, Tensor) or not isinstance(expected, Tensor):
        pairs = zip(output, expected, strict=True) if isinstance(output, list | tuple) else ()
        return (
            isinstance(expected, list | tuple) and len(output) == len(expected) and all(alike(a, b) for a, b in pairs)
        )
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    # Half types keep 8 to 11 bits, of which a fused operation may round the last ones otherwise.
    relative, absolute = (3e-2, 1e-2) if output.dtype in (torch.float16, torch.bfloat16) else (1e-3, 1e-4)
    output, expected = output.double(), expected.double()
    largest = max(1.0, float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())) if expected.numel() else 1.0
    return torch.allclose(output, expected, rtol=relative, atol=absolute * largest, equal_nan=True)


def use_plain_executor() -> None:
    """Make TorchScript run graphs as they are.

    Its profiling executor records shapes in the first runs and specialises the graph for them later, so a model's
    latency would jump some batches after its warm-up, once for each batch size.
    """
    torch._C._jit_set_profiling_executor(False)
    torch._C._jit_set_profiling_mode(False)


@contextmanager
def silent_torchscript() -> Iterator[None]:
    """Hide the notices that torch.jit is deprecated; what a trace fixes is looked for by other means."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        yield


def uncompiled(module: nn.Module) -> Forward:
    """The inference function of a module as it is."""

    def forward(*batch: Tensor) -> Any:
        with torch.inference_mode():
            return module(*batch)

    return forward
