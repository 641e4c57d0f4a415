"""From measurements to a profile: ``python -m envs.fit --measurements FOLDER --out PROFILE.json``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from jsonargparse import ArgumentParser

from envs.profiles.fit import fit
from traces.errors import InputError
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


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = ArgumentParser(prog="python -m envs.fit", description=__doc__.split("\n\n")[0])
    parser.add_class_arguments(FitConfig, as_group=False)
    config = FitConfig(**parser.parse_args(argv).as_dict())
    try:
        from pathlib import Path

        profile = fit(Measurements.load(config.measurements), config.name or Path(config.out).stem)
        profile.save(config.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{config.out}: {len(profile.models)} models, slowdown by batches on a core {np.round(profile.count[1:], 2).tolist()}"
    )
    print(f"  residual p5/p50/p95 {np.round(np.quantile(profile.residual, [0.05, 0.5, 0.95]), 3).tolist()}")
    print(f"  drift {profile.drift_spread:.3f} over {profile.drift_knot_ms:.0f} ms")
    print(f"  predictor's weights {np.round(profile.weight, 3).tolist()}, dispatch {profile.dispatch_ms:.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
