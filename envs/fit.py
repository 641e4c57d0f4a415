"""From measurements to a profile: ``python -m envs.fit --measurements FOLDER --out PROFILE.json``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.profiles.fit import fit
from traces.command import run_command
from traces.measurements import Measurements


@dataclass
class FitConfig:
    """What to fit.

    Attributes:
        measurements: folder written by serving.profiler or by serve.py --record.
        out: profile to write (JSON).
        name: name of the profile; by default that of the output file.
    """

    measurements: str
    out: str
    name: str | None = None


def run(config: FitConfig) -> None:
    """Fit, write the profile, and say what was found."""
    profile = fit(Measurements.load(config.measurements), config.name or Path(config.out).stem)
    profile.save(config.out)
    slowdowns = np.round(profile.count[1:], 2).tolist()
    print(f"{config.out}: {len(profile.models)} models, slowdown by batches on a core {slowdowns}")
    print(f"  residual p5/p50/p95 {np.round(np.quantile(profile.residual, [0.05, 0.5, 0.95]), 3).tolist()}")
    print(f"  drift {profile.drift_spread:.3f} over {profile.drift_knot_ms:.0f} ms")
    print(f"  predictor's weights {np.round(profile.weight, 3).tolist()}, dispatch {profile.dispatch_ms:.3f} ms")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run, FitConfig, argv, "python -m envs.fit", __doc__)


if __name__ == "__main__":
    sys.exit(main())
