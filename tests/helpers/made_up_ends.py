"""Co-runs of ranges of layers on a device that behaves exactly as two paths say."""

from __future__ import annotations

import numpy as np

from envs.profiles.abacus import FIRST, LAYERS, MODELS, CoRuns
from envs.profiles.two_paths import LayerTimes, end_ms, slower_path

OFFSET_MS, OFFSET_MORE_MS = 0.3, 0.1
DEVICE_SLOWDOWN, HOST_SLOWDOWN = 1.2, 0.05


def made_up_layers(seed: int = 0) -> LayerTimes:
    """Times by layer, the same within a model: some models wait for the host, some for the device."""
    r = np.random.default_rng(seed)
    model = np.repeat(np.arange(len(MODELS)), list(LAYERS.values()))
    host, device, per_item = r.uniform(0.2, 0.5, 7), r.uniform(0.02, 0.1, 7), r.uniform(0.005, 0.08, 7)
    return LayerTimes(host[model], device[model], per_item[model])


def made_up_runs(n: int, places: int = 2, seed: int = 0, models: tuple[int, ...] = (0, 1, 2, 3)) -> CoRuns:
    """n co-runs of ranges of layers of different models, a tenth of them of one model alone."""
    r = np.random.default_rng(seed)
    model = np.stack([r.permutation(models)[:places] for _ in range(n)])
    layers = np.array(list(LAYERS.values()))[model]
    begin = np.array(list(FIRST.values()))[model]
    first = begin + (r.uniform(0.0, 0.6, model.shape) * layers).astype(int)
    end = np.minimum(first + 1 + (r.uniform(0.1, 1.0, model.shape) * layers).astype(int), begin + layers)
    alone = r.uniform(size=n) < 0.1
    end[alone, 1:] = first[alone, 1:]
    runs = CoRuns(model, first, end, r.choice([4.0, 8.0, 16.0, 32.0], model.shape), np.ones(n))
    time, device = made_up_layers().sums(runs)
    share = np.minimum(device / np.maximum(time, 1e-9), 1.0)
    ms = end_ms(time, share, lambda s, on: slower_path((DEVICE_SLOWDOWN, HOST_SLOWDOWN), s, on))
    ms += OFFSET_MS + OFFSET_MORE_MS * (runs.running.sum(axis=1) > 1)
    return CoRuns(runs.model, runs.first, runs.end, runs.items, ms)
