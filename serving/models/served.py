"""What a model is to the server: where it comes from, its tensors and its costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from serving.models.tensors import NAMES, Item, TensorSpec, split_bucket

TORCH_DTYPES: dict[str, torch.dtype] = {
    datatype: getattr(torch, name) for name, datatype in NAMES.items() if datatype != "BYTES"
}
"""PyTorch's type for each of the protocol's, BYTES aside."""

Forward = Callable[..., Any]
"""A batched inference on one device: of a tensor (an array, if `ServedModel.on_host`) per input; one output or a tuple."""


@dataclass(frozen=True)
class HostStep:
    """Code of the user's that runs on the host before a model, or after it, in a process of its own.

    Attributes:
        function: `module:function`, called with all items of a request by the names of their tensors: f(text=...).
        tensors: what clients send (before the model), or get (after it).
        folder: where the module is looked for first.
        alone_ms: time that it took for one item when the model was loaded.
    """

    function: str
    tensors: tuple[TensorSpec, ...]
    folder: str = ""
    alone_ms: float = 0.0


@dataclass(frozen=True)
class ModelSpec:
    """One model to serve.

    Attributes:
        name: the name under which requests ask for it.
        source: `builtin:NAME`, a TorchScript file `*.pt`, a torch.export file `*.pt2`, an ONNX file `*.onnx`, `hf:FOLDER`
            (a local folder of Hugging Face), or a Python factory `module:factory` that returns an `nn.Module` or any
            callable over named arrays.
        input_shape: shape of the one input, without the batch dimension, of a model that has one input, "input", and one
            output, "output"; None takes names and shapes from the model and from `inputs`.
        input_dtype: type of that input; None takes the built-in model's own, else float32.
        input_high: integer inputs of examples are drawn from [0, input_high).
        inputs: what is to be known of each input beyond what the model says, by its name: fields of
            `serving.models.tensors.TensorSpec`.
        outputs: the same of each output; for a model that does not name its outputs, in their order.
        buckets: sizes that items of varying size are padded to, ascending.
        max_size: the largest of these, where they are not given: powers of two up to it.
        kind: a word for the architecture, used in reports only.
        seed: seed of random weights (built-in models and factories).
        own_process: run a factory's callable in processes of its own, one for each stream (serving.models.processes).
        compiled: run as a TorchScript graph where that answers alike, so that a whole forward runs without Python's lock.
        preprocess: what makes the model's inputs of what clients send; None: they send the model's inputs.
        postprocess: what makes what clients get of the model's outputs; None: they get these.
        folder: where a factory is looked for, too: that of the list of models.
        version: as clients name it.
    """

    name: str
    source: str
    input_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    input_high: int = 2
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    buckets: tuple[int, ...] = ()
    max_size: int | None = None
    kind: str = ""
    seed: int = 0
    own_process: bool = False
    compiled: bool = True
    preprocess: HostStep | None = None
    postprocess: HostStep | None = None
    folder: str = ""
    version: str = "1"


class SizeRule(NamedTuple):
    """How a size of an output follows from that of the input: (times * size + add) // per."""

    times: int
    add: int
    per: int

    def __call__(self, size: int) -> int:
        """The size of the output."""
        return max((self.times * size + self.add) // self.per, 0)


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, or one bucket of it, with its tensors and its costs.

    Attributes:
        name: the name under which it is scheduled: the model's, and the bucket's behind it.
        kind: a word for the architecture.
        source: where it came from, as in `ModelSpec`.
        module: the model on the CPU; callable on a batched tensor (or array) per input.
        build: returns the inference function for a device ("cpu", "cuda:0"), which all buckets share; costs a compilation.
        inputs: in the order in which the inference takes them.
        outputs: in the order in which it returns them.
        parameters: number of weights.
        weight_bytes: bytes of weights and buffers, which all buckets share.
        flops_per_item: floating-point operations of one item (a multiply-add counts as two).
        activation_bytes_per_item: bytes that the operations of one item write.
        bucket: size that inputs of varying size are padded to; None for a model of fixed sizes.
        cuts: for each output, the axes (of an item) whose size follows from that of the input, and how.
        exact: whether padding would change its answers, so that only items of one size run together.
        least: the least size that it takes.
        on_host: whether it runs on arrays of the host and not on tensors of the device.
        platform: what runs it, in the protocol's words.
        version: as clients name it.
        preprocess: as in `ModelSpec`.
        postprocess: as in `ModelSpec`.
    """

    name: str
    kind: str
    source: str
    module: Any
    build: Callable[[str], Forward]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    weight_bytes: int
    flops_per_item: float
    activation_bytes_per_item: float
    bucket: int | None = None
    cuts: tuple[Mapping[int, SizeRule], ...] = ()
    exact: bool = False
    least: int = 1
    on_host: bool = False
    platform: str = "pytorch"
    version: str = "1"
    preprocess: HostStep | None = None
    postprocess: HostStep | None = None

    @cached_property
    def model(self) -> str:
        """The model's name as clients know it."""
        return split_bucket(self.name)[0]

    @cached_property
    def padded(self) -> tuple[TensorSpec, ...]:
        """The inputs as they run: of the bucket's size."""
        return tuple(spec.sized(self.bucket) for spec in self.inputs)

    @cached_property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of one item's outputs in this bucket; -1 where they depend on more than its size."""
        return tuple(self.output_shape(place, self.bucket) for place in range(len(self.outputs)))

    @cached_property
    def input_bytes_per_item(self) -> int:
        """Bytes of one item's inputs."""
        return sum(spec.item_bytes for spec in self.padded)

    @cached_property
    def output_bytes_per_item(self) -> int:
        """Bytes of one item's outputs."""
        shapes = zip(self.outputs, self.output_shapes)
        return sum(TensorSpec("", spec.datatype, shape).item_bytes for spec, shape in shapes)

    def output_shape(self, place: int, size: int | None) -> tuple[int, ...]:
        """Shape of an item's output for an input of a size; -1 where it depends on more than that."""
        shape = list(self.outputs[place].shape)
        if size is not None:
            for axis, rule in self.cuts[place].items():
                shape[axis] = rule(size)
        return tuple(shape)

    def size_of(self, item: Item) -> int | None:
        """The size that varies of one item's inputs; None for a model of fixed sizes."""
        if self.bucket is None:
            return None
        return next(spec.size_of(values.shape) for spec, values in zip(self.inputs, item) if spec.varies)

    def example(self, rng: np.random.Generator) -> Item:
        """Draw one item, of the bucket's size; where padding would change the answers, of a size that it holds."""
        size = self.bucket
        if self.exact and size is not None:  # so that a batch costs what it costs when its items differ
            size = int(rng.integers(size // 2 + 1, size + 1))
        return tuple(spec.sized(size).example(rng) for spec in self.inputs)

    def takes(self, item: Item) -> bool:
        """Whether arrays can be one item: of their shapes, and of types that convert safely enough (not float to integer)."""
        fits = len(item) == len(self.inputs) and all(spec.takes(values) for spec, values in zip(self.inputs, item))
        return fits and (self.bucket is None or (self.size_of(item) or 0) <= self.bucket)

    def describe(self) -> dict[str, Any]:
        """Return the model's entry in `machine.json` of the measurement schema; shape and type are those of the first input."""
        first = self.padded[0]
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "flops_per_item": self.flops_per_item,
            "activation_bytes_per_item": self.activation_bytes_per_item,
            "input_bytes_per_item": self.input_bytes_per_item,
            "output_bytes_per_item": self.output_bytes_per_item,
            "input_shape": list(first.shape),
            "input_dtype": next(name for name, datatype in NAMES.items() if datatype == first.datatype),
        }


def host_array(output: Any) -> np.ndarray:
    """An output on the host as an array; bfloat16, which NumPy lacks, by its bits.

    Raises:
        TypeError, RuntimeError: NumPy has no such type.
    """
    if not isinstance(output, Tensor):
        return np.asarray(output)
    if output.dtype is torch.bfloat16:
        output = output.detach().contiguous().view(torch.uint16)
    return output.detach().resolve_conj().resolve_neg().numpy()


def host_view(buffer: Tensor) -> np.ndarray:
    """A buffer of the host as an array over the same memory; bfloat16 by its bits."""
    return (buffer.view(torch.uint16) if buffer.dtype is torch.bfloat16 else buffer).numpy()
