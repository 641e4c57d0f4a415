"""Large JSON is parsed and written in processes of their own: here it would hold Python's lock, and so everybody, for long."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from serving.api.infer_call import InferCall, Wanted, read_call, read_id
from serving.api.model_view import ModelView
from serving.api.protocol.json_codec import json_numbers, read_json
from serving.api.tensors import plain_values
from serving.models.processes.pool import Buffer, Job, WorkerProcesses, pack_tensors, unpack_tensors, work
from serving.models.tensors import TensorSpec, from_bytes, to_bytes
from traces.errors import InputError

SMALL = 128 * 1024  # bytes of JSON that are parsed or written in a few ms at most
PROCESSES = 2  # one client's odd JSON of 64 MiB, which takes seconds, leaves one to the others


class JsonProcesses:
    """Parses and writes large JSON, one job per process at a time."""

    def __init__(self) -> None:
        self._pool = WorkerProcesses(__name__, PROCESSES, "large JSON")

    async def read(self, body: Buffer, view: ModelView, most: int, named: Callable[[str | None], None]) -> InferCall:
        """A request as `read_call` has it.

        Args:
            body: JSON, whole.
            view: the model.
            most: most items of one call.
            named: called with the client's id of the request, also of one that is refused.

        Raises:
            InputError: it is not what it should be.
        """
        described = asdict(replace(view, buckets=()))
        result, data = await self._pool.run({"view": described, "most": most}, body)
        named(result["id"])
        if "error" in result:
            raise InputError(result["error"])
        values = tuple(array for _, array in unpack_tensors(result["tensors"], data).values())
        outputs = tuple(Wanted(*one) for one in result["outputs"])
        return InferCall(result["id"], values, result["size"], result["parameters"], outputs)

    async def write(self, array: np.ndarray, datatype: str) -> memoryview:
        """What `json_numbers` makes of an array of a type."""
        job = {"datatype": datatype, "shape": array.shape}
        _, text = await self._pool.run(job, to_bytes(array))
        return text.data

    def close(self) -> None:
        """End the processes; what they work on is lost."""
        self._pool.close()


def main() -> None:
    """The process."""
    os.nice(5)  # behind those who send little
    gc.disable()  # which looks at millions of new lists again and again, and would find nothing
    work(_done)


def _done(job: dict[str, Any], data: np.ndarray) -> Job:
    if "view" not in job:
        array = from_bytes(data.data, TensorSpec("", job["datatype"], ()), tuple(job["shape"]))
        return {}, json_numbers(plain_values(array, job["datatype"]))
    given = job["view"]
    specs = {
        side: tuple(TensorSpec(**one | {"shape": tuple(one["shape"])}) for one in given[side])
        for side in ("inputs", "outputs")
    }
    view = ModelView(**given | specs)
    id_ = None
    try:
        head = read_json(data.data)
        id_ = read_id(head)
        call = read_call(head, b"", view, job["most"])
    except InputError as error:
        return {"id": id_, "error": str(error)}, b""
    tensors, parts = pack_tensors(
        {spec.name: (spec.datatype, values) for spec, values in zip(view.inputs, call.values)}
    )
    described = {
        "id": id_,
        "tensors": tensors,
        "size": call.size,
        "parameters": call.parameters,
        "outputs": [tuple(one) for one in call.outputs],
    }
    return described, parts
