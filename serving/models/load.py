"""Loads a model from its source, checks that it runs on batches, and counts its costs."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from serving.models.buckets import bucket_sizes, keeps_answers, learn_cuts, least_size
from serving.models.builtin.registry import BUILTIN
from serving.models.processes.own_process import OwnProcess, OwnProcessProgram
from serving.models.program import ArrayProgram, Output, Program
from serving.models.served import Forward, ModelSpec, ServedModel, SizeRule
from serving.models.tensors import NAMES, VARIES, TensorSpec, bucket_name, datatype_of
from serving.models.torch_program import Loaded, TorchProgram, file_module, frozen_weights
from serving.models.users_code import users_code
from traces.errors import InputError

log = logging.getLogger(__name__)

MODEL_FILES = (".pt", ".pt2", ".onnx")
SOURCES = "builtin:NAME, hf:FOLDER, a .pt, .pt2 or .onnx file, or module:factory"


def load_model(spec: ModelSpec) -> ServedModel:
    """Load a model of fixed sizes; errors as of `load_buckets`.

    Raises:
        InputError: its size varies.
    """
    models = load_buckets(spec)
    if models[0].bucket is not None:
        raise InputError(f"model {spec.name!r}: its size varies; it is loaded as buckets")
    return models[0]


def load_buckets(spec: ModelSpec, known: Sequence[int] = (), quiet: bool = False) -> tuple[ServedModel, ...]:
    """Load a model: one of fixed sizes, or its buckets, which share its weights and its compiled form.

    A factory is Python code of the user's own; files are only read.

    Args:
        spec: where it comes from.
        known: buckets that a profile knows, for a model that does not name its own.
        quiet: others are served meanwhile, see `serving.models.torch_program.file_module`.

    Raises:
        InputError: unknown source, unreadable file, whatever the model's own code raises, or a model that does not map
            tensors (batch, ...) to tensors (batch, ...) of known types for every batch size.
    """
    spec = _with_defaults(spec)
    where = f"model {spec.name!r}"
    program = _open(spec, where, quiet)
    inputs = _inputs(spec, program, where)
    program.bind([one.name for one in inputs], list(spec.outputs))
    if isinstance(program, TorchProgram):
        program.take([one.datatype for one in inputs])
    sizes = bucket_sizes(spec, inputs, program.max_size, known, where)
    probe = _Probe(program, inputs, spec, where)
    outputs = [probe.outputs(size) for size in (sizes[0], sizes[-1])[: len(set(sizes))]]
    described = _outputs(spec, program, outputs, where)
    cuts: tuple[dict[int, SizeRule], ...] = tuple({} for _ in described)
    exact = False
    if sizes[0] is not None:
        described, cuts = learn_cuts(probe.shapes, described, sizes)
        exact = not keeps_answers(probe.run, inputs, cuts, sizes, probe.rng)
        if exact:
            log.warning(
                "model %s answers otherwise when its inputs are padded: only items of one size run together; a mask among "
                "its inputs would let all sizes of a bucket do so", spec.name,
            )  # fmt: skip
    least = least_size(probe.runs, sizes[0]) if exact and sizes[0] is not None else 1
    weights, weight_bytes = program.weights()

    @functools.cache
    def build(device: str) -> Forward:
        ends = (sizes[0], sizes[-1])[: len(set(sizes))]
        return program.build(device, [probe.examples(size) for size in ends], spec.compiled, spec.name)

    def model(size: int | None) -> ServedModel:
        with users_code(f"{where}: its operations cannot be counted"):
            flops, activation_bytes = program.costs([one[:1] for one in probe.examples(size)])
        return ServedModel(
            name=bucket_name(spec.name, size),
            kind=spec.kind or program.kind,
            source=spec.source,
            module=program.module,
            build=build,
            inputs=inputs,
            outputs=described,
            parameters=weights,
            weight_bytes=weight_bytes,
            flops_per_item=flops,
            activation_bytes_per_item=activation_bytes,
            bucket=size,
            cuts=cuts,
            exact=exact,
            least=least,
            on_host=program.on_host,
            platform=program.platform,
            version=spec.version,
            preprocess=spec.preprocess,
            postprocess=spec.postprocess,
        )

    return tuple(model(size) for size in sizes)


def may_vary(spec: ModelSpec) -> bool:
    """Whether a model may turn out to have buckets, which only loading it can say."""
    fixed = spec.source.startswith("builtin:") or spec.input_shape is not None
    said = [tensor.get("shape") for tensor in spec.inputs.values()]
    return not fixed and not (said and all(shape is not None and VARIES not in shape for shape in said))


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


def _open(spec: ModelSpec, where: str, quiet: bool) -> Program:
    source = spec.source
    is_file = source.endswith(MODEL_FILES)
    if spec.own_process and (is_file or ":" not in source or source.startswith(("hf:", "builtin:"))):
        raise InputError(
            f"{where}: own_process is for a module:factory that returns a callable over arrays, not {source}"
        )
    if source.startswith("hf:"):
        from serving.models.huggingface import open_folder

        return open_folder(Path(source.removeprefix("hf:")), where)
    if is_file:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{where}: no file {source}")
        if path.suffix == ".onnx":
            from serving.models.onnx_program import OnnxProgram

            return OnnxProgram(path, where)
        return TorchProgram(functools.partial(file_module, path, where, quiet), where, source)
    if ":" not in source:
        raise InputError(f"{where}: source {source!r} is not {SOURCES}")
    if spec.own_process:
        return OwnProcessProgram(OwnProcess(source, spec.folder, spec.seed, where), where)
    factory = BUILTIN[source.partition(":")[2]].factory if source.startswith("builtin:") else source
    made = _call_factory(factory, spec, where)
    if not isinstance(made, nn.Module):
        return ArrayProgram(made, where)
    # A device of its own gets a module of its own: the weights are the same, since they come from the seed.
    loaded = {"cpu": Loaded(frozen_weights(made, "cpu"))}
    return TorchProgram(
        lambda device: loaded.get(device) or Loaded(frozen_weights(_call_factory(factory, spec, where), device)),
        where,
        source,
    )


def _call_factory(factory: str, spec: ModelSpec, where: str) -> Any:
    module_name, _, attribute = factory.partition(":")
    with users_code(f"{where}: cannot import {factory!r}"), _search_path(spec.folder):
        make = getattr(importlib.import_module(module_name), attribute)
    # Weights come from the seed alone, and the caller's generator is left as it was.
    with users_code(f"{where}: {factory} cannot be called"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        made = make()
    if not callable(made):
        raise InputError(
            f"{where}: {factory} returned {type(made).__name__}; it must return a torch.nn.Module or a callable"
        )
    return made


@contextmanager
def _search_path(folder: str) -> Iterator[None]:
    """Look for modules in a folder first; from then on last, there and in the current one, for later imports."""
    sys.path.insert(0, folder)
    sys.path.extend(place for place in (folder, str(Path.cwd())) if place not in sys.path[1:])
    try:
        yield
    finally:
        sys.path.remove(folder)


def _inputs(spec: ModelSpec, program: Program, where: str) -> tuple[TensorSpec, ...]:
    """The model's inputs: what its source says of them, and over it what the spec says."""
    if spec.input_shape is not None:
        if any(not isinstance(side, int) or side < 1 for side in spec.input_shape):
            raise InputError(f"{where}: input_shape is {spec.input_shape}; every side must be a positive integer")
        dtype = spec.input_dtype or "float32"
        if dtype not in NAMES:
            raise InputError(f"{where}: input_dtype {dtype!r} is not one of {', '.join(NAMES)}")
        # Only of our own models do we know that input_high is a bound and not just an example.
        bounded = spec.source.startswith("builtin:") and np.issubdtype(dtype, np.integer)
        shape = tuple(spec.input_shape)
        return (TensorSpec("input", NAMES[dtype], shape, high=spec.input_high, bounded=bounded),)
    names = list(program.inputs)
    if spec.inputs and not set(spec.inputs) & set(names):  # other names, or all that is known
        names = [*spec.inputs]
    names += [name for name in spec.inputs if name not in names]
    if not names:
        raise InputError(f"{where}: {spec.source} does not say what it takes; name its inputs in models.yaml")
    return tuple(_tensor(name, program.inputs.get(name, {}), spec, where) for name in names)


def _tensor(name: str, known: dict[str, Any], spec: ModelSpec, where: str) -> TensorSpec:
    fields = {"datatype": "FP32"} | known | dict(spec.inputs.get(name, {}))
    if "shape" not in fields:
        raise InputError(
            f"{where}: {spec.source} needs input_shape, or a shape of its input {name!r} in inputs: that of one item, "
            "without the batch dimension, -1 where a size varies"
        )
    return TensorSpec(name, **fields | {"shape": tuple(fields["shape"]), "datatype": datatype_of(fields["datatype"])})


class _Outputs(NamedTuple):
    """What a model answered to one item, with the shapes of one item's outputs; -1 where they differed between items."""

    answers: list[Output]
    shapes: list[tuple[int, ...]]


class _Probe:
    """Runs a program on examples, and checks what comes back."""

    def __init__(self, program: Program, inputs: tuple[TensorSpec, ...], spec: ModelSpec, where: str) -> None:
        self._program = program
        self._inputs = inputs
        self._seed = spec.seed
        self._where = where
        self.rng = np.random.default_rng(spec.seed)

    def examples(self, size: int | None) -> list[np.ndarray]:
        """Four items of a size, the same at each call."""
        rng = np.random.default_rng(self._seed)
        return [np.stack([spec.sized(size).example(rng) for _ in range(4)]) for spec in self._inputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[Output]:
        """Run a batch."""
        shapes = ", ".join(f"{array.shape}, {spec.dtype}" for spec, array in zip(self._inputs, arrays))
        with users_code(f"{self._where}: fails on an input of shape {shapes}{self._program.hint}"):
            return self._program.run(arrays)

    def outputs(self, size: int | None) -> _Outputs:
        """Run one, three and four items.

        Raises:
            InputError: the outputs are not one row per item, of the same type and number of dimensions.
        """
        examples = self.examples(size)
        runs = [self.run([one[:count] for one in examples]) for count in (1, 3, 4)]
        shapes: list[list[tuple[int, ...]]] = [[] for _ in runs[0]]
        for count, outputs in zip((1, 3, 4), runs):
            for place, output in enumerate(outputs):
                shapes[place] += self._item_shapes(output, count)
        merged = []
        for found in shapes:
            if len({len(shape) for shape in found}) != 1:
                raise InputError(f"{self._where}: items give outputs of {found[0]} and {found[-1]}; "
                                 "the number of dimensions must be the same")  # fmt: skip
            merged.append(tuple(sides[0] if len(set(sides)) == 1 else VARIES for sides in zip(*found)))
        return _Outputs(runs[0], merged)

    def _item_shapes(self, output: Output, count: int) -> list[tuple[int, ...]]:
        values = output.values
        if isinstance(values, list):
            return [one.shape for one in values]
        if values.ndim < 1 or len(values) != count:
            raise InputError(f"{self._where}: {count} inputs give an output of shape {values.shape}; "
                             f"the first side must be {count}")  # fmt: skip
        return [values.shape[1:]]

    def runs(self, size: int) -> bool:
        """Whether it runs at a size."""
        try:
            self.run([one[:1] for one in self.examples(size)])
        except InputError:
            return False
        return True

    def shapes(self, size: int) -> list[tuple[int, ...]]:
        """Shapes of one item's outputs at a size."""
        examples = [one[:1] for one in self.examples(size)]
        return [self._item_shapes(output, 1)[0] for output in self.run(examples)]


def _outputs(spec: ModelSpec, program: Program, found: Sequence[_Outputs], where: str) -> tuple[TensorSpec, ...]:
    """The model's outputs, as it answered; what the spec says of a shape must hold."""
    specs = []
    for place, name in enumerate(program.outputs):
        answer = found[0].answers[place]
        sides = zip(*(one.shapes[place] for one in found))
        shape = tuple(side[0] if len(set(side)) == 1 else VARIES for side in sides)
        given = dict(spec.outputs.get(name, {}))
        wanted = tuple(given.get("shape", shape))
        if len(wanted) != len(shape) or any(a not in (b, VARIES) for a, b in zip(wanted, shape)):
            raise InputError(f"{where}: output {name!r} has shape {list(shape)} for one item, not {list(wanted)}")
        if "datatype" in given and datatype_of(given["datatype"]) != answer.datatype:
            raise InputError(f"{where}: output {name!r} is {answer.datatype}, not {given['datatype']}")
        specs.append(TensorSpec(name, answer.datatype, wanted, pad=given.get("pad", 0.0)))
    return tuple(specs)
