"""How items get into the buffers of a batch, padded to its bucket, and outputs out of it, cut back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.models.buckets import cut_of
from serving.models.served import ServedModel
from serving.models.tensors import VARIES, Item, TensorSpec


def copy_inputs(items: Sequence[Item], staged: Sequence[np.ndarray], model: ServedModel) -> None:
    """Copy items into the rows of a batch, each padded to the size of the rows.

    Args:
        items: one per request.
        staged: a buffer for each input, a row per item.
        model: whose inputs they are.

    Raises:
        ValueError: an item has another shape, or a type that does not convert safely enough (float to integer).
    """
    for place, (spec, rows) in enumerate(zip(model.inputs, staged)):
        whole = rows.shape[1:]
        for k, item in enumerate(items):
            values = item[place]
            row = rows[k, ...]
            if values.shape != whole:
                if not spec.varies or not _fits(values.shape, whole, spec):
                    raise ValueError(f"{_called(spec)} of shape {values.shape}; model {model.name!r} takes {whole}")
                row[...] = spec.fill(spec.pad)
                row = row[tuple(map(slice, values.shape))]
            try:
                np.copyto(row, values, casting="same_kind")
            except TypeError:
                raise ValueError(
                    f"{_called(spec)} of type {values.dtype}; model {model.name!r} takes {rows.dtype}"
                ) from None


def _called(spec: TensorSpec) -> str:
    return "input" if spec.name == "input" else f"input {spec.name!r}"


def _fits(shape: tuple[int, ...], whole: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether an item differs from a row only where its size varies, and is smaller there."""
    return len(shape) == len(whole) and all(
        given == side or (given < side and size == VARIES) for given, side, size in zip(shape, whole, spec.shape)
    )


def rows_of(outputs: Sequence[Any], model: ServedModel, items: Sequence[Item]) -> list[Item]:
    """The outputs of a batch, one item per request, copied.

    Args:
        outputs: on the host, an array for each output, or a list of one per item.
        model: that answered.
        items: that it was asked.

    Raises:
        ValueError: they are not what the model answered when it was loaded: requests would get each other's rows.
    """
    if len(outputs) != len(model.outputs):
        raise ValueError(f"there are {len(outputs)} outputs; expected {len(model.outputs)}")
    columns = [_column(values, place, model, items) for place, values in enumerate(outputs)]
    return list(zip(*columns))


def _column(values: Any, place: int, model: ServedModel, items: Sequence[Item]) -> list[np.ndarray]:
    spec, cut = model.outputs[place], model.cuts[place] if model.cuts else {}
    if isinstance(values, list):
        if len(values) != len(items) or not all(spec.takes(one) for one in values):
            raise ValueError(f"{_shown(spec)} is not one array of {spec.dtype} {spec.shape} per item")
        return [np.array(one, spec.dtype) for one in values]
    expected = (len(items), *(spec.shape if model.exact else model.output_shapes[place]))
    same = values.shape == expected or (
        len(values.shape) == len(expected) and all(a == b or b == VARIES for a, b in zip(values.shape, expected))
    )
    if not same or values.dtype != spec.dtype:
        raise ValueError(f"{_shown(spec)} is {values.dtype} {values.shape}; expected {spec.dtype} {expected}")
    rows = list(values.copy())
    if cut and not model.exact:
        sizes = [model.size_of(item) or 0 for item in items]
        rows = [row if size == model.bucket else row[cut_of(cut, size)[1:]] for row, size in zip(rows, sizes)]
    return rows


def _shown(spec: TensorSpec) -> str:
    return "the output" if spec.name == "output" else f"output {spec.name!r}"


def groups_of(model: ServedModel, items: Sequence[Item]) -> list[list[int]]:
    """Which items run together: all of them, or those of one size where padding would change the answers."""
    if not model.exact:
        return [list(range(len(items)))]
    groups: dict[int | None, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(model.size_of(item), []).append(place)
    return list(groups.values())
