"""The process that runs a model which is a callable over arrays, see `serving.models.processes.own_process`."""

from __future__ import annotations

import functools
import sys
import traceback
from typing import Any

import numpy as np
import orjson

from serving.models.processes.pool import Job, pack_tensors, unpack_tensors, work
from serving.models.program import ArrayProgram
from serving.models.users_code import error_line, imported, users_code
from traces.errors import InputError


@functools.cache
def _program(factory: str, folder: str, seed: int) -> ArrayProgram:
    make = imported(factory, folder)
    with users_code(f"{factory} cannot be called"):
        if "torch" in sys.modules:  # of those who imported it
            sys.modules["torch"].manual_seed(seed)
        made = make()
    torch = sys.modules.get("torch")
    if not callable(made) or (torch is not None and isinstance(made, torch.nn.Module)):
        raise InputError(
            f"{factory} returned {type(made).__name__}; with own_process it must return a callable over arrays "
            "(a torch.nn.Module needs none: it runs without Python's lock)"
        )
    return ArrayProgram(made, factory)


def _done(job: dict[str, Any], data: np.ndarray) -> Job:
    """Run a batch; a job without tensors asks what the callable says of its tensors."""
    try:
        program = _program(job["factory"], job["folder"], job["seed"])
        if not job["tensors"]:
            inputs = orjson.loads(orjson.dumps(program.inputs, option=orjson.OPT_SERIALIZE_NUMPY))
            return {"inputs": inputs, "outputs": list(getattr(program.module, "outputs", ()))}, b""
        given = unpack_tensors(job["tensors"], data)
        program.bind(list(given), job["outputs"])
        outputs = program.run([array for _, array in given.values()])
        shapes: list[tuple[str, int | None]] = []
        flat: list[tuple[str, np.ndarray]] = []
        for name, (datatype, values) in zip(program.outputs, outputs):
            items = values if isinstance(values, list) else [values]
            shapes.append((name, len(items) if items is values else None))
            flat += [(datatype, one) for one in items]
        heads, parts = pack_tensors({str(place): one for place, one in enumerate(flat)})
    except InputError as error:
        return {"error": str(error)}, b""
    except BaseException as error:  # SystemExit, too
        traceback.print_exc()  # for the log: the answer has one line of it
        return {"error": error_line(error)}, b""
    return {"tensors": heads, "outputs": shapes}, parts


def main() -> None:
    """The process."""
    work(_done)
