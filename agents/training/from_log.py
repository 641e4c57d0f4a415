"""Closing the loop: from the log of a live server to a better policy for it (``train.py --from-log FOLDER``).

Predictor and noise are refitted to the recorded batches, the recorded arrivals become the workload, and the policy that
serves is fine-tuned on their first part. The result replaces it only if it is better on the rest, in paired simulation of that
time, at the speed that the cores had, with an interval clear of zero; a running server then reads it again.
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
import pandas as pd

from agents.evaluation.rollout import run as run_policy
from agents.evaluation.statistics import bootstrap
from agents.learned.names import SERVED, resolve
from agents.learned.policy_file import CHECKPOINT, SHIPPED, read_policy
from agents.training.config import TrainConfig
from envs.profiles.profile import Profile
from envs.profiles.refit import joined, measured_log_slowdown, of_kind, on_machine, refit, with_measured_slowdown
from envs.profiles.truth import Truth
from envs.scheduling.state import HIGH, MET
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.files import atomic_path, atomic_write_text, check_file
from traces.measurements import PHASES, Measurements
from traces.workload import HIGH_WEIGHT, Workload

BASE = "cpu2"  # profile whose interference a log refines
BUDGET_S = 330.0
TRAIN_SHARE = 0.6  # of the log's time; the rest judges
WINDOWS = 16  # of the rest, which the interval is over
SHORTEST_MS = 500.0
SAME_CLOCK_MS = 1000.0  # batches of one server are recorded in the order of their ends, give or take less than this
WORLDS = 8  # noises that policies are compared under
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

    def check(self) -> None:
        """Tell now what could not be done in the end. Raises InputError."""
        if self.target is not None:
            check_file(self.target, "--adopt")
        if self.pid is not None:
            if self.target is None:
                raise InputError(f"--pid: {self.policy} is no file that could be replaced; name one with --adopt")
            if self.pid < 1:
                raise InputError(f"--pid: {self.pid}; expected the process of a running serve.py")
            _signal(self.pid, 0)
            command = Path(f"/proc/{self.pid}/cmdline")  # where there is such a thing: SIGHUP would end another process
            if command.is_file() and b"serve" not in command.read_bytes():
                raise InputError(f"--pid: {self.pid} is another process; expected that of a running serve.py")

    @property
    def weights(self) -> Path | None:
        """File of the weights to go on from; None where a heuristic serves."""
        if self.policy in SHIPPED:
            return SHIPPED[self.policy]
        return Path(self.policy) if self.policy.endswith(".safetensors") else None


def read_log(folder: Path | str) -> tuple[Workload, Measurements]:
    """The arrivals and batches of a recorded folder, its parts one after another, on one clock.

    Raises:
        InputError: there are none, or a part is malformed.
    """
    folder = Path(folder)
    parts = sorted(p.parent for p in (*folder.glob("*/arrivals.parquet"), *folder.glob("arrivals.parquet")))
    if not parts:
        raise InputError(f"--from-log: {folder} holds no recording; expected a folder that serve.py --record wrote")
    campaigns = {i: Measurements.load(part) for i, part in enumerate(parts) if (part / "batches.parquet").is_file()}
    if not campaigns:
        raise InputError(f"--from-log: {folder} holds arrivals, but no batch that ended")
    workloads = [Workload.load(part / "arrivals.parquet") for part in parts]
    if not any(map(len, workloads)):
        raise InputError(f"--from-log: the recording {folder} holds no request")
    shift_ms = _shifts(workloads, campaigns)
    return _as_one(workloads, shift_ms), joined(list(campaigns.values()), [shift_ms[i] for i in campaigns])


def _shifts(workloads: list[Workload], campaigns: dict[int, Measurements]) -> list[float]:
    """What is added to the times of each part so that it follows the one before; parts of one server go on with its clock."""
    shifts: list[float] = []
    shift_ms = 0.0
    last_ms: float | None = None  # on the clock of the part before
    for i, workload in enumerate(workloads):
        live = of_kind(campaigns[i], "live").batches if i in campaigns else pd.DataFrame(columns=PHASES, dtype=float)
        begins = [float(times.min()) for times in (workload.arrival_ms, live["dispatch_ms"]) if len(times)]
        ends = [float(times.max()) for times in (workload.arrival_ms, live["d2h_end_ms"]) if len(times)]
        if begins:
            # A part holds what ended in its time: some of that arrived before the last arrival of the part before.
            first_end_ms = float(live["d2h_end_ms"].min()) if len(live) else min(begins)
            if last_ms is None or first_end_ms < last_ms - SAME_CLOCK_MS:
                shift_ms += (last_ms or 0.0) - min(begins)
            last_ms = max(ends)
        shifts.append(shift_ms)
    return shifts


def _as_one(parts: list[Workload], shift_ms: list[float]) -> Workload:
    names = tuple(sorted({name for part in parts for name in part.models}))
    index = {name: number for number, name in enumerate(names)}
    arrival_ms = np.concatenate([part.arrival_ms + shift for part, shift in zip(parts, shift_ms, strict=True)])
    model = np.concatenate(
        [np.array([index[name] for name in part.models], np.int32)[part.model] for part in parts if len(part)]
    )
    priority, deadline_ms = (np.concatenate([getattr(p, name) for p in parts]) for name in ("priority", "deadline_ms"))
    order = np.argsort(arrival_ms, kind="stable")
    return Workload(arrival_ms[order], model[order], priority[order], deadline_ms[order], names, "log")


def _before(log: Measurements, end_ms: float) -> Measurements:
    """The log up to a time, with all solo runs."""
    frame = log.batches
    keep = (frame["kind"] != "live") | (frame["d2h_end_ms"] < end_ms)
    return Measurements(log.machine, frame[keep].reset_index(drop=True))


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
        ppo=replace(
            config.ppo, hidden=hidden, learning_rate=config.ppo.learning_rate * (SLOWER if loop.weights else 1)
        ),
        evaluation=replace(config.evaluation, loads=(load,)),
    )


def violated_weight(
    profile: Profile, truth: Truth, policy: str, workload: Workload, edges_ms: np.ndarray, worlds: int
) -> np.ndarray:
    """Violated weight of the requests that arrive in each window (W,), whose mean is the share over all of them.

    Args:
        profile: what the schedulers are told. truth: what the device does. policy: as for ``resolve``.
        workload: served in one go, so that a window begins with the queues that the one before left.
        edges_ms: (W + 1,) of the windows. worlds: noises to take the mean over, the same for every policy.
    """
    chosen, change = resolve(policy, worlds, profile=SERVED)
    streams = truth.count.shape[1] - 1
    sim = Simulator(profile, worlds, streams, len(workload), tables=change(profile.tables()), truth=truth)
    sim.end_as_served(workload)
    run_policy(sim, chosen, [workload], list(range(1, worlds + 1)))
    rows, windows = sim.world.request, len(edges_ms) - 1
    weight = np.where(rows["priority"] == HIGH, HIGH_WEIGHT, 1.0)
    bad = (weight * (rows["outcome"] != MET)).mean(axis=0)
    window = np.clip(np.searchsorted(edges_ms, workload.arrival_ms, side="right") - 1, 0, windows - 1)
    return np.bincount(window, bad, windows) * windows / weight[0].sum()


def window_edges(workload: Workload) -> np.ndarray:
    """Edges of the windows that a comparison on a workload is judged by, in ms (W + 1,).

    Raises:
        InputError: the workload is too short to be cut into windows.
    """
    windows = min(WINDOWS, int(workload.duration_ms / SHORTEST_MS))
    if windows < 2:
        raise InputError(f"--from-log: a recording of {workload.duration_ms / 1e3:.1f} s to judge by is too short")
    return np.linspace(0.0, workload.duration_ms, windows + 1)


def shadow(
    profile: Profile,
    workload: Workload,
    running: str,
    candidate: str,
    streams: int,
    log_slowdown: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare two policies on a workload that neither was tuned on, window by window.

    Args:
        profile: the machine's. workload: to serve. running, candidate: as for ``resolve``. streams: of the device.
        log_slowdown: of the cores over the time of the workload (refit.measured_log_slowdown); None: as the profile has it.

    Returns:
        Violated weight of both in percent, and the paired difference in points with its 95 % interval over windows.

    Raises:
        InputError: the workload is too short to be cut into windows.
    """
    edges_ms = window_edges(workload)
    truth = with_measured_slowdown(profile.truth(streams), log_slowdown)
    mine, theirs = (
        100 * violated_weight(profile, truth, name, workload, edges_ms, WORLDS) for name in (candidate, running)
    )
    low, mean, high = bootstrap(mine - theirs)
    return {
        "windows": len(mine),
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
    from agents.training.trainer import train

    resolve(loop.policy)
    loop.check()
    whole, log = read_log(loop.log)
    streams, cut_ms = log.machine.streams, TRAIN_SHARE * whole.duration_ms
    if not len(first := whole.window(0.0, cut_ms)):
        raise InputError(f"--from-log: {loop.log} holds too few requests to learn from")
    window_edges(rest := whole.window(cut_ms, np.inf))  # too short a log is told before anything is trained
    work = Path(config.logdir) / "from-log"
    work.mkdir(parents=True, exist_ok=True)
    taught = profile_of(_before(log, cut_ms))
    result = train(settings(config, loop, taught, first, streams, work), start=loop.weights)
    if result.interrupted:
        raise KeyboardInterrupt
    profile = profile_of(log)
    log_slowdown = measured_log_slowdown(profile, of_kind(log, "live"), cut_ms, whole.duration_ms)
    verdict = shadow(profile, rest, loop.policy, str(result.policy), streams, log_slowdown)
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
        raise InputError(f"--pid: {pid}: {error}; expected the process of a running serve.py") from None
