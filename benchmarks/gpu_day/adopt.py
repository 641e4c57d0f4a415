"""Makes what came back from a machine the project's: data, a profile, tuned parameters, tables of evidence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.figures import FiguresConfig, write_all
from benchmarks.gpu_day.runner import DONE, SUMMARY
from envs.profiles.fit import fit
from traces.errors import InputError
from traces.files import atomic_write_text
from traces.measurements import Measurements

MODEL = re.compile(r"\b[A-Z]{1,3}\d{2,4}[A-Z]*\b")  # H100, L40S, RTX4090
ROW = re.compile(r"^\| CUDA executor \|.*$", re.MULTILINE)


def adopt(day: Path, root: Path, trials: int) -> None:
    """Take over a day's files.

    Args:
        day: folder that a run left.
        root: of the project.
        trials: of the tuning of each policy on the new profile; 0: neither tune nor evaluate.

    Raises:
        InputError: a file is missing or broken, or there are no measurements; then nothing is written.
    """
    summary = read_summary(day)
    with tempfile.TemporaryDirectory() as temporary:
        files = unpacked(day, Path(temporary))
        measured = Measurements.load(files / "profile" / "profile" / "measurements")
        name = short_name(measured.machine.device.name)
        profile = fit(measured, f"gpu-{name}")
        campaigns = {name: measured}
        launches = files / "profile" / "launches" / "measurements"
        if launches.is_dir():
            campaigns[f"{name}-launches"] = Measurements.load(launches)
        records = tables(summary, files, measured.machine.device.name)
        for folder, campaign in campaigns.items():
            campaign.save(root / "traces" / "data" / folder)
        path = root / "envs" / "profiles" / "data" / f"gpu-{name}.json"
        profile.save(path)
        show(records, root, Path(temporary))
    where_it_ran(root / "docs" / "results.md", measured.machine.device.name)
    if trials:
        tune_and_evaluate(path, root, trials)


def read_summary(day: Path) -> dict[str, Any]:
    """The summary of a day.

    Raises:
        InputError: there is none.
    """
    try:
        return json.loads((day / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{day / SUMMARY}: not a summary of a day: {error}") from None


def unpacked(day: Path, into: Path) -> Path:
    """The files of all groups, each in a folder of its group's name.

    Raises:
        InputError: a file is broken.
    """
    for path in sorted(day.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as packed:
                packed.extractall(into / path.stem)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{path}: broken: {error}") from None
    return into


def short_name(device: str) -> str:
    """A device's model in lower case, as files are called: h100 for "NVIDIA H100 80GB HBM3"."""
    found = MODEL.search(device)
    return found[0].lower() if found else "-".join(re.findall(r"[a-z0-9]+", device.lower()))


def tables(summary: dict[str, Any], files: Path, device: str) -> dict[str, dict[str, Any]]:
    """What becomes a table, by the name of its block; only of steps that were done."""
    steps = summary["steps"]
    done = {name: steps[name]["figures"] for name in steps if steps[name]["state"] == DONE}
    known = {"live": files / "live" / "live" / "live.json", "simulated": files / "simulated" / "simulated"}
    known["simulated"] /= "simulated.json"
    records = {f"gpu-{name}": figures for name, figures in done.items() if name not in (*known, "facts")}
    for name, path in known.items():
        if path.is_file():
            records[f"gpu-{name}"] = json.loads(path.read_text(encoding="utf-8"))
    steps_table = {name: {"state": step["state"], "took_s": step["took_s"]} for name, step in steps.items()}
    records["gpu-steps"] = steps_table
    return {name: {"machine": device, "device": device, **record} for name, record in records.items()}


def show(records: dict[str, dict[str, Any]], root: Path, folder: Path) -> None:
    """Store the records as results, and fill their blocks in the documents."""
    words = []
    for name, record in records.items():
        path = folder / f"{name}.json"
        atomic_write_text(path, json.dumps(record))
        words.append(f"{name}={path}")
    write_all(FiguresConfig(words, root=str(root)))


def where_it_ran(path: Path, device: str) -> None:
    """Say in the results where the CUDA executor ran."""
    row = f"| CUDA executor | `python -m benchmarks.gpu_day` | {device} | live | CUDA |"
    text = path.read_text(encoding="utf-8")
    atomic_write_text(path, ROW.sub(row, text))


def tune_and_evaluate(profile: Path, root: Path, trials: int) -> None:
    """Tune all policies on the profile, compare them, and write the table.

    Raises:
        InputError: one of the commands failed.
    """
    out = root / "runs" / profile.stem
    tuned = root / "agents" / "learned" / "data" / f"tuned-{profile.stem}.json"
    for words in (
        ["agents.tune", "--budget", str(trials), "--seeds", "4", "--profile", str(profile), "--out", str(tuned)],
        ["agents.evaluate", "--suite", "quick", "--profile", str(profile), "--out", str(out)],
        ["benchmarks.figures", f"quick-{profile.stem}={out / 'result.json'}", "--root", str(root)],
    ):
        if subprocess.run([sys.executable, "-m", *words]).returncode:
            raise InputError(f"python -m {' '.join(words)}: failed")
