"""Callables over arrays that run in processes of their own, one for each stream.

In the server's process such a model takes Python's lock from everybody, and gets it late: a forest of 50 trees asks for it
hundreds of times a batch. In its own it does neither, and one that crashes costs a batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.models.processes.pool import FOREVER_S, Buffer, WorkerProcesses, pack_tensors, unpack_tensors
from serving.models.program import ArrayProgram
from serving.models.tensors import NAMES
from traces.errors import InputError

if TYPE_CHECKING:
    from serving.models.served import Forward

PROCESS = "serving.models.processes.model_process"


class OwnProcess:
    """A factory's callable, whose calls are made in processes of its own; each thread that calls it has one.

    Args:
        factory: `module:factory`, as in a list of models.
        folder: where it is looked for first.
        seed: of random weights.
        where: the model, as errors begin.

    Attributes:
        inputs, outputs: what the callable says of its tensors, from `describe` on.
        names: of the outputs, where the callable need not name them.
    """

    def __init__(self, factory: str, folder: str, seed: int, where: str) -> None:
        self._factory: dict[str, Any] = {"factory": factory, "folder": folder, "seed": seed}
        self._where = where
        self._pool = WorkerProcesses(PROCESS, 1, where)
        weakref.finalize(self, self._pool.close)
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: list[str] = []
        self.names: tuple[str, ...] = ()

    def describe(self) -> None:
        """Learn what it says of its tensors.

        Raises:
            InputError: the factory cannot be imported or called, or returns nothing that can be called.
        """
        with self._told_as_input():
            said, _ = self._ask({})
        self.inputs, self.outputs = said["inputs"], said["outputs"]

    def again(self) -> OwnProcess:
        """The same callable in other processes, which `start` starts; those so far end."""
        made = OwnProcess(**self._factory, where=self._where)
        made.names = self.names
        self.close()
        return made

    def start(self, count: int) -> None:
        """Start processes, which the threads that call it then take, and wait until they can run.

        Raises:
            InputError: one ended.
        """
        with self._told_as_input():
            self._pool.start(count, self._job({})[0])

    @contextmanager
    def _told_as_input(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise InputError(f"{self._where}: {error}") from None

    def close(self) -> None:
        """End its processes."""
        self._pool.close()

    def __call__(self, **arrays: np.ndarray) -> dict[str, Any]:
        """Run a batch.

        Raises:
            RuntimeError: it fails, or ends its process.
        """
        result, data = self._ask(arrays)
        values = [array for _, array in unpack_tensors(result["tensors"], data).values()]
        found: dict[str, Any] = {}
        for name, count in result["outputs"]:
            found[name] = values.pop(0) if count is None else [values.pop(0) for _ in range(count)]
        return found

    def _job(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Buffer]:
        # BF16 goes by its bits, as in the server's process.
        heads, data = pack_tensors({name: (NAMES.get(one.dtype.name, "BYTES"), one) for name, one in arrays.items()})
        return self._factory | {"tensors": heads, "outputs": list(self.names)}, data

    def _ask(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        result, data = self._pool.run_now(*self._job(arrays), FOREVER_S)
        if "error" in result:
            raise RuntimeError(result["error"])
        return result, data


class OwnProcessForward:
    """The inference function of such a model. `start` it for the threads that will call it; `close` ends its processes."""

    def __init__(self, forward: Forward, call: OwnProcess) -> None:
        self._forward = forward
        self.start, self.close = call.start, call.close

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Run a batch, as `Forward`."""
        return self._forward(*arrays)


class OwnProcessProgram(ArrayProgram):
    """A callable over arrays in a process of its own."""

    def __init__(self, call: OwnProcess, where: str) -> None:
        call.describe()
        super().__init__(call, where)
        self._own = call

    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().bind(inputs, outputs)
        self._own.names = self.outputs

    def build(self, device: str, examples: Sequence[Sequence[np.ndarray]], compiled: bool, name: str) -> Forward:
        call = self._own.again()  # the process that tried it out is not one of those that serve
        return OwnProcessForward(self.forward_of(call), call)
