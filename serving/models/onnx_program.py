"""ONNX files as programs, by onnxruntime: on the CPU, and on CUDA through tensors of the device. Needs the extra `onnx`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.models.program import CONVENTIONS, Described, Output, Program
from serving.models.served import Forward
from serving.models.tensors import NAMES, VARIES
from traces.errors import InputError

_TYPES = {"float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16", "string": "BYTES"}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def _runtime(where: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{where}: ONNX files need the extra onnx: pip install 'strait-rl[onnx]'") from None
    return onnxruntime


class OnnxProgram(Program):
    """An ONNX graph, whose inputs and outputs are named, typed and shaped by itself; the first side of each is the batch.

    Args:
        path: the file.
        where: the model, as errors begin.
    """

    platform = "onnxruntime_onnx"
    on_host = True

    def __init__(self, path: Path, where: str) -> None:
        self._runtime = _runtime(where)
        self._path, self._where = path, where
        session = self._session([CPU])
        self.inputs = _described(session.get_inputs(), where)
        self.outputs = tuple(one.name for one in session.get_outputs())
        self._datatypes = {one.name: _datatype(one, where) for one in session.get_outputs()}
        self._names = tuple(self.inputs)
        self.module = functools.partial(session.run, None)
        self._cpu = session

    def _session(self, providers: list[Any]) -> Any:
        options = self._runtime.SessionOptions()
        # As all models of the server: a thread of the executor each, and none of their own.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            return self._runtime.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:  # a file from outside may fail in any way; what it lacks is in the first line
            line = str(error).strip().splitlines()[0][:300]
            raise InputError(f"{self._where}: {self._path} cannot be run by onnxruntime: {line}") from None

    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        if odd := [name for name in inputs if name not in self.inputs]:
            raise InputError(f"{self._where}: {self._path} has no input {odd[0]!r}; it has {', '.join(self.inputs)}")
        if odd := [name for name in outputs if name not in self.outputs]:
            raise InputError(f"{self._where}: {self._path} has no output {odd[0]!r}; it has {', '.join(self.outputs)}")
        self._names = tuple(inputs)
        self.outputs = tuple(outputs) or self.outputs

    def run(self, arrays: Sequence[np.ndarray]) -> list[Output]:
        return [Output(self._datatypes[name], values) for name, values in zip(self.outputs, self._run(*arrays))]

    def _run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        given = {name: _text(array) if array.dtype == object else array for name, array in zip(self._names, arrays)}
        found = self._cpu.run(list(self.outputs), given)
        return [_bytes(values) if values.dtype == object else values for values in found]

    def build(self, device: str, examples: Sequence[Sequence[np.ndarray]], compiled: bool, name: str) -> Forward:
        if device == "cpu" or CUDA not in self._runtime.get_available_providers():
            return self._run
        return _OnCuda(self, int(device.partition(":")[2] or 0))

    def cuda_session(self, device: int, stream: int) -> Any:
        """A session whose work goes to one CUDA stream, given by its handle."""
        options = {"device_id": device, "user_compute_stream": str(stream), "do_copy_in_default_stream": False}
        return self._session([(CUDA, options), CPU])

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs, in the order in which they are given."""
        return self._names

    @property
    def datatypes(self) -> dict[str, str]:
        """The outputs' types in the protocol's words, by their names."""
        return self._datatypes

    def weights(self) -> tuple[int, int]:
        external = sum(one.stat().st_size for one in self._path.parent.glob(f"{self._path.name}*") if one.is_file())
        return external // 4, external


class _OnCuda:
    """Runs a graph on the calling thread's current CUDA stream, its inputs and outputs bound to memory of the device.

    A session belongs to one stream, so each stream gets one, with weights of its own, when it first runs. Not run on
    hardware yet: the machines at hand have no onnxruntime for CUDA.

    Args:
        program: the graph.
        device: number of the CUDA device.
    """

    def __init__(self, program: OnnxProgram, device: int) -> None:
        self._program = program
        self._device = device
        self._sessions: dict[int, Any] = {}

    def __call__(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        stream = torch.cuda.current_stream(self._device)
        session = self._sessions.get(stream.cuda_stream)
        if session is None:
            session = self._sessions[stream.cuda_stream] = self._program.cuda_session(self._device, stream.cuda_stream)
        binding = session.io_binding()
        held = []  # until the work that reads it has ended
        for name, array in zip(self._program.names, arrays):
            if array.dtype == object:
                binding.bind_cpu_input(name, _text(array))
                continue
            pinned = torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
            on_device = pinned.to(f"cuda:{self._device}", non_blocking=True)
            held += [pinned, on_device]
            binding.bind_input(name, "cuda", self._device, array.dtype, array.shape, on_device.data_ptr())
        for name in self._program.outputs:
            place = ("cpu", 0) if self._program.datatypes[name] == "BYTES" else ("cuda", self._device)
            binding.bind_output(name, *place)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        found = binding.copy_outputs_to_cpu()
        held.clear()
        return tuple(_bytes(values) if values.dtype == object else values for values in found)


def _described(inputs: Sequence[Any], where: str) -> Described:
    found: Described = {}
    for one in inputs:
        first, *sides = one.shape or [None]
        if isinstance(first, int) or not one.shape:
            raise InputError(
                f"{where}: input {one.name!r} has shape {list(one.shape)}; its first side must be dynamic, the batch "
                "(dynamic_axes at the export)"
            )
        shape = tuple(side if isinstance(side, int) and side > 0 else VARIES for side in sides)
        found[one.name] = CONVENTIONS.get(one.name, {}) | {"shape": shape, "datatype": _datatype(one, where)}
    return found


def _datatype(one: Any, where: str) -> str:
    word = one.type.removeprefix("tensor(").removesuffix(")")
    datatype = _TYPES.get(word) or NAMES.get(word)
    if datatype is None or datatype == "BF16":
        raise InputError(f"{where}: {one.name!r} is a {one.type}, which onnxruntime does not exchange with Python")
    return datatype


def _text(array: np.ndarray) -> np.ndarray:
    """BYTES as onnxruntime takes them: objects of type str."""
    made = np.empty(array.shape, object)
    made.ravel()[:] = [one.decode(errors="replace") for one in array.ravel().tolist()]
    return made


def _bytes(array: np.ndarray) -> np.ndarray:
    made = np.empty(array.size, object)
    made[:] = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel().tolist()]
    return made.reshape(array.shape)
