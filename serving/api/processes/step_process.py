"""The process that runs the user's code before and after models, see `serving.api.processes.steps`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.api.processes.pool import Buffer, Job, work
from serving.api.tensors import from_bytes, plain_values, to_bytes
from serving.models.program import ArrayProgram
from serving.models.tensors import TensorSpec
from serving.models.users_code import error_line, users_code
from traces.errors import InputError


class _Refused(Exception):
    """The user's code says that its input is bad, by a ValueError."""


def described(tensors: Mapping[str, tuple[str, np.ndarray]]) -> tuple[list[dict[str, Any]], Buffer]:
    """Tensors, each with its type, by their names: as JSON, and their bytes."""
    parts = [to_bytes(array) for _, array in tensors.values()]
    heads = [
        {"name": name, "datatype": datatype, "shape": array.shape, "length": len(part)}
        for (name, (datatype, array)), part in zip(tensors.items(), parts)
    ]
    return heads, b"".join(parts)


def undescribed(heads: Sequence[Mapping[str, Any]], data: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """The reverse of `described`."""
    found, at = {}, 0
    for one in heads:
        spec = TensorSpec(one["name"], one["datatype"], ())
        found[spec.name] = spec.datatype, from_bytes(data.data[at : at + one["length"]], spec, tuple(one["shape"]))
        at += one["length"]
    return found


@functools.cache
def _function(name: str, folder: str, path: str, stamp: int) -> Callable[..., Any]:
    """The user's function, imported; again where its file has another stamp."""
    module, _, attribute = name.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with users_code(f"cannot import {name!r}"):
        if stamp:  # folders of several models may have modules of one name
            spec = importlib.util.spec_from_file_location(f"{module}@{folder}@{stamp}", path)
            assert spec is not None and spec.loader is not None
            made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(made)
        else:
            made = importlib.import_module(module)
        found = getattr(made, attribute)
    if not callable(found):
        raise InputError(f"{name!r} is {type(found).__name__}; it must be a function")
    return found


def _done(job: dict[str, Any], data: np.ndarray) -> Job:
    """Run a step; a job without tensors only imports its function."""
    try:
        function = _function(*(job[key] for key in ("function", "folder", "path", "stamp")))
        given = undescribed(job["tensors"], data)
        arrays = {name: plain_values(array, datatype) for name, (datatype, array) in given.items()}
        if not arrays:
            return {"tensors": []}, b""

        def call(**given: np.ndarray) -> Any:
            try:
                return function(**given)
            except ValueError as error:
                raise _Refused(error_line(error).removeprefix("ValueError: ")) from None

        program = ArrayProgram(call, job["function"])
        program.bind(list(arrays), job["outputs"])
        outputs = program.run(list(arrays.values()))
        for name, output in zip(program.outputs, outputs):
            if isinstance(output.values, list):
                raise InputError(f"{job['function']}: items of {name!r} have different shapes; pad them")
        found = {name: (output.datatype, output.values) for name, output in zip(program.outputs, outputs)}
        heads, parts = described(found)  # type: ignore[arg-type]
    except _Refused as error:
        return {"refused": str(error)}, b""
    except InputError as error:
        return {"error": str(error)}, b""
    except BaseException as error:  # SystemExit, too
        return {"error": f"{job['function']}: {error_line(error)}"}, b""
    return {"tensors": heads}, parts


def main() -> None:
    """The process."""
    work(_done)
