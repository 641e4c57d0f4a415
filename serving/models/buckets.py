"""Buckets of a model whose size varies: which sizes, how outputs follow from them, and whether padding keeps the answers.

An item is padded to the least bucket that holds it. To the scheduler, a bucket is a model of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from serving.models.compile import alike
from serving.models.program import Output
from serving.models.served import ModelSpec, SizeRule
from serving.models.tensors import VARIES, TensorSpec
from traces.errors import InputError

STEPS = 5  # buckets by default: the largest, its half, its quarter, ...
Cuts = tuple[dict[int, SizeRule], ...]


def bucket_sizes(
    spec: ModelSpec, inputs: Sequence[TensorSpec], max_size: int | None, known: Sequence[int], where: str
) -> tuple[int | None, ...]:
    """The buckets of a model; (None,) for a model of fixed sizes.

    Args:
        spec: what the user says.
        inputs: of the model.
        max_size: the largest size, where the source says.
        known: buckets that a profile knows.
        where: the model, as errors begin.

    Raises:
        InputError: sizes vary, and nothing says how far.
    """
    varying = [one.name for one in inputs if one.varies]
    if not varying:
        if spec.buckets or spec.max_size:
            raise InputError(f"{where}: buckets and max_size are for inputs of which a size is -1; there is none")
        return (None,)
    if spec.buckets:
        return spec.buckets
    largest = spec.max_size or max_size
    if known:
        return tuple(size for size in known if largest is None or size <= largest) or tuple(known)
    if largest is None:
        raise InputError(
            f"{where}: the size of {', '.join(varying)} varies; say up to which (max_size: 512) or give buckets"
        )
    powers = [2**exponent for exponent in range(40) if largest / 2**STEPS < 2**exponent < largest]
    return (*powers, largest)


def learn_cuts(
    shapes: Callable[[int], list[tuple[int, ...]]],
    outputs: tuple[TensorSpec, ...],
    sizes: Sequence[int | None],
) -> tuple[tuple[TensorSpec, ...], Cuts]:
    """How sizes of the outputs follow from the size of an item.

    Args:
        shapes: of one item's outputs at a size.
        outputs: as the smallest and the largest bucket answered: -1 where they differ.
        sizes: the buckets.

    Returns:
        The outputs, and the rule of each axis that follows from the size by one of the form (times * size + add) // per.
    """
    largest = int(sizes[-1] or 1)
    smallest = int(sizes[0] or 1)
    if smallest == largest:  # one bucket, which has shown nothing
        smallest = max(largest // 2, 1)
        before, after = shapes(smallest), shapes(largest)
        outputs = tuple(
            replace(spec, shape=tuple(a if a == b else VARIES for a, b in zip(one, other)))
            for spec, one, other in zip(outputs, before, after)
        )
    asked: dict[int, list[tuple[int, ...]]] = {}

    def at(size: int) -> list[tuple[int, ...]]:
        if size not in asked:
            asked[size] = shapes(size)
        return asked[size]

    cuts: list[dict[int, SizeRule]] = []
    for place, spec in enumerate(outputs):
        axes = [axis for axis, side in enumerate(spec.shape) if side == VARIES]
        cuts.append({})
        for axis in axes:
            rule = _rule(lambda size, place=place, axis=axis: at(size)[place][axis], smallest, largest)  # type: ignore[misc]
            if rule is not None:  # else no padding can be cut off, and `keeps_answers` will say so
                cuts[place][axis] = rule
    return outputs, tuple(cuts)


def _rule(side: Callable[[int], int], smallest: int, largest: int) -> SizeRule | None:
    """The rule that a side follows between two sizes, e.g. a convolution's: (size - kernel + stride) // stride."""
    low, high = side(smallest), side(largest)
    if largest - smallest < 2:
        return SizeRule(high - low, low - (high - low) * smallest, 1)
    if high - low >= largest - smallest:  # as many, or a multiple
        times = round((high - low) / (largest - smallest))
        candidates = [SizeRule(times, low - times * smallest, 1)]
    else:
        first = _first_above(side, smallest, largest)
        second = _first_above(side, first, largest)
        # Without a second step, the first says no more than that the step is longer than what is left.
        per = second - first if side(second) > side(first) else largest - smallest
        candidates = [SizeRule(1, side(first) * per - first, per)]
    checks = [smallest, largest, smallest + 1, largest - 1, (smallest + largest) // 2, (smallest + largest) // 2 + 1]
    return next((rule for rule in candidates if all(rule(size) == side(size) for size in checks)), None)


def _first_above(side: Callable[[int], int], start: int, largest: int) -> int:
    """The least size at which a side that never falls is longer than at `start`; the largest, if there is none before."""
    value, step = side(start), 1
    while start + step < largest and side(start + step) == value:
        step *= 2
    low, high = start + step // 2, min(start + step, largest)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if side(middle) == value else (low, middle)
    return high


def keeps_answers(
    run: Callable[[Sequence[np.ndarray]], list[Output]],
    inputs: Sequence[TensorSpec],
    cuts: Cuts,
    sizes: Sequence[int | None],
    rng: np.random.Generator,
) -> bool:
    """Whether an item that is padded to its bucket, and whose outputs are cut back, is answered as it is alone."""
    bucket = int(sizes[min(1, len(sizes) - 1)] or 1)
    size = (bucket + int(sizes[0] or 1)) // 2 if len(sizes) > 1 else bucket * 3 // 4 + 1
    if size >= bucket:
        return True
    alone = [spec.sized(size).example(rng)[np.newaxis] for spec in inputs]
    wide = [pad_to(spec, values[0], bucket)[np.newaxis] for spec, values in zip(inputs, alone)]
    for expected, given, cut in zip(run(alone), run(wide), cuts):
        if isinstance(expected.values, list) or expected.datatype == "BYTES" or isinstance(given.values, list):
            return False
        rows = given.values[cut_of(cut, size)] if cut else given.values
        if not alike(torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(expected.values.copy())):
            return False
    return True


def least_size(runs: Callable[[int], bool], smallest: int) -> int:
    """The least size that a model runs on at its own size, at most the smallest bucket."""
    low, high = 0, smallest
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high


def pad_to(spec: TensorSpec, values: np.ndarray, bucket: int) -> np.ndarray:
    """An item's input, padded to a bucket."""
    if not spec.varies:
        return values
    padded = np.full(spec.sized(bucket).shape, spec.fill(spec.pad), spec.dtype)
    padded[tuple(slice(side) for side in values.shape)] = values
    return padded


def cut_of(cut: Mapping[int, SizeRule], size: int) -> tuple[slice, ...]:
    """What is kept of a batch's output for items of a size."""
    sides = [slice(None)] * (max(cut) + 2)
    for axis, rule in cut.items():
        sides[axis + 1] = slice(rule(size))
    return tuple(sides)
