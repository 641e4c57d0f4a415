"""How training ends early: signals, a full disk at each file that is written, settings that cannot be."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny_training import TINY, tiny

from agents import evaluate, timeline, tune
from agents.learned.policy_file import read_policy
from agents.training import checkpoint
from agents.training import cli as train_cli
from agents.training import trainer as ppo
from agents.training.checkpoint import checkpoints
from agents.training.config import load_config, to_yaml
from agents.training.lookahead import Practice
from agents.training.samples import Samples
from traces.signals import SIGNALS


def command(tmp_path: Path, **changes: Any) -> list[str]:
    """Flags of a tiny run in a folder of its own."""
    (tmp_path / "c.yaml").write_text(to_yaml(tiny(tmp_path / "runs", **changes)))
    return ["--config", str(tmp_path / "c.yaml")]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, update: int, *signals: int) -> None:
    """Send this process signals after an update."""
    updated, count = ppo.Trainer._updated, [0]

    def interrupt(trainer: ppo.Trainer) -> None:
        updated(trainer)
        count[0] += 1
        if count[0] == update:
            for number in signals:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(ppo.Trainer, "_updated", interrupt)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_ends_a_run_leaves_a_checkpoint_and_a_word(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests run where the signal is ignored, as under nohup")
    interrupt_at(monkeypatch, 2, number)
    before = [signal.getsignal(n) for n in SIGNALS]
    assert train_cli.main(command(tmp_path, save_freq=0)) == 130
    said = capsys.readouterr()
    run = tmp_path / "runs" / "ppo-1"
    assert f"go on with: python train.py -i {run}" in said.out and "stopping soon, with a checkpoint" in said.err
    assert [p.name for p in checkpoints(run)] == ["000000000512"]
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_second_signal_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_at(monkeypatch, 1, signal.SIGTERM, signal.SIGINT)
    assert train_cli.main(command(tmp_path)) == 130
    assert capsys.readouterr().err.endswith("stopped\n")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        interrupt_at(monkeypatch, 1, signal.SIGHUP)
        assert train_cli.main(command(tmp_path, n_timesteps=256)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_there_is_anything_to_keep_ends_the_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ppo, "note_run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert train_cli.main(command(tmp_path)) == 130
    assert capsys.readouterr().err == "stopped\n" and not list((tmp_path / "runs").iterdir())


# Two rounds in which Strait goes on in the twins, one in which the network does.
LOOK_AHEAD = replace(TINY.look_ahead, rounds=2, iterations=1, epochs=2, batch_size=32, temperature=0.3)
# What is called when the signal comes, and how often it was before: while worlds are made ready, in each round's decisions and
# in its fit, while the margin is chosen.
MOMENTS = [
    ("normalise", 0),
    *((place, after) for place in ("decide", "gradient") for after in (0, 5, 11, 22)),
    ("choose_margin", 0),
]


@pytest.mark.parametrize("profiles", [(), ("synthetic:0", "synthetic:1")])
def test_a_look_ahead_that_was_interrupted_goes_on_as_if_nothing_had_been(
    profiles: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"look_ahead": LOOK_AHEAD, "profiles": profiles, "n_timesteps": 512, "save_freq": 0}
    whole = ppo.train(tiny(tmp_path / "whole", **changes))
    wanted = read_policy(whole.run / "last.safetensors").weights
    places: dict[str, tuple[Any, str]] = {
        "normalise": (ppo, "normalise"),
        "decide": (Practice, "decide"),
        "gradient": (Samples, "observations"),
        "choose_margin": (ppo, "choose_margin"),
    }
    for place, after in MOMENTS[:: 2 if profiles else 1]:
        owner, function = places[place]
        real, calls = getattr(owner, function), [0]

        def interrupting(*args: Any, real: Any = real, calls: list[int] = calls, after: int = after) -> Any:
            if calls[0] == after:
                os.kill(os.getpid(), signal.SIGINT)
            calls[0] += 1
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, interrupting)
            cut = ppo.train(tiny(tmp_path / f"{place}-{after}", **changes))
        assert cut.interrupted and cut.n_timesteps == 0 and calls[0] > after
        np.random.seed(99)
        again = ppo.train(load_config(cut.run / "config.yaml"), cut.run)
        assert (again.difference, again.n_timesteps) == (whole.difference, 512), (place, after)
        mine = read_policy(again.run / "last.safetensors").weights
        assert all(np.array_equal(mine[k], wanted[k]) for k in wanted), (place, after)


def test_a_run_that_was_killed_in_the_look_ahead_goes_on_from_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"look_ahead": LOOK_AHEAD, "n_timesteps": 256}
    whole = ppo.train(tiny(tmp_path / "whole", **changes))
    real, calls = Practice.decide, [0]

    def dying(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 13:
            raise MemoryError  # as good as a kill: nothing is tidied up
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Practice, "decide", dying)
        with pytest.raises(MemoryError):
            ppo.train(tiny(tmp_path / "cut", **changes))
    run = tmp_path / "cut" / "ppo-1"
    assert json.loads((run / "checkpoints/000000000000/state.json").read_text())["look_ahead"]["step"] == 8
    again = ppo.train(load_config(run / "config.yaml"), run)
    assert (again.difference, again.n_timesteps) == (whole.difference, 256)
    assert not list(run.rglob(checkpoint.SAMPLES)), "what was learned from them is in the weights"


def full_after(writes: int, real: Any, only: str = "") -> Any:
    """A function that writes, on a disk that is full after so many calls (on files whose path has ``only`` in it)."""
    left = [writes]

    def write(first: Any, *args: Any, **kwargs: Any) -> Any:
        if only in str(first):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(first, *args, **kwargs)

    return write


# What writes a file, how many go well before, part of its path; then whether there is a checkpoint to go on from.
FILES = {
    "config": (Path, "write_text", 0, "/.config-", False),
    "run": (Path, "write_text", 0, "/.run-", False),
    "samples": (Path, "write_bytes", 0, checkpoint.SAMPLES, False),
    "last policy": (Path, "write_bytes", 0, "ppo-1/.last-", True),
    "best policy": (Path, "write_bytes", 0, "ppo-1/.policy-", True),
    "later policy": (Path, "write_bytes", 1, "ppo-1/.last-", True),
    "checkpoint's policy": (Path, "write_bytes", 1, ".tmp/.policy-", True),
    "optimizer": (Path, "write_bytes", 1, checkpoint.OPTIMIZER, True),
    "arrays": (np, "savez_compressed", 1, "", True),
    "first arrays": (np, "savez_compressed", 0, "", False),
    "state": (Path, "write_text", 1, checkpoint.STATE, True),
    "first scalars": (RecordWriter, "write", 1, "", None),
    "scalars": (RecordWriter, "write", 100, "", True),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_ends_a_run_in_one_line_and_what_was_whole_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, function, writes, only, resumable = FILES[name]
    hook = threading.excepthook
    with monkeypatch.context() as disk:
        disk.setattr(place, function, full_after(writes, getattr(place, function), only))
        assert train_cli.main(command(tmp_path)) == 1
    error = capsys.readouterr().err
    run = tmp_path / "runs" / "ppo-1"
    assert error.startswith("error: ") and error.count("\n") == 1 and "No space left on device" in error
    assert "scalars" in name or str(run) in error
    assert threading.excepthook is hook
    assert not [p for p in run.rglob("*") if p.name.startswith(".")]
    assert resumable is None or bool(checkpoints(run)) == resumable == ("go on with" in error)
    if checkpoints(run):
        result = ppo.train(load_config(run / "config.yaml"), run)
        assert result.n_timesteps == 1024 and np.isfinite(result.difference)
    elif "arrays" not in name and resumable is False:
        assert not list((tmp_path / "runs").iterdir()) or (run / "policy.safetensors").is_file()


def test_what_a_run_began_with_cannot_be_changed_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path, n_timesteps=256)
    assert train_cli.main(words) == 0
    run = tmp_path / "runs" / "ppo-1"
    before = (run / "config.yaml").read_text()
    for flags in (["--seed", "7"], ["--name", "other"], ["--logdir", str(tmp_path)]):
        assert train_cli.main(["-i", str(run), *flags]) == 2
        assert f"{flags[0]}: a run that goes on keeps what it began with" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    (run / "run.json").write_text("null")
    assert train_cli.main(["-i", str(run), "-n", "512"]) == 0
    (tmp_path / "runs" / "empty").mkdir()
    assert train_cli.main([*words, "--name", "empty"]) == 2
    assert "remove it, as it holds no checkpoint" in capsys.readouterr().err


def test_a_training_that_diverges_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path)
    assert train_cli.main([*words, "--ppo.learning_rate", "1e6", "--ppo.max_grad_norm", "1e9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the training diverged after") and "ppo.learning_rate (it is 1e+06)" in error


def test_a_fault_before_there_is_anything_to_keep_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "spread_out", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ppo.train(tiny(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_its_warm_start_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ppo.train(tiny(tmp_path / "whole"))
    with monkeypatch.context() as disk:
        disk.setattr(np, "savez_compressed", full_after(2, np.savez_compressed))
        with pytest.raises(OSError, match="No space left"):
            ppo.train(tiny(tmp_path / "cut"))
    run = tmp_path / "cut" / "ppo-1"
    assert [p.name for p in checkpoints(run)] == ["000000000000"] and not list(run.rglob(checkpoint.SAMPLES))
    again = ppo.train(load_config(run / "config.yaml"), run)
    assert (again.difference, again.error, again.n_timesteps) == (whole.difference, whole.error, whole.n_timesteps)


@pytest.mark.parametrize(
    ("main", "flags", "says"),
    [
        (train_cli.main, "--seed 5000000000", "seed: 5000000000; must be at most 4294967295"),
        (train_cli.main, "--seed -1", "seed: -1; must be at least 0"),
        (train_cli.main, "--env.streams 1000", "streams: 1000; must be at most 32"),
        (train_cli.main, "--ppo.n_envs true", "ppo.n_envs: True; expected a whole number"),
        (train_cli.main, "--ppo.target_kl 0", "ppo.target_kl: 0.0; must be above 0"),
        (train_cli.main, "--tuned_for gpu_a100", "gpu_a100: no such profile"),
        (train_cli.main, "--ppo.hidden 100000", "ppo.hidden: 100000; must be at most 4096"),
        (train_cli.main, "--env.load [0,0]", "above 0, or there are no requests"),
        (train_cli.main, "--evaluation.loads [1000]", "evaluation.loads: (1000.0,); must be at most 100"),
        (evaluate.main, "--suite small --streams 1 --workers 1", "--streams, --workers: suite small has"),
        (train_cli.main, "--evaluation.loads []", "evaluation.loads: empty; must hold at least one"),
        (train_cli.main, "--ppo.n_envs 100000000", "ppo.n_envs: 100000000; must be at most 65536"),
        (evaluate.main, "--seeds 0", "--seeds: 0; must be at least 1"),
        (evaluate.main, "--seeds -1", "--seeds: -1; must be at least 1"),
        (evaluate.main, "--loads []", "--loads: empty; must hold at least one"),
        (evaluate.main, "--loads 1,-1", "--loads: [1.0, -1.0]; must be above 0"),
        (evaluate.main, "--policies []", "--policies: empty; must hold at least one"),
        (evaluate.main, "--workloads []", "--workloads: empty; must hold at least one"),
        (evaluate.main, "--streams 1000 --json", "streams: 1000; must be from 1 to 32"),
        (evaluate.main, "--workers 0", "--workers: 0; must be at least 1"),
        (evaluate.main, "--out FILE", "--out: "),
        (tune.main, "--budget 0", "--budget: 0; must be at least 1"),
        (tune.main, "--seed 5000000000", "--seed: 5000000000; must be at most"),
        (tune.main, "--loads nan", "nan"),
        (tune.main, "--out FOLDER", "is a folder; expected a file"),
        (timeline.main, "--out FILE/x.png", "File exists"),
        (timeline.main, "--out x.png --seed -1", "--seed: -1; must be at least 0"),
        (timeline.main, "--out x.png --load 0", "--load: 0.0; must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    main: Any, flags: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = (
        flags.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path)).replace("RUNS", str(tmp_path))
    )
    assert main(words.split()) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
