"""Closing the loop: from the log of a live server to a better policy for it (``train.py --from-log FOLDER``).

Predictor and noise are refitted to the recorded batches, the recorded arrivals become the workload, and the policy that
serves is fine-tuned on their first part. The result replaces it only if it is better on the rest, in paired simulation with
an interval clear of zero; a running server then reads it again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.compare import HIGH_WEIGHT, bootstrap
from agents.policy_file import CHECKPOINT, SHIPPED, read_policy
from agents.rollout import run as run_policy
from agents.train_config import TrainConfig
from agents.variants import SERVED, resolve
from envs.capacity import measure_capacity
from envs.profile import Profile
from envs.refit import joined, of_kind, on_machine, refit
from envs.simulator import Simulator
from envs.state import CANCELLED, MET
from traces.errors import InputError
from traces.files import atomic_path, atomic_write_text
from traces.measurements import Measurements
from traces.workload import Workload

BASE = "cpu2"  # profile whose interference a log refines
BUDGET_S = 330.0
TRAIN_SHARE = 0.6  # of the log's time; the rest judges
WINDOWS = 16  # of the rest, each an episode
SHORTEST_MS = 500.0
WORLDS = 4  # noises for each window
SLOWER = 0.4  # learning rate of fine-tuning over that of training anew
SPREAD = 1.25  # loads of training: the log's over and times this


@dataclass(frozen=True)
class Loop:
    """One round of the loop.

    Attributes:
        log: folder that serve.py --record wrote.
        running: the policy that serves: a file, or a name.
        adopt: file to replace where the new policy is better; by default ``running``, if it is a file.
        pid: server to send SIGHUP to after that.
    """

    log: str
    running: str | None = None
    adopt: str | None = None
    pid: int | None = None

    @property
    def policy(self) -> str:
        """The policy that serves: by default the one that ships, or Strait where none does."""
        return self.running or ("ppo" if CHECKPOINT.is_file() else "strait")

    @property
    def target(self) -> Path | None:
        """File to replace; None: nothing is."""
        if self.adopt is not None:
            return Path(self.adopt)
        return Path(self.policy) if self.policy.endswith(".safetensors") else None

    @property
    def weights(self) -> Path | None:
        """File of the weights to go on from; None where a heuristic serves."""
        if self.policy in SHIPPED:
            return SHIPPED[self.policy]
        return Path(self.policy) if self.policy.endswith(".safetensors") else None


def read_log(folder: Path | str) -> tuple[Workload, Measurements]:
    """The arrivals and batches of a recorded folder, its parts one after another.

    Raises:
        InputError: there are none, or a part is malformed.
    """
    folder = Path(folder)
    parts = sorted(p.parent for p in (*folder.glob("*/arrivals.parquet"), *folder.glob("arrivals.parquet")))
    if not parts:
        raise InputError(f"--from-log: {folder} holds no recording; a folder that serve.py --record wrote is wanted")
    campaigns = [Measurements.load(part) for part in parts if (part / "batches.parquet").is_file()]
    if not campaigns:
        raise InputError(f"--from-log: {folder} holds arrivals, but no batch that ended")
    return _one_after_another([Workload.load(part / "arrivals.parquet") for part in parts]), joined(campaigns)


def _one_after_another(parts: list[Workload]) -> Workload:
    names = tuple(sorted({name for part in parts for name in part.models}))
    times: list[np.ndarray] = []
    end_ms = 0.0
    for part in parts:
        # The parts of one server go on with its clock; a server that was started anew begins at 0.
        first = float(part.arrival_ms[0]) if len(part) else end_ms
        shift = 0.0 if times and first >= end_ms else end_ms - first
        times.append(part.arrival_ms + shift)
        end_ms = float(times[-1][-1]) if len(part) else end_ms
    index = {name: number for number, name in enumerate(names)}
    models = [np.array([index[name] for name in part.models], np.int32)[part.model] for part in parts if len(part)]
    if not models:
        raise InputError("--from-log: the recording holds no request")
    priority, deadline = (np.concatenate([getattr(p, field) for p in parts]) for field in ("priority", "deadline_ms"))
    return Workload(np.concatenate(times), np.concatenate(models), priority, deadline, names, "log")


def profile_of(log: Measurements) -> Profile:
    """The profile of the machine that wrote the log: the one that ships where the log is thin.

    Raises:
        InputError: a model has no solo run.
    """
    base = on_machine(Profile.load(BASE), of_kind(log, "solo"))
    return replace(refit(base, of_kind(log, "live")), name="log")


def settings(
    config: TrainConfig, loop: Loop, profile: Profile, workload: Workload, streams: int, work: Path
) -> TrainConfig:
    """Settings that fine-tune the policy on the workload; profile and workload are written into ``work``."""
    profile.save(work / "profile.json")
    workload.save(work / "train.parquet")
    share = {name: float(np.mean(workload.model == m)) for m, name in enumerate(workload.models)}
    load = workload.rate_rps / measure_capacity(profile, streams, share)
    hidden = config.ppo.hidden
    if loop.weights is not None:
        hidden = int(read_policy(loop.weights).metadata["hidden"])
    length = min(config.env.duration_ms[1], workload.duration_ms)
    return replace(
        config,
        budget_s=config.budget_s or BUDGET_S,
        teacher="strait",  # what the network corrects, whoever is running
        reference=loop.policy,
        tuned_for=SERVED,
        env=replace(
            config.env,
            profile=str(work / "profile.json"),
            models=(),
            streams=streams,
            workload=str(work / "train.parquet"),
            load=(load / SPREAD, load * SPREAD),
            duration_ms=(min(config.env.duration_ms[0], length), length),
            model_share=share,
        ),
        imitate=replace(config.imitate, rounds=min(config.imitate.rounds, 1 if loop.weights else 3)),
        ppo=replace(
            config.ppo, hidden=hidden, learning_rate=config.ppo.learning_rate * (SLOWER if loop.weights else 1)
        ),
        duel=replace(config.duel, loads=(load,)),
    )


def violated_weight(profile: Profile, policy: str, windows: list[Workload], streams: int, worlds: int) -> np.ndarray:
    """Share of violated weight in each window (W,), a mean over ``worlds`` noises that are the same for every policy."""
    n = len(windows) * worlds
    chosen, change = resolve(policy, n, profile=SERVED)
    sim = Simulator(profile, n, streams, max(len(w) for w in windows), tables=change(profile.tables()))
    run_policy(sim, chosen, [w for w in windows for _ in range(worlds)], list(range(1, n + 1)))
    kept = sim.state.count.sum(axis=2) - sim.state.count[..., CANCELLED]
    bad = kept - sim.state.count[..., MET]
    weight = np.array([HIGH_WEIGHT, 1.0])
    return ((bad @ weight) / np.maximum(kept @ weight, 1e-9)).reshape(len(windows), worlds).mean(axis=1)


def shadow(
    profile: Profile, workload: Workload, running: str, candidate: str, streams: int, worlds: int = WORLDS
) -> dict[str, Any]:
    """Compare two policies on a workload that neither was tuned on, window by window.

    Returns:
        Violated weight of both in percent, and the paired difference in points with its 95 % interval.

    Raises:
        InputError: the workload is too short to be cut into windows.
    """
    length = max(workload.duration_ms / WINDOWS, SHORTEST_MS)
    edges = np.arange(0.0, workload.duration_ms, length)
    windows = [w for start in edges if len(w := workload.window(start, start + length))]
    if len(windows) < 2:
        raise InputError(f"--from-log: a recording of {workload.duration_ms / 1e3:.1f} s to judge by is too short")
    mine, theirs = (100 * violated_weight(profile, name, windows, streams, worlds) for name in (candidate, running))
    low, mean, high = bootstrap(mine - theirs)
    return {
        "windows": len(windows),
        "running": float(theirs.mean()),
        "candidate": float(mine.mean()),
        "difference": [low, mean, high],
        "better": high < 0.0,
    }


def close_loop(config: TrainConfig, loop: Loop) -> dict[str, Any]:
    """Refit, fine-tune, compare, adopt. Returns what became of it.

    Raises:
        InputError: the log, a policy or a setting is malformed, or there is no such process.
    """
    from agents.ppo import train

    resolve(loop.policy)
    if loop.pid is not None:
        _signal(loop.pid, 0)
    whole, log = read_log(loop.log)
    profile, streams = profile_of(log), log.machine.streams
    cut_ms = TRAIN_SHARE * whole.duration_ms
    if not len(first := whole.window(0.0, cut_ms)):
        raise InputError(f"--from-log: {loop.log} holds too few requests to learn from")
    rest = whole.window(cut_ms, np.inf)
    work = Path(config.logdir) / "from-log"
    work.mkdir(parents=True, exist_ok=True)
    result = train(settings(config, loop, profile, first, streams, work), start=loop.weights)
    if result.interrupted:
        raise KeyboardInterrupt
    verdict = shadow(profile, rest, loop.policy, str(result.policy), streams)
    adopted = verdict["better"] and loop.target is not None
    if adopted:
        assert loop.target is not None
        with atomic_path(loop.target) as temporary:
            shutil.copyfile(result.policy, temporary)
        if loop.pid is not None:
            _signal(loop.pid, signal.SIGHUP)
    record = {
        "loop": asdict(loop),
        "requests": len(whole),
        "batches": len(log.batches),
        "policy": str(result.policy),
        "shadow": verdict,
        "adopted": str(loop.target) if adopted else None,
    }
    atomic_write_text(result.run / "from_log.json", json.dumps(record, indent=1) + "\n")
    return record


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        raise InputError(f"--pid: {pid}: {error}; the process of a running serve.py is wanted") from None
