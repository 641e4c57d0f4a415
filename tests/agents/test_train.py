from __future__ import annotations

import json
import os
import random
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TINY, tiny

from agents.evaluation import metric
from agents.learned.forward import HEAD, STRAIT
from agents.learned.names import SERVED, resolve
from agents.learned.policy import load_policy
from agents.learned.policy_file import SHIPPED, read_policy
from agents.training import cli as train_cli
from agents.training import trainer as ppo
from agents.training.checkpoint import checkpoints, find_checkpoint, random_arrays, read_checkpoint, set_random
from agents.training.config import TrainConfig, load_config, to_yaml
from agents.training.ppo.learner import Clock
from agents.training.run_folder import WHERE, command_line, make_run_folder
from traces.errors import InputError

TIMES = ("time/",)  # scalars that differ between runs that are equal


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """By step: files that one process begins within one second are read as "1", "10", "9"."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith(TIMES)]
    return {name: sorted((e.step, e.value) for e in events.Scalars(name)) for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ppo.TrainResult:
    """A run that nothing interrupted."""
    return ppo.train(tiny(tmp_path_factory.mktemp("whole")))


def test_run_folder_holds_what_is_promised(whole: ppo.TrainResult) -> None:
    run = whole.run
    assert run.name == "ppo-1"
    assert load_config(run / "config.yaml") == tiny(run.parent)
    info = json.loads((run / "run.json").read_text())
    assert info["seed"] == 0 and info["versions"]["torch"] and len(info["commands"]) == 1
    assert [p.name for p in checkpoints(run)] == ["000000000512", "000000000768", "000000001024"]
    assert whole.n_timesteps == 1024 and not whole.interrupted
    assert np.isfinite([whole.difference, whole.error]).all()
    assert load_policy(whole.policy).metadata["reference"] == "strait"
    assert read_policy(run / "last.safetensors").metadata["n_timesteps"] == "1024"
    assert not [p for p in run.rglob("*") if p.suffix in (".pkl", ".pt", ".tmp") or p.name.startswith(".")]


def test_a_policy_names_its_command_but_not_the_folder_it_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = shlex.split("/some/where/train.py --config live --logdir '/a folder/runs' --name=x --seed 1 -f /b -f/c")
    monkeypatch.setattr("sys.argv", argv)
    assert command_line(WHERE) == "python train.py --config live --seed 1"
    assert "/some/where" not in command_line() and "'/a folder/runs'" in command_line()


def test_policies_that_ship_name_no_folder_of_a_machine() -> None:
    for path in SHIPPED.values():
        metadata = read_policy(path).metadata
        assert metadata["command"].startswith("python train.py --config ") and " /" not in metadata["command"]


@pytest.mark.parametrize("strait_tuned", [False, True])
def test_the_network_begins_with_straits_parameters(strait_tuned: bool, tmp_path: Path) -> None:
    trainer = ppo.Trainer(tiny(tmp_path, strait_tuned=strait_tuned, tuned_for=SERVED))
    wanted = resolve("strait", use_tuned=strait_tuned, profile=SERVED)[0]
    np.testing.assert_allclose(trainer.model.policy.net.strait.numpy(), wanted.vector, rtol=1e-6)
    (device,) = trainer.devices
    tuned = resolve("strait", profile=SERVED)[0].vector
    np.testing.assert_array_equal(device.baseline.reference.vector, tuned)


def test_one_policy_is_trained_on_many_devices_and_corrects_the_strait_of_each(tmp_path: Path) -> None:
    config = tiny(tmp_path, profiles=("synthetic:0", "synthetic:1"))
    result = ppo.train(config)
    assert set(scalars(result.run)) >= {
        f"evaluation/difference/{name}" for name in ("synthetic_0", "synthetic_1", "all")
    }
    deployed = resolve(str(result.policy), profile=SERVED)[0]
    np.testing.assert_array_equal(deployed.vector[STRAIT:HEAD], resolve("strait", profile=SERVED)[0].vector)


def test_best_policy_is_the_one_that_is_kept(whole: ppo.TrainResult) -> None:
    seen = scalars(whole.run)["evaluation/difference/all"]
    assert [step for step, _ in seen] == [0, 512, 1024]
    kept = read_policy(whole.policy).metadata
    assert 100 * float(kept["evaluation_difference"]) == pytest.approx(min(v for _, v in seen), rel=1e-5)
    assert int(kept["n_timesteps"]) == min(seen, key=lambda point: point[1])[0]


def test_tensorboard_answers_whether_it_is_better(whole: ppo.TrainResult) -> None:
    found = scalars(whole.run)
    for name in (
        *metric.VIOLATION,
        metric.EPISODE_RETURN,
        metric.outcome_tag("high", "met"),
        "load/mean",
        "action/defer",
        "action/high",
        "action/batch_1",
        "evaluation/standard_error/load_1",
        "evaluation_reference/high/load_1",
        "evaluation_confirmed/difference",
        "train/approx_kl",
        "train/explained_variance",
        "train/entropy_loss",
    ):
        assert name in found, name
    assert [step for step, _ in found["train/approx_kl"]] == [256, 512, 768, 1024]
    shares = sum(found[f"action/{name}"][0][1] for name in ("defer", "high", "low"))
    assert shares == pytest.approx(1.0, abs=1e-5)
    events = EventAccumulator(str(whole.run / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["world/first"]
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_resumed_run_equals_one_that_was_not_interrupted(
    whole: ppo.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = 0
    updated = ppo.Trainer._updated

    def interrupt(trainer: ppo.Trainer) -> None:
        nonlocal updates
        updated(trainer)
        updates += 1
        if updates == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ppo.Trainer, "_updated", interrupt)
    config = tiny(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    first = ppo.train(config)
    assert first.interrupted and first.n_timesteps == 768
    assert signal.getsignal(signal.SIGINT) is before
    np.random.seed(99)
    torch.manual_seed(99)
    second = ppo.train(load_config(first.run / "config.yaml"), first.run)
    assert (second.n_timesteps, second.interrupted, second.run) == (1024, False, first.run)
    assert (second.difference, second.error) == (whole.difference, whole.error)
    for name in ("policy.safetensors", "last.safetensors"):
        mine, theirs = read_policy(second.run / name).weights, read_policy(whole.run / name).weights
        assert all(np.array_equal(mine[k], theirs[k]) for k in theirs)
    assert scalars(second.run) == scalars(whole.run)
    assert len(json.loads((second.run / "run.json").read_text())["commands"]) == 2


def test_random_generators_go_on_where_they_were() -> None:
    random.gauss(0, 1)
    np.random.normal()
    kept = random_arrays()
    drawn = [(random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()) for _ in range(3)]
    set_random(kept)
    assert drawn == [(random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()) for _ in range(3)]


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "arrays.npz", "state.json"])
def test_damaged_checkpoint_is_told(whole: ppo.TrainResult, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "000000001024"
    copy.mkdir()
    for file in checkpoints(whole.run)[-1].iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(copy)


def test_checkpoint_of_other_settings_is_told(whole: ppo.TrainResult) -> None:
    config = tiny(whole.run.parent)
    with pytest.raises(InputError, match="does not fit these settings"):
        ppo.train(replace(config, ppo=replace(config.ppo, hidden=16)), whole.run)


def test_checkpoint_is_found_by_run_or_by_folder(whole: ppo.TrainResult, tmp_path: Path) -> None:
    newest = checkpoints(whole.run)[-1]
    assert find_checkpoint(whole.run) == (whole.run, newest)
    assert find_checkpoint(checkpoints(whole.run)[0]) == (whole.run, checkpoints(whole.run)[0])
    for path, message in ((tmp_path / "none", "no folder"), (tmp_path, "holds no checkpoint")):
        with pytest.raises(InputError, match=message):
            find_checkpoint(path)


def test_names_of_runs(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    assert [make_run_folder(config).name for _ in range(2)] == ["ppo-1", "ppo-2"]
    make_run_folder(replace(config, name="mine"))
    with pytest.raises(InputError, match="is there already"):
        make_run_folder(replace(config, name="mine"))


def test_clock_ends_with_the_budget() -> None:
    assert Clock(None).share() == 0.0
    clock = Clock(1000.0, before_s=400.0)
    clock.begin_learning(100.0)
    assert clock.share() == pytest.approx(0.0, abs=1e-3)
    late = Clock(10.0, before_s=8.0)
    late.begin_learning(3.0)
    assert 0.0 <= late.share() <= 1.0


@pytest.mark.parametrize("name", ["quick", "default", "live"])
def test_configurations_that_ship_are_valid(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("n_timesteps: 5\nppo: {n_steps: 8, hidden: 4}\nenv: {load: [0.5, 0.9]}\n")
    args = ["--config", str(path), "-n", "2e6", "--eval-freq", "7", "--ppo.n-steps=9", "--env.load=[0.1, 0.2]"]
    config = train_cli.settings([*args, "--seed", "3", "--progress", "-f", "elsewhere"])
    assert (config.n_timesteps, config.eval_freq, config.seed, config.progress) == (2_000_000, 7, 3, True)
    assert (config.ppo.n_steps, config.ppo.hidden, config.env.load) == (9, 4, (0.1, 0.2))
    assert (config.logdir, config.resume) == ("elsewhere", None)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (None, ["--config", "nope"], "no configuration 'nope'; expected one of default, live, many, quick"),
        ("unknown: 1", [], "unknown"),
        ("ppo: {n_step: 3}", [], "n_step"),
        ("ppo: {n_steps: many}", [], "n_steps"),
        ("env: 3", [], "env: 3; expected a mapping"),
        ("env: {load: [2, 1]}", [], "load: (2.0, 1.0)"),
        ("- 1", [], "run.yaml"),
        ("seed: 1", ["--ppo.tau", "-1"], "ppo.tau: -1.0"),
        ("seed: 1", ["--no-such-flag", "1"], "no_such_flag"),
        ("seed: 1", ["-n", "many"], "-n: 'many'"),
        ("seed: 1", ["--reference", "nobody"], "unknown policy 'nobody'"),
        ("env: {profile: nothere}", [], "nothere: no such profile"),
        (None, ["-i", "nowhere"], "no folder 'nowhere'"),
        (None, ["-i", "nowhere", "--config", "quick"], "give one of both"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    text: str | None, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
        flags = ["--config", str(tmp_path / "run.yaml"), *flags]
    assert train_cli.main([*flags, "-f", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_settings_out_of_range_are_told() -> None:
    for changes, message in (
        ({"eval_freq": 0}, "eval_freq: 0"),
        ({"budget_s": 0.0}, "budget_s"),
        ({"name": "a/b"}, "name"),
    ):
        with pytest.raises(InputError, match=message):
            replace(TINY, **changes)


def test_help_names_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--ppo.learning_rate", "--env.load", "--budget_s", "--resume"))


def test_default_settings_are_valid() -> None:
    assert TrainConfig().ppo.n_envs > 0
