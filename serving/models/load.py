"""Loads a model from its source: built-in, TorchScript file, torch.export file or Python factory."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from serving.models.builtin.registry import BUILTIN
from serving.models.compile import compile_forward, silent_torchscript, uncompiled
from serving.models.cost import count_costs, count_weights
from serving.models.served import DTYPES, Forward, ModelSpec, ServedModel, example_input
from traces.errors import InputError


def load_model(spec: ModelSpec) -> ServedModel:
    """Load one model, check that it runs on batches, and count its costs.

    Files are read by torch.jit.load and torch.export.load, which build graphs and run no code of the file's author;
    nothing is unpickled. A factory is Python code of the user's own.

    Raises:
        InputError: unknown source, unreadable file, or a model that does not map (batch, *input_shape) to one tensor
            (batch, ...) for every batch size.
    """
    spec = _with_defaults(spec)
    where = f"model {spec.name!r}"
    shape, dtype = _checked_input(spec, where)
    module = _load_module(spec, where)
    rng = np.random.default_rng(spec.seed)
    examples = np.stack([example_input(shape, dtype, spec.input_high, rng) for _ in range(4)])
    example = torch.from_numpy(examples)
    output = _checked_output(module, example, where)
    weights, weight_bytes = count_weights(module)
    flops, activation_bytes = count_costs(module, example[:1])
    releases_lock = isinstance(module, torch.jit.ScriptModule) or (
        spec.compiled and compile_forward(module, example)[1]
    )

    def build(device: str) -> Forward:
        # Device "cpu" shares the weights of `module`; any other gets a copy, because frozen graphs cannot be moved.
        target = module if device == "cpu" else _load_module(spec, where, device)
        return compile_forward(target, example.to(device))[0] if spec.compiled else uncompiled(target)

    return ServedModel(
        name=spec.name,
        kind=spec.kind or "custom",
        source=spec.source,
        module=module,
        build=build,
        input_shape=shape,
        input_dtype=dtype,
        input_high=spec.input_high,
        output_shape=tuple(output.shape[1:]),
        output_dtype=str(output.dtype).removeprefix("torch."),
        parameters=weights,
        weight_bytes=weight_bytes,
        flops_per_item=flops,
        activation_bytes_per_item=activation_bytes,
        releases_lock=releases_lock,
    )


def builtin_spec(name: str) -> ModelSpec:
    """Return the spec of a built-in model.

    Raises:
        InputError: there is no such model.
    """
    return _with_defaults(ModelSpec(name=name, source=f"builtin:{name}"))


def spec_of(text: str) -> ModelSpec:
    """Return the spec of a model given in one word: a built-in name, or ``NAME=SOURCE`` (see ``ModelSpec.source``).

    Raises:
        InputError: neither.
    """
    name, equals, source = text.partition("=")
    if equals:
        return ModelSpec(name=name, source=source)
    return builtin_spec(text)


def _with_defaults(spec: ModelSpec) -> ModelSpec:
    scheme, _, key = spec.source.partition(":")
    if scheme != "builtin":
        return spec
    if key not in BUILTIN:
        raise InputError(f"model {spec.name!r}: no built-in model {key!r}; there are {', '.join(BUILTIN)}")
    own = BUILTIN[key]
    for field in ("input_shape", "input_dtype"):
        given = getattr(spec, field)
        if given is not None and given != getattr(own, field):
            raise InputError(f"model {spec.name!r}: {field} is {given}, but {spec.source} takes {getattr(own, field)}")
    return replace(spec, input_shape=own.input_shape, input_dtype=own.input_dtype, input_high=own.input_high,
                   kind=spec.kind or own.kind)  # fmt: skip


def _checked_input(spec: ModelSpec, where: str) -> tuple[tuple[int, ...], str]:
    if spec.input_shape is None:
        raise InputError(
            f"{where}: {spec.source} needs input_shape, the shape of one input without the batch dimension"
        )
    if any(not isinstance(side, int) or side < 1 for side in spec.input_shape):
        raise InputError(f"{where}: input_shape is {spec.input_shape}; every side must be a positive integer")
    dtype = spec.input_dtype or "float32"
    if dtype not in DTYPES:
        raise InputError(f"{where}: input_dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return tuple(spec.input_shape), dtype


def _load_module(spec: ModelSpec, where: str, device: str = "cpu") -> nn.Module:
    source = spec.source
    if source.endswith((".pt", ".pt2")):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{where}: no file {source}")
        module = _load_file(path, where, device)
    elif ":" in source:
        factory = BUILTIN[source.partition(":")[2]].factory if source.startswith("builtin:") else source
        module = _call_factory(factory, spec.seed, where).to(device)
    else:
        raise InputError(f"{where}: source {source!r} is not builtin:NAME, a .pt or .pt2 file, or module:factory")
    if not isinstance(module, torch.fx.GraphModule):  # an exported graph is in evaluation mode and refuses the call
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _load_file(path: Path, where: str, device: str) -> nn.Module:
    try:
        with silent_torchscript():
            if path.suffix == ".pt":
                return torch.jit.load(str(path), map_location=device)
            program = torch.export.load(str(path))
            # A graph names the device of the tensors that it makes, which Module.to leaves as it is.
            return (program if device == "cpu" else move_to_device_pass(program, device)).module()
    except Exception as error:  # a file from outside may fail in any way inside the two loaders
        kind = "TorchScript (torch.jit.save)" if path.suffix == ".pt" else "torch.export (torch.export.save)"
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{where}: {path} is not a readable {kind} file: {reason}") from error


def _call_factory(factory: str, seed: int, where: str) -> nn.Module:
    module_name, _, attribute = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where}: cannot import {factory!r}: {error}") from error
    # Weights come from the seed alone, and the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}: {factory} returned {type(module).__name__}; it must return a torch.nn.Module")
    return module


def _checked_output(module: nn.Module, example: Tensor, where: str) -> Tensor:
    """Run one, three and four inputs; return the output for one."""
    outputs: list[Tensor] = []
    for size in (1, 3, 4):
        try:
            with torch.inference_mode():
                output = module(example[:size])
        except Exception as error:  # the model is the user's code
            reason = str(error).strip().split("\n")[0]
            shape = (size, *example.shape[1:])
            raise InputError(f"{where}: fails on an input of shape {shape}, {example.dtype}: {reason}") from error
        if not isinstance(output, Tensor):
            raise InputError(f"{where}: returns {type(output).__name__}; it must return one tensor (batch, ...)")
        if output.dim() < 1 or len(output) != size or (outputs and output.shape[1:] != outputs[0].shape[1:]):
            raise InputError(f"{where}: {size} inputs give an output of shape {tuple(output.shape)}; "
                             f"the first side must be {size} and the others fixed")  # fmt: skip
        outputs.append(output)
    return outputs[0]
