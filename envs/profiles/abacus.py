"""Reader of Abacus' co-runs on an A100 (shared/data/abacus_a100): ranges of layers of 2 or 3 models that start together.

Of each row the time is known until all have ended. An empty range is a model that does nothing, so that such rows give the
others alone. SOURCES.md names the repository and its commit; numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.tables import read_table

LAYERS = {"bert": 12, "inception_v3": 14, "resnet101": 35, "resnet152": 52, "resnet50": 18, "vgg16": 19, "vgg19": 22}
MODELS = tuple(LAYERS)
FIRST = dict(zip(MODELS, np.concatenate([[0], np.cumsum(list(LAYERS.values()))[:-1]]).tolist()))  # layer of each model
N_LAYERS = sum(LAYERS.values())
LENGTH = 64.0  # tokens of a sequence that counts as one item
FILES = {"pairs": 2, "triples": 3, "mig_2g10gb_pairs": 2}


@dataclass(frozen=True)
class CoRuns:
    """N co-runs of K models each.

    Attributes:
        model: (N, K) index in MODELS.
        first: (N, K) first layer of each range, counted over all models' layers.
        end: (N, K) layer behind the last; equal to ``first`` where the model does nothing.
        items: (N, K) batch size; of bert, in sequences of LENGTH tokens.
        ms: (N,) median time until all have ended.
    """

    model: np.ndarray
    first: np.ndarray
    end: np.ndarray
    items: np.ndarray
    ms: np.ndarray

    @property
    def running(self) -> np.ndarray:
        """(N, K) whether a model does something."""
        return self.end > self.first

    @property
    def pair(self) -> np.ndarray:
        """(N,) number of the set of models, whatever their order: the unit of splits."""
        return (1 << self.model).sum(axis=1)

    def __len__(self) -> int:
        return len(self.ms)

    def take(self, at: np.ndarray) -> CoRuns:
        """Those rows."""
        return CoRuns(**{name: getattr(self, name)[at] for name in self.__dataclass_fields__})


def load(folder: str | Path, name: str) -> CoRuns:
    """Read pairs, triples or mig_2g10gb_pairs.

    Raises:
        InputError: a file or column is missing, or a model is unknown.
    """
    path = Path(folder) / f"{name}.csv.gz"
    sides = range(1, FILES[name] + 1)
    columns = [f"{column}_{i}" for i in sides for column in ("model", "start", "end", "batch", "seq_len")]
    frame = read_table(path, (*columns, "median_us"))
    for i in sides:
        unknown = set(frame[f"model_{i}"]) - set(MODELS)
        if unknown:
            raise InputError(f"{path}: model {sorted(unknown)[0]!r}; expected one of {', '.join(MODELS)}")

    def column(name: str) -> np.ndarray:
        return np.stack([frame[f"{name}_{i}"].to_numpy() for i in sides], axis=1)

    names = column("model")
    at = np.vectorize(FIRST.get)(names)
    length = column("seq_len").astype(float)
    return CoRuns(
        model=np.vectorize(MODELS.index)(names),
        first=at + column("start"),
        end=at + column("end"),
        items=column("batch") * np.where(length > 0, length / LENGTH, 1.0),
        ms=frame["median_us"].to_numpy() / 1e3,
    )
