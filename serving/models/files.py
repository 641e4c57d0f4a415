"""What is in a model's file: its format, and whether its graph was made in training mode; and how a large one is read.

torch.jit.load holds Python's lock until it has the graph and all weights: 90 ms for 100 MB, in which a server answers nobody.
A process of its own takes such a file apart. Its graph without weights loads in a few ms, and weights alone hold no lock.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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
_GRAPH, _WEIGHTS, _SAME = "graph.pt", "weights.safetensors", "same"


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


# TorchScript without its weights, and its weights.


def weights_of(graph: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that has several names has all of them."""
    return dict([*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)])


def set_weights(graph: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of those of these names."""
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        setattr(functools.reduce(getattr, path, graph), leaf, tensor)


def without_values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes that take no memory."""
    return {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in weights.items()}


def load_apart(path: Path, device: str) -> torch.jit.ScriptModule:
    """What torch.jit.load does, without holding Python's lock for long; it takes the start of a process longer.

    Raises as torch.jit.load.
    """
    with tempfile.TemporaryDirectory(prefix="strait-") as folder:
        words = [sys.executable, "-c", f"from {__name__} import take_apart; take_apart()", str(path), folder]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if ended.returncode:  # an odd file, or one that cannot be read, which is then said as always
            return torch.jit.load(str(path), map_location=device)
        graph = torch.jit.load(str(Path(folder) / _GRAPH), map_location=device)
        with safe_open(Path(folder) / _WEIGHTS, "pt", device) as file:
            # Copies, since the file is gone afterwards; made one by one, in which others have the lock.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            same = json.loads(file.metadata()[_SAME])
    set_weights(graph, weights | {name: weights[first] for name, first in same.items()})
    return graph


def take_apart() -> None:
    """The process: the graph and the weights of a TorchScript file into a folder, both named on the command line."""
    source, folder = sys.argv[1], Path(sys.argv[2])
    os.nice(10)  # behind those who serve, the streams among them
    torch.set_num_threads(1)
    graph = torch.jit.load(source, map_location="cpu")
    weights = weights_of(graph)
    first: dict[Any, str] = {}
    same = {}
    for name, tensor in weights.items():
        at = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(at, name) != name:
            same[name] = first[at]
    kept = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items() if name not in same}
    save_file(kept, folder / _WEIGHTS, {_SAME: json.dumps(same)})
    set_weights(graph, without_values(weights))
    torch.jit.save(graph, str(folder / _GRAPH))
