"""PyTorch modules as programs: TorchScript and torch.export files, and modules that factories return."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from serving.models.compile import compile_forward, silent_torchscript, uncompiled
from serving.models.cost import count_costs, count_weights
from serving.models.files import EXPORTED, TORCHSCRIPT, fixed_in_training, form_of, load_apart
from serving.models.program import CONVENTIONS, Described, Output, Program
from serving.models.served import Forward, host_array
from serving.models.tensors import NAMES, VARIES
from serving.models.users_code import users_code
from traces.errors import InputError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
LARGE = 8 * 2**20  # bytes of a file, which take torch.jit.load some 10 ms
_EXPORT_HINT = ' (export for any batch size: dynamic_shapes=({0: torch.export.Dim("batch")},))'


class Loaded(NamedTuple):
    """A module on a device.

    Attributes:
        module: in evaluation mode.
        inputs: what its source says of its inputs; None: ask its forward.
        by_position: how many of them it takes by position at most.
    """

    module: nn.Module
    inputs: Described | None = None
    by_position: int = sys.maxsize


class Bound(nn.Module):
    """A module whose inputs come by position, in a fixed order, and whose outputs leave as a tuple.

    Args:
        module: the user's.
        positional: how many inputs it takes by position.
        keywords: the names of the others.
        outputs: keys of the mapping that it returns; empty for a sequence.
    """

    def __init__(
        self, module: nn.Module, positional: int, keywords: tuple[str, ...], outputs: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.positional = positional
        self.keywords = keywords
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> Any:
        """Run the module; a mapping is returned as it is as long as its keys are not known."""
        named = dict(zip(self.keywords, tensors[self.positional :]))
        result = self.module(*tensors[: self.positional], **named)
        return tuple(result[key] for key in self.outputs) if self.outputs else result


def tensors_of(result: Mapping[str, Any]) -> list[str]:
    """Names of what is a tensor in a mapping, e.g. a Hugging Face output class."""
    return [name for name, value in result.items() if isinstance(value, Tensor)]


class TorchProgram(Program):
    """A module of PyTorch.

    Args:
        load: makes the module on a device.
        where: the model, as errors begin.
        source: where it comes from, as errors go on.
        inputs: what is known of its inputs; None takes the arguments of its forward.
    """

    platform = "pytorch"
    on_host = False
    by_shapes = False  # whether its steps may depend on shapes, and a trace is made all the same

    def __init__(self, load: Callable[[str], Loaded], where: str, source: str, inputs: Described | None = None) -> None:
        self._load = load
        self._where = where
        self._module, described, self._by_position = load("cpu")
        self.module = self._module
        self._datatypes: tuple[str, ...] = ()
        self._keys: tuple[str, ...] = ()
        with users_code(f"{where}: {source} has no forward"):
            fixed = fixed_in_training(self._module)
        if fixed is not None:
            raise InputError(
                f"{where}: {source} was made in training mode, so that answers depend on chance or on the other "
                f"requests of a batch ({fixed}); call eval() on it before it is traced or exported"
            )
        required, self._arguments = _arguments(self._module) if described is None else (list(described), [*described])
        self.inputs = inputs or described or {name: dict(CONVENTIONS.get(name, {})) for name in required}
        self._bind: Callable[[nn.Module], nn.Module] = lambda module: module
        if isinstance(self._module, torch.fx.GraphModule):
            self.hint = _EXPORT_HINT

    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        known = self._arguments
        positional = next((i for i, (a, b) in enumerate(zip(inputs, known)) if a != b), min(len(inputs), len(known)))
        positional = min(positional, self._by_position)
        keywords = tuple(inputs[positional:])
        if not set(keywords) <= set(known):
            # Other names than those of the forward: inputs are given by position.
            positional, keywords = len(inputs), ()
        self._given = tuple(outputs)

        def bound(module: nn.Module) -> nn.Module:
            return Bound(module, positional, keywords, self._keys) if keywords or self._keys else module

        self._bind = bound
        self.module = bound(self._module)

    def run(self, arrays: Sequence[np.ndarray]) -> list[Output]:
        result = uncompiled(self.module)(*self._tensors(arrays, "cpu"))
        if isinstance(result, Mapping):
            self._keys = tuple(name for name in self._given if name in result) or tuple(tensors_of(result))
            self.outputs = self._keys
            self.module = self._bind(self._module)
            result = tuple(result[name] for name in self._keys)
        outputs = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, list | tuple) else None
        if not outputs or not all(isinstance(one, Tensor) for one in outputs):
            odd = result if outputs is None else next((one for one in outputs if not isinstance(one, Tensor)), ())
            raise InputError(
                f"{self._where}: returns {type(odd).__name__}; it must return a tensor, or a tuple or mapping of tensors"
            )
        if not self.outputs:
            numbered = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
            self.outputs = self._given if len(self._given) == len(outputs) else tuple(numbered)
        return [Output(*_checked_array(one, self._where)) for one in outputs]

    def build(self, device: str, examples: Sequence[Sequence[np.ndarray]], compiled: bool, name: str) -> Forward:
        # Device "cpu" shares the weights of `module`; any other gets a copy, because frozen graphs cannot be moved.
        module = self.module if device == "cpu" else self._bind(self._load(device).module)
        if not compiled:
            return uncompiled(module)
        return compile_forward(module, [self._tensors(example, device) for example in examples], name, self.by_shapes)

    def costs(self, arrays: Sequence[np.ndarray]) -> tuple[float, float]:
        return count_costs(self.module, self._tensors([array[:1] for array in arrays], "cpu"))

    def weights(self) -> tuple[int, int]:
        return count_weights(self._module)

    def take(self, datatypes: Sequence[str]) -> None:
        """Note the inputs' types in the protocol's words, in their order."""
        self._datatypes = tuple(datatypes)

    def _tensors(self, arrays: Sequence[np.ndarray], device: str) -> list[Tensor]:
        made = []
        for array, datatype in zip(arrays, self._datatypes):
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            made.append((tensor.view(torch.bfloat16) if datatype == "BF16" else tensor).to(device))
        return made


def _arguments(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the arguments that a forward must be given or that mean the same everywhere, and of all."""
    try:
        if isinstance(module, torch.jit.ScriptModule):
            given = [(one.name, not one.has_default_value()) for one in module.forward.schema.arguments[1:]]  # type: ignore[attr-defined]
        else:
            parameters = inspect.signature(module.forward).parameters.values()
            given = [(one.name, one.default is one.empty) for one in parameters if one.kind in _BY_POSITION]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return [], []
    return [name for name, required in given if required or name in CONVENTIONS], [name for name, _ in given]


def _checked_array(output: Tensor, where: str) -> tuple[str, np.ndarray]:
    try:
        array, name = host_array(output), str(output.dtype).removeprefix("torch.")
    except (TypeError, RuntimeError):
        name = ""
    if name not in NAMES:
        layout = "" if output.layout is torch.strided else f", {output.layout}"
        raise InputError(
            f"{where}: returns a tensor of type {output.dtype}{layout}; supported are dense tensors of "
            f"{', '.join(name for name in NAMES if name != 'bytes')}"
        )
    return NAMES[name], array


# Where modules come from.


def file_module(path: Path, where: str, quiet: bool, device: str) -> Loaded:
    """The module in a file, and what the file says of its inputs.

    Files are read by torch.jit.load and torch.export.load, which build graphs and run no code of the file's author; nothing
    is unpickled.

    Args:
        path: of the file.
        where: the model, as errors begin.
        quiet: others are served meanwhile, who must not notice: a large file then takes seconds more.
        device: where the module is to be.

    Raises:
        InputError: it is not such a file.
    """
    expected = TORCHSCRIPT if path.suffix == ".pt" else EXPORTED
    unread = f"{where}: {path} is not a readable {expected} file"
    try:
        _read_ahead(path)
        if (found := form_of(path)) != expected:
            raise InputError(f"{unread}: it is {found}")
        with silent_torchscript():
            if expected == TORCHSCRIPT:
                apart = quiet and path.stat().st_size > LARGE
                graph = load_apart(path, device) if apart else torch.jit.load(str(path), map_location=device)
                return Loaded(frozen_weights(graph, device))
            program = torch.export.load(str(path))
            # A graph names the device of the tensors that it makes, which Module.to leaves as it is.
            described = _exported_inputs(program)
            by_position = len(program.example_inputs[0]) if program.example_inputs else len(described)
            module = (program if device == "cpu" else move_to_device_pass(program, device)).module()
            return Loaded(frozen_weights(module, device), described, by_position)
    except InputError:
        raise
    except Exception as error:  # a file from outside may fail in any way inside the two loaders
        raise InputError(f"{unread}: {str(error).strip().splitlines()[0]}") from error


def _exported_inputs(program: ExportedProgram) -> Described:
    """Names, types and shapes of an exported program's inputs; sizes that it left open vary."""
    found: Described = {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name in program.graph_signature.user_inputs:
        value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
        if not isinstance(value, Tensor):
            continue
        shape = tuple(size if isinstance(size, int) else VARIES for size in value.shape[1:])
        known = {"shape": shape, "datatype": NAMES.get(str(value.dtype).removeprefix("torch."), "FP32")}
        found[name] = CONVENTIONS.get(name, {}) | known
    return found


def _read_ahead(path: Path) -> None:
    """Bring a file, and memory for it, in reach: torch.jit.load holds Python's lock until it has both."""
    with path.open("rb") as file:
        parts = iter(lambda: file.read(1 << 20), b"")
        list(parts)


def frozen_weights(module: nn.Module, device: str) -> nn.Module:
    """A module on a device, in evaluation mode, whose weights need no gradients; graphs are on the device already."""
    module = module if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule) else module.to(device)
    if not isinstance(module, torch.fx.GraphModule):  # an exported graph refuses the call
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
