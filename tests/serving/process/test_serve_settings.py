"""Flags, YAML and lists of models: what is wrong is said in one line that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.profiles.profile import Profile, synthetic_profile
from serving.config import ServeConfig
from serving.door import addresses, run_door
from serving.models.listing import read_entries
from serving.replay.workload import lay_out, read_source
from serving.server import Server
from traces.command import parse_settings
from traces.errors import InputError
from traces.workload import Workload, WorkloadConfig


def parse(words: list[str]) -> ServeConfig:
    return parse_settings(ServeConfig, words)


def test_flags_win_over_the_file_and_dashes_are_underscores(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("policy: edf\nport: 9000\nmodels: [resnet, bert]\n")
    config = parse([f"--config={file}", "--port", "9001", "--log-json", "--grpc", "--drain-timeout=3"])
    assert (config.policy, config.port, config.model_sources) == ("edf", 9001, ["resnet", "bert"])
    assert config.log_json and config.grpc and config.drain_timeout == 3.0
    assert not parse(["--grpc", "false"]).grpc
    assert parse(["--models", "resnet,net=a.pt"]).model_sources == ["resnet", "net=a.pt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streams": 0}, "--streams: 0"),
        ({"load": -1.0}, "--load: -1.0"),
        ({"memory_limit": "2 apples"}, "--memory_limit: '2 apples'"),
        ({"tls_cert": "a.pem"}, "give both or neither"),
        ({"log_level": "loud"}, "--log_level: 'loud'"),
        ({"batch_sizes": [2, 1]}, "ascending"),
        ({"max_per_client": 0}, "--max_per_client: 0; it must be at least 1"),
        ({"keepalive_s": 0.0}, "--keepalive_s: 0.0; it must be a number above 0"),
        ({"grace_ms": -1.0}, "--grace_ms: -1.0; it must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServeConfig(**settings)


def test_a_token_comes_from_a_flag_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")

    def token(**settings: str) -> str | None:
        config = ServeConfig(**settings)
        config.read_token()
        config.read_token()
        return config.token

    assert token() is None
    assert token(token="flag") == "flag" and token(token_file=str(file)) == "s3cret"
    monkeypatch.setenv("STRAIT_TOKEN", "variable")
    assert token() == "variable" and token(token="flag") == "flag" and token(token_file=str(file)) == "s3cret"
    with pytest.raises(InputError, match="say different things"):
        token(token="flag", token_file=str(file))
    with pytest.raises(InputError, match="--token_file .*missing: No such file"):
        token(token_file=str(tmp_path / "missing"))
    for text in ("", "two words", " \n"):
        file.write_text(text)
        with pytest.raises(InputError, match=f"--token_file {file}: the token is empty or has white space"):
            token(token_file=str(file))
    monkeypatch.setenv("STRAIT_TOKEN", "")
    with pytest.raises(InputError, match="the variable STRAIT_TOKEN: the token is empty"):
        token()


async def test_a_door_takes_its_token_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(InputError, match=f"--token_file {file}: No such file"):
        await run_door(ServeConfig(peers=["127.0.0.1:9"], port=0, token_file=str(file)))


def test_a_server_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRAIT_TOKEN", "variable")
    config = ServeConfig(models="lstm", profile="cpu2", port=0)
    Server(config)
    assert config.token == "variable"


@pytest.mark.parametrize(
    ("flag", "value"),
    [("models", "bert"), ("policy", "edf"), ("streams", 2), ("device", "cpu"), ("memory_limit", "2G")],
)
def test_a_door_refuses_what_only_a_device_takes_notice_of(flag: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{flag} is for a server with a device of its own; give it to the replicas"):
        ServeConfig(peers=["127.0.0.1:9"], **{flag: value})


@pytest.mark.parametrize(
    ("flag", "peers"),
    [
        ("[::1]:9100", ["[::1]:9100"]),
        ("a:1,[::1]:9101", ["a:1", "[::1]:9101"]),
        ("[::1]:9100,b:2", ["[::1]:9100", "b:2"]),
        ('["[::1]:9100", b:2]', ["[::1]:9100", "b:2"]),
        ("[a:1, b:2]", ["a:1", "b:2"]),
    ],
)
def test_peers_are_named_plainly_or_as_a_list(flag: str, peers: list[str]) -> None:
    config = parse_settings(ServeConfig, ["--peers", flag])
    assert config.peers == peers and len(addresses(config.peers)) == len(peers)


def test_no_more_is_asked_of_a_quote_than_an_idle_server_promises() -> None:
    assert ServeConfig(least_quote=0.99).least_quote == 0.99
    with pytest.raises(InputError, match=r"--least_quote: 1\.0; it must be from 0 to 0\.99"):
        ServeConfig(least_quote=1.0)


def test_memory_limits_have_units() -> None:
    assert ServeConfig().memory_bytes is None
    assert ServeConfig(memory_limit="1.5GiB").memory_bytes == 3 * 2**29
    assert ServeConfig(memory_limit="512M").memory_bytes == 2**29


def test_a_folder_of_models_is_read(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"")
    (tmp_path / "net.yaml").write_text("source: net.pt\ninput_shape: [3, 8]\npriority: high\ntimeout_ms: 20\n")
    (tmp_path / "bert.yaml").write_text("source: builtin:bert\n")
    entries = read_entries([str(tmp_path)])
    assert list(entries) == ["bert", "net"]
    net = entries["net"]
    assert (net.priority, net.timeout_ms, net.spec.input_shape) == (0, 20.0, (3, 8))
    assert net.spec.source == str(tmp_path.resolve() / "net.pt"), "a path is relative to its file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, source: ../../secret.pt, input_shape: [1]}", "outside of"),
        ("- {name: a, source: /etc/secret.pt, input_shape: [1]}", "outside of"),
        ("- {name: ../a, source: 'builtin:bert'}", "model name '../a'"),
        ("- {name: a, source: 'builtin:bert'}\n- {name: a, source: 'builtin:vit'}", "named twice"),
        ("- {name: a, source: 'builtin:bert', colour: red}", "unknown field 'colour'"),
        ("- {name: a, source: 'builtin:bert', priority: 3}", "priority is 3"),
        ("- {name: a, source: 'builtin:bert', timeout_ms: -3}", "timeout_ms is -3"),
        ("- {source: 'builtin:bert'}", r"models\[0\]: name is None"),
        ("- {name: a\n", ":2: not YAML"),
        ("hello", "must hold a list of models"),
    ],
)
def test_a_malformed_list_of_models_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_entries([str(file)])


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "a.pt").write_bytes(b"")
    (inside / "a.pt").symlink_to(outside / "a.pt")
    (inside / "a.yaml").write_text("source: a.pt\ninput_shape: [1]\n")
    with pytest.raises(InputError, match="outside of"):
        read_entries([str(inside)])


@pytest.fixture
def profile() -> Profile:
    return synthetic_profile(2)


@pytest.mark.parametrize("name", ["poisson", "bursty", "diurnal", "gamma", "twin:azure_llm_2023", "mooncake"])
def test_named_workloads_are_laid_out_at_the_rate_that_is_asked_for(profile: Profile, name: str) -> None:
    source = read_source(name, profile.models)
    workload = lay_out(source, profile, 200.0, 20.0, WorkloadConfig(), seed=1)
    again = lay_out(source, profile, 200.0, 20.0, WorkloadConfig(), seed=1)
    assert workload.duration_ms <= 20_000 and 1000 < len(workload) < 12_000
    np.testing.assert_array_equal(workload.arrival_ms, again.arrival_ms)


def test_a_workload_file_keeps_its_models_priorities_and_deadlines(tmp_path: Path, profile: Profile) -> None:
    made = Workload(np.arange(100.0), np.arange(100) % 2, np.arange(100) % 2, np.full(100, 7.0), profile.models)
    for suffix in (".parquet", ".csv"):
        path = tmp_path / f"recorded{suffix}"
        made.save(path)
        source = read_source(str(path), profile.models)
        same = lay_out(source, profile, None, 60.0, WorkloadConfig(), 0)
        np.testing.assert_array_equal(same.arrival_ms, made.arrival_ms)
        np.testing.assert_array_equal(same.priority, made.priority)
        faster = lay_out(source, profile, 2000.0, 60.0, WorkloadConfig(), 0)
        assert faster.rate_rps == pytest.approx(2000.0)
        with pytest.raises(InputError, match="one of other"):
            read_source(str(path), ("other",))


def test_what_cannot_be_replayed_is_refused(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(InputError, match="no file and no known workload"):
        read_source("nope", profile.models)
    bad = tmp_path / "bad.csv"
    bad.write_text("arrival_ms,model,priority,deadline_ms\n0,model0,high,5\nx,model0,high,5\n")
    with pytest.raises(InputError, match="bad.csv:3"):
        read_source(str(bad), profile.models)
    with pytest.raises(InputError, match="no request"):
        lay_out("poisson", profile, 1e-3, 0.001, WorkloadConfig(), 0)
