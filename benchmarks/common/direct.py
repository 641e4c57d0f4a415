"""Models called directly, without a server: what serving is measured against."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from serving.models.listing import Entry
from serving.models.load import load_buckets
from serving.models.served import TORCH_DTYPES, ServedModel
from serving.models.tensors import Item

BATCH = 8


class Direct:
    """One bucket of a model in this process.

    Args:
        model: loaded.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._forward = model.build("cpu")
        self._batches = {count: self._tensors(self.items(count)) for count in (1, BATCH)}

    def items(self, count: int) -> list[Item]:
        """Examples."""
        rng = np.random.default_rng(0)
        return [self.model.example(rng) for _ in range(count)]

    def _tensors(self, items: Sequence[Item]) -> list[Any]:
        arrays = [np.stack(column) for column in zip(*items)]
        if self.model.on_host:
            return arrays
        types = [TORCH_DTYPES[spec.datatype] for spec in self.model.inputs]
        return [torch.from_numpy(array).to(dtype) for array, dtype in zip(arrays, types)]

    def run(self, count: int) -> None:
        """Run a batch."""
        self._forward(*self._batches[count])

    def rate(self, count: int, threads: int, seconds: float) -> float:
        """Items per second in batches, on several threads."""
        done = [0] * threads
        end = time.perf_counter() + seconds

        def work(place: int) -> None:
            torch.set_num_threads(1)
            while time.perf_counter() < end:
                self.run(count)
                done[place] += count

        workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / seconds


def load_direct(entries: Mapping[str, Entry], name: str) -> Direct:
    """The largest bucket of a model of a list, in this process whatever the list says."""
    return Direct(load_buckets(replace(entries[name].spec, own_process=False))[-1])
