"""What is in a model's file: its format, and whether its graph was made in training mode."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

TORCHSCRIPT, EXPORTED = "TorchScript (torch.jit.save)", "torch.export (torch.export.save)"
SAVED = "weights or a pickled module (torch.save) without a graph; use torch.jit.save or torch.export.save"
DAMAGED = "damaged, or of another format"
_MARKS = {
    "constants.pkl": TORCHSCRIPT,
    "archive_format": EXPORTED,
    "serialized_exported_program.json": EXPORTED,
    "data.pkl": SAVED,
}
_TRAINING = ("training", "train", "dropout_p")


def form_of(path: Path) -> str:
    """The format of a file, by what is in it. Nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return SAVED if file.read(1) == b"\x80" else DAMAGED  # a pickle, as torch.save wrote them before 1.6
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return next((form for mark, form in _MARKS.items() if mark in names), DAMAGED)


def fixed_in_training(module: nn.Module) -> str | None:
    """The first operation of a graph that runs as in training whatever the module's mode is; None for eager modules."""
    for operation, given in _operations(module):
        # Without running statistics the batch's own are used in evaluation, too: that is how instances are normalised.
        if "no_stats" in operation:
            continue
        for name in _TRAINING:
            value = given.get(name)
            if value is True or (isinstance(value, float) and value > 0):
                return f"{operation} with {name}={value}"
    return None


def _operations(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation of a TorchScript or exported graph, with its constant arguments by name."""
    if isinstance(module, torch.jit.ScriptModule):
        for node in _nodes(module.inlined_graph):
            schema = node.schema()
            if any(name in schema for name in _TRAINING):
                names = [argument.name for argument in torch._C.parse_schema(schema).arguments]
                yield node.kind(), dict(zip(names, (value.toIValue() for value in node.inputs())))
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload):
                names = [argument.name for argument in node.target._schema.arguments]
                yield str(node.target), dict(zip(names, node.args)) | node.kwargs


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
