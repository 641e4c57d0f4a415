"""Our own measuring campaigns (traces.measurements).

On a CPU stream k is pinned to core k % cores; on a GPU every stream is a core of its own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.interference.coruns import DEMAND, CoRuns, co_runs
from envs.profiles.fit import demands, solo_arrays
from envs.profiles.segments import cores_of, cut
from traces.measurements import Measurements


def load(measurements: Measurements) -> CoRuns:
    """A campaign as co-runs.

    Raises:
        InputError: a model was never run alone at some size.
    """
    machine = measurements.machine
    segments = cut(measurements)
    _, solo_ms, _ = solo_arrays(measurements)
    n_models, n_sizes = solo_ms.shape
    variants = pd.DataFrame(demands(measurements, solo_ms).reshape(solo_ms.size, -1), columns=DEMAND).assign(
        model=np.repeat(np.arange(n_models), n_sizes),
        size=np.tile(machine.batch_sizes, n_models),
        solo_ms=solo_ms.ravel(),
    )
    stream = measurements.batches["stream"].to_numpy()
    away = ~np.isin(stream, stream[segments.alone])
    return co_runs(segments, variants, float(cores_of(machine)), away.astype(float))
