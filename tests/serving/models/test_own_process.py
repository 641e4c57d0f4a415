"""Models in processes of their own: they answer as in the server's, and what they do to their process harms nobody."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.executors.base import Batch, BatchResult
from serving.executors.cpu import CpuExecutor
from serving.models.listing import read_entries
from serving.models.load import load_model
from serving.models.served import ServedModel
from traces.errors import InputError

CODE = """
import os
import numpy as np

class Odd:
    inputs = {"x": {"shape": [2]}, "text": {"shape": [1], "datatype": "BYTES"}}

    def __call__(self, x, text):
        if (x == 7).any():
            os.abort()
        if (x == 5).any():
            raise KeyError("five")
        lengths = [np.arange(int(abs(row[0])) % 3 + 1) for row in x]
        return {"double": 2 * x, "lengths": lengths, "text": text, "process": np.full((len(x), 1), os.getpid())}

def odd():
    return Odd()

def same():
    return lambda x: x

def ends():
    raise SystemExit(3)

def crashes():
    os.abort()

def network():
    import torch
    return torch.nn.Linear(2, 2)

number = 3
"""


def load(folder: Path, factory: str, own: bool, tensors: str = "") -> ServedModel:
    (folder / "odd_models.py").write_text(CODE)
    given = f", inputs: {tensors}" if tensors else ""
    entry = f'{{name: odd, source: "odd_models:{factory}", own_process: {str(own).lower()}{given}}}'
    (folder / "models.yaml").write_text(f"- {entry}\n")
    return load_model(read_entries([str(folder / "models.yaml")])["odd"].spec)


class Running:
    """An executor that is waited for."""

    def __init__(self, model: ServedModel, streams: int = 2) -> None:
        self.executor = CpuExecutor(streams, self._ended)
        self._results: list[BatchResult] = []
        self._done = threading.Event()
        self.executor.load(model)

    def _ended(self, result: BatchResult) -> None:
        self._results.append(result)
        self._done.set()

    def run(self, items: list[tuple[np.ndarray, ...]], stream: int = 0) -> BatchResult:
        self._done.clear()
        self.executor.submit(stream, Batch(0, "odd", 0, items))
        assert self._done.wait(60)
        return self._results.pop()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(load(tmp_path, "odd", own=True))
    with made.executor:
        yield made


def item(*numbers: float) -> tuple[np.ndarray, ...]:
    return np.array(numbers, np.float32), np.array([b"word"], object)


def processes() -> set[int]:
    return {one.pid for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE}


def test_answers_are_those_of_the_servers_process(tmp_path: Path, running: Running) -> None:
    here = Running(load(tmp_path, "odd", own=False), 1)
    items = [item(1, 2), item(3, 4), item(-2, 0)]
    with here.executor:
        expected, found = here.run(items), running.run(items)
    assert expected.outputs is not None and found.outputs is not None
    for own, other in zip(found.outputs, expected.outputs, strict=True):
        for values, wanted in zip(own[:3], other[:3], strict=True):
            assert values.dtype == wanted.dtype and values.tolist() == wanted.tolist()
        assert own[3].item() != os.getpid() == other[3].item()


@pytest.mark.parametrize(
    "datatype", ["BOOL", "UINT8", "INT8", "UINT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"]
)
def test_every_type_comes_back_as_it_was_sent(tmp_path: Path, datatype: str) -> None:
    tensors = f"{{x: {{shape: [3], datatype: {datatype}}}}}"
    models = {own: load(tmp_path, "same", own, tensors) for own in (False, True)}
    assert [one.outputs[0].datatype for one in models.values()] == [models[False].outputs[0].datatype] * 2
    given = np.arange(6).reshape(2, 3).astype(models[True].inputs[0].dtype)
    (found,) = models[True].build("cpu")(given)
    assert found.dtype == given.dtype and found.tolist() == given.tolist()


def test_each_stream_has_a_process_on_its_core(running: Running) -> None:
    found = [running.run([item(1, 2)], stream).outputs for stream in (0, 1)]
    numbers = [outputs[0][3].item() for outputs in found if outputs]
    assert len({*numbers}) == 2
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        assert [os.sched_getaffinity(number) for number in numbers] == [{cores[k % len(cores)]} for k in (0, 1)]
    assert all(os.getpriority(os.PRIO_PROCESS, number) > os.getpriority(os.PRIO_PROCESS, 0) for number in numbers)


def test_it_ends_with_its_executor(tmp_path: Path) -> None:
    before = processes()
    with Running(load(tmp_path, "odd", own=True)).executor:
        assert processes() - before
    assert not processes() - before


def test_what_goes_wrong_costs_a_batch(running: Running) -> None:
    assert running.run([item(5, 1)]).error == "RuntimeError: KeyError: 'five'"
    assert "ended with status -6" in (running.run([item(1, 1), item(7, 1)]).error or "")
    for stream in (0, 1, 0):
        assert running.run([item(1, 2)], stream).error is None


def test_unloaded_it_leaves_no_process(tmp_path: Path) -> None:
    before = processes()
    running = Running(load(tmp_path, "odd", own=True))
    with running.executor:
        assert len(processes() - before) == len(running.executor._workers)
        running.executor.unload("odd")
        running.executor.free_memory()
        assert not processes() - before


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("ends", "SystemExit: 3; it must not end the program"),
        ("crashes", "a process for model 'odd' ended with status -6"),
        ("network", "returned Linear; with own_process it must return a callable over arrays"),
        ("missing", "cannot import 'odd_models:missing'"),
        ("number", "'int' object is not callable"),
    ],
)
def test_what_cannot_be_called_is_refused_in_one_line(tmp_path: Path, factory: str, words: str) -> None:
    before = processes()
    with pytest.raises(InputError, match=r"^model 'odd': ") as caught:
        load(tmp_path, factory, own=True, tensors="{x: [2]}")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    del caught
    assert not processes() - before


@pytest.mark.parametrize("source", ["builtin:resnet", "net.onnx", "hf:folder"])
def test_it_is_for_factories(tmp_path: Path, source: str) -> None:
    (tmp_path / "models.yaml").write_text(f'- {{name: odd, source: "{source}", own_process: true}}\n')
    with pytest.raises(InputError, match="own_process is for a module:factory"):
        load_model(read_entries([str(tmp_path / "models.yaml")])["odd"].spec)
