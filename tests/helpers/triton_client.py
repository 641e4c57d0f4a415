"""tritonclient over HTTP and over gRPC, alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http


class Client:
    """A client of one of the protocols; it lives on one thread."""

    def __init__(self, protocol: str, port: int) -> None:
        self.module: Any = triton_http if protocol == "http" else triton_grpc
        self.client = self.module.InferenceServerClient(f"127.0.0.1:{port}")
        self.protocol = protocol

    def tensor(self, name: str, values: np.ndarray, datatype: str) -> Any:
        made = self.module.InferInput(name, values.shape, datatype)
        made.set_data_from_numpy(values)
        return made

    def infer(self, model: str, outputs: list[str] | None = None, **values: tuple[np.ndarray, str]) -> Any:
        inputs = [self.tensor(name, array, datatype) for name, (array, datatype) in values.items()]
        wanted = None if outputs is None else [self.module.InferRequestedOutput(name) for name in outputs]
        return self.client.infer(model, inputs, outputs=wanted)
