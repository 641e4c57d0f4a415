"""The process that runs the user's code before and after models, see `serving.api.processes.steps`."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from serving.api.tensors import plain_values
from serving.models.processes.pool import Job, pack_tensors, unpack_tensors, work
from serving.models.program import ArrayProgram, Output
from serving.models.users_code import first_line, imported
from traces.errors import InputError


class _Refused(Exception):
    """The user's code says that its input is bad, by a ValueError."""


@functools.cache
def _function(name: str, folder: str) -> Callable[..., Any]:
    """The user's function, imported. The process serves one model, as it was loaded, so that names clash with nobody's."""
    found = imported(name, folder)
    if not callable(found):
        raise InputError(f"{name!r} is {type(found).__name__}; it must be a function")
    return found


def _whole(name: str, output: Output, where: str) -> np.ndarray:
    """An output of all items, whose shapes are the same."""
    if isinstance(output.values, np.ndarray):
        return output.values
    shapes = {one.shape for one in output.values}
    if len(shapes) > 1:
        raise InputError(f"{where}: items of {name!r} have different shapes ({min(shapes)}, {max(shapes)}); pad them")
    return np.stack(output.values)


def _done(job: dict[str, Any], data: np.ndarray) -> Job:
    """Run a step; a job without tensors only imports its function."""
    where, begin_s = job["function"], time.perf_counter()
    try:
        function = _function(where, job["folder"])
        given = unpack_tensors(job["tensors"], data)
        arrays = {name: plain_values(array, datatype) for name, (datatype, array) in given.items()}
        if not arrays:
            return {"tensors": []}, b""
        begin_s = time.perf_counter()

        def call(**given: np.ndarray) -> Any:
            try:
                return function(**given)
            except ValueError as error:
                raise _Refused(first_line(error)) from None

        program = ArrayProgram(call, where)
        program.bind(list(arrays), job["outputs"])
        outputs = program.run(list(arrays.values()))
        found = {name: (output.datatype, _whole(name, output, where)) for name, output in zip(program.outputs, outputs)}
        heads, parts = pack_tensors(found)
    except _Refused as error:
        return {"refused": str(error)}, b""
    except InputError as error:
        return {"error": first_line(error)}, b""
    except BaseException as error:  # SystemExit, too
        if not isinstance(error, SystemExit):
            traceback.print_exc()  # for the log: the answer has one line of it
        return {"error": f"{where}: {type(error).__name__}: {first_line(error)}"}, b""
    return {"tensors": heads, "took_ms": 1e3 * (time.perf_counter() - begin_s)}, parts


def main() -> None:
    """The process."""
    work(_done)
