"""What Triton's Python backend runs: copied into a model repository as ``model.py``, beside ``model.pt``.

Triton's own process imports it, so it imports nothing of the project. Tensors are handed over without copies, by DLPack:
Triton's arrays are wrong under NumPy 2.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NICENESS = 5


class TritonPythonModel:
    """A TorchScript model on one thread, as Strait's CPU executor runs it."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the model and run it at each batch size."""
        # What Strait's CPU executor asks of the system (serving/executors/cpu.py), but for the pinning to cores.
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        os.nice(_NICENESS)
        torch.set_num_threads(1)
        torch._C._jit_set_profiling_executor(False)
        torch._C._jit_set_profiling_mode(False)
        self.forward = torch.jit.load(str(Path(__file__).with_name("model.pt"))).forward
        config = json.loads(args["model_config"])
        (given,) = config["input"]
        kind = torch.float32 if given["data_type"] == "TYPE_FP32" else torch.int64
        for size in range(1, max(config["max_batch_size"], 1) + 1):
            for _ in range(2):
                self.forward(torch.zeros((size, *map(int, given["dims"])), dtype=kind))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of a batch together; an answer for each."""
        inputs = [from_dlpack(pb_utils.get_input_tensor_by_name(one, "input").to_dlpack()) for one in requests]
        outputs = self.forward(torch.cat(inputs)).split([len(one) for one in inputs])
        return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("output", one)]) for one in outputs]
