"""Training with several seeds side by side: what lone runs give, and no loss where it is interrupted or one fails."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny

from agents.learned.policy_file import read_policy
from agents.training import seeds as sweeps
from agents.training.cli import main
from agents.training.config import to_yaml
from agents.training.run_folder import INFO, POLICY
from agents.training.seeds import Sweep, train_seeds
from agents.training.trainer import train

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _in_this_process(*_: Any, **__: Any) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def weights(run: Path) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in read_policy(run / POLICY).weights.items()}


def test_each_seed_gives_what_a_lone_run_gives(tmp_path: Path) -> None:
    found = train_seeds(tiny(tmp_path, seed=3, name="both"), Sweep(2, workers=2), ["--config", "quick", "--seeds", "2"])
    assert sorted(found.runs) == [3, 4] and not found.failed and not found.waiting
    for seed, result in found.runs.items():
        alone = train(tiny(tmp_path, seed=seed, name=f"alone-{seed}"))
        assert result.run == tmp_path / "both" / f"seed-{seed}"
        assert (result.difference, result.error) == (alone.difference, alone.error)
        assert weights(result.run) == weights(alone.run)
        (command,) = json.loads((result.run / INFO).read_text())["commands"]
        assert command == f"python train.py --config quick --seed {seed} --logdir {tmp_path}/both --name seed-{seed}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs strait-rl[ray]")
def test_seeds_give_the_same_on_ray(tmp_path: Path) -> None:
    here = train_seeds(tiny(tmp_path, name="here"), Sweep(2, workers=2))
    there = train_seeds(tiny(tmp_path, name="there"), Sweep(2, workers=2, cluster="local"))
    assert not there.failed
    for seed in (0, 1):
        assert weights(here.runs[seed].run) == weights(there.runs[seed].run)


def test_one_that_fails_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training(config: Any, words: Any) -> Any:
        if config.seed == 1:
            raise OSError(28, "No space left on device")
        return before(config, words)

    before = sweeps.train_as
    monkeypatch.setattr(sweeps, "train_as", training)
    monkeypatch.setattr(sweeps, "worker_pool", _in_this_process)
    found = train_seeds(tiny(tmp_path), Sweep(3))
    assert sorted(found.runs) == [0, 2] and isinstance(found.failed[1], OSError)


def test_one_that_is_interrupted_before_its_first_checkpoint_counts_as_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training(config: Any, words: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "train_as", training)
    monkeypatch.setattr(sweeps, "worker_pool", _in_this_process)
    found = train_seeds(tiny(tmp_path), Sweep(3))
    assert not found.runs and not found.failed and sorted(found.waiting) == [0, 1, 2]
    assert not list(tmp_path.iterdir()), "an empty folder would take the name"


def test_a_signal_leaves_checkpoints_of_what_runs_and_begins_nothing_more(tmp_path: Path) -> None:
    config = tmp_path / "long.yaml"
    config.write_text(to_yaml(tiny(tmp_path, n_timesteps=10**8, eval_freq=10**8, name="long")))
    words = ["--config", str(config), "--seeds", "3", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 180.0
    while not all(list(tmp_path.glob(f"long/seed-{seed}/checkpoints/*")) for seed in (0, 1)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60.0)
    assert process.returncode == 130
    for seed in (0, 1):
        run = tmp_path / "long" / f"seed-{seed}"
        assert f"go on with: python train.py -i {run}" in out
        assert list((run / "checkpoints").iterdir())
    assert "not begun: seeds 2" in out and not (tmp_path / "long" / "seed-2").exists()


def test_the_command_line_says_how_far_seeds_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny(tmp_path)))
    assert main(["--config", str(config), "--seeds", "2", "--seed", "5"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("seed 5: 1024 decisions in ") and second.startswith("seed 6: ")
    assert last.startswith("2 seeds: ") and " percentage points, from " in last


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "0"], "seeds"),
        (["--workers", "2"], "--workers goes with --seeds"),
        (["--cluster", "local"], "--cluster goes with --seeds"),
        (["--seeds", "2", "--from-log", "log"], "it does not go with --from-log"),
        (["--seeds", "2", "--cluster", "nowhere"], "it must be local, auto or ray://HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--logdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
