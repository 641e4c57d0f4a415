"""Requests over HTTP that are wrong in a few ways."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from serving.api.http_codec import HEADER_LENGTH

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 4, 2**31, 2**63, 10**40, -(10**40), 0.5, -0.0, 1e308, -1e39, "", "input", "output",
    "FP32", "BYTES", "INT8", "\0", "\u2028", "x" * 2000, [], {}, [[]], [1], [None], [[1], [2, 3]], {"a": {"b": []}}, [1e400],
    [10**30], ["1"], [True], {"name": "input"}, {"binary_data_size": 32}, {"binary_data_size": -1}, [[[[[[0]]]]]],
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, i) for i in range(len(value))]
    else:
        return []
    return found + [place for holder, key in found for place in places(holder[key])]


def mutated(
    rng: np.random.Generator, make: Callable[[np.random.Generator], tuple[dict[str, Any], bytes]]
) -> tuple[bytes, dict[str, str]]:
    """A body and headers, wrong in one to three ways; `make` gives a right JSON part and the bytes behind it."""
    head, tail = make(rng)
    for _ in range(rng.integers(1, 4)):
        where = places(head)
        if not where:
            break
        holder, key = where[rng.integers(len(where))]
        what = rng.random()
        if what < 0.6:
            holder[key] = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder["shared_memory_region" if rng.random() < 0.5 else "sequence_id"] = holder.pop(key)
    text = json.dumps(head).encode()
    length = str(len(text))
    if rng.random() < 0.1:
        length = str(NASTY[rng.integers(len(NASTY))])[:100].replace("\0", "").encode("ascii", "ignore").decode()
    body = bytearray(text + tail)
    if rng.random() < 0.3:
        for at in rng.integers(len(body), size=rng.integers(1, 8)):
            body[at] = rng.integers(256)
    if rng.random() < 0.1:
        del body[rng.integers(len(body)) :]
    headers = {HEADER_LENGTH: length} if tail or rng.random() < 0.1 else {}
    if rng.random() < 0.05:
        headers["X-Priority"] = str(rng.integers(-2, 5))
    if rng.random() < 0.05:
        headers["X-Timeout-Us"] = ["x", "", "1e3", "0", "9" * 30][rng.integers(5)]
    if rng.random() < 0.03:
        headers["Content-Encoding"] = ["gzip", "deflate", "br", ""][rng.integers(4)]
    return bytes(body), headers
