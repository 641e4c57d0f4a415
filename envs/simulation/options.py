"""What ``reset(options=...)`` may change: the load, the workload and the profile."""

from __future__ import annotations

from typing import Any

from envs.simulation.config import make_config
from envs.simulation.worlds import Worlds
from traces.errors import InputError
from traces.workload import Workload


def with_options(worlds: Worlds, options: dict[str, Any], threads: int = 1) -> Worlds:
    """A batch of worlds like this one, with the settings that ``reset`` was given in its options.

    Args:
        worlds: as they are; closed.
        options: "load": number or pair; "workload": a Workload, or the path of one, replayed whole and as recorded unless
            a load is given too, or None; "profile": one with as many models and batch sizes.
        threads: of the new one.
    """
    known = {"load", "workload", "profile"}
    for key in options:
        if key not in known:
            raise InputError(
                f"reset: no option {key!r}; known are {', '.join(sorted(known))}, and reset_mask of several worlds"
            )
    settings: dict[str, Any] = {k: options[k] for k in ("load", "profile") if k in options}
    workload = options.get("workload")
    recorded = workload if isinstance(workload, Workload) else None
    if "workload" in options:
        settings["workload"] = None if recorded is not None else workload
        if workload is not None:
            settings.setdefault("load", None)
    config = make_config(worlds.config, settings)
    new = Worlds(config, worlds.n, worlds.autoreset, threads, workload=recorded)
    if new.obs.shape != worlds.obs.shape or new.masks.shape != worlds.masks.shape:
        raise InputError(
            f"reset: profile {config.profile!r} has {len(new.profile.models)} models and batch sizes "
            f"{new.profile.batch_sizes}; the spaces of the environment are made for {len(worlds.profile.models)} models "
            f"and {len(worlds.profile.batch_sizes)} batch sizes"
        )
    worlds.close()
    return new
