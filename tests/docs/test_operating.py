"""The files for operators: what they start and probe is what the server listens to and answers."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from serving.api.http import OPEN_PATHS
from serving.config import ServeConfig
from traces.command import parse_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    """The objects of the manifest by kind."""
    return {part["kind"]: part for part in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return manifest["Deployment"]["spec"]["template"]["spec"]


def settings_of(container: dict[str, Any]) -> ServeConfig:
    return parse_settings(ServeConfig, container["args"])


def test_the_containers_ports_are_those_that_the_server_listens_on(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    config = settings_of(container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.grpc and ports == {"http": config.port, "grpc": config.grpc_port}
    assert config.host == "0.0.0.0"


def test_probes_ask_paths_that_need_no_token(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert all(probe["port"] in ports and probe["path"] in OPEN_PATHS for probe in probes.values())
    # A server that drains is not ready, and must not be restarted for it.
    assert probes["readiness"]["path"].endswith("/ready") and probes["liveness"]["path"].endswith("/live")


def test_a_pod_has_time_to_leave_the_service_and_to_drain(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    config = settings_of(container)
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    needed = float(seconds) + config.drain_timeout + config.close_timeout_s
    readiness = container["readinessProbe"]["periodSeconds"]
    assert command == "sleep" and float(seconds) > readiness and pod["terminationGracePeriodSeconds"] >= needed


def test_what_the_server_reads_is_mounted(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    config = settings_of(container)
    mounts = {PurePosixPath(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    for path in (config.token_file, *config.model_sources):
        assert path is not None and PurePosixPath(path).parent in mounts
    assert PurePosixPath("/tmp") in mounts and container["securityContext"]["readOnlyRootFilesystem"]


def test_the_service_leads_to_the_pods(manifest: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    service, template = manifest["Service"]["spec"], manifest["Deployment"]["spec"]["template"]
    assert service["selector"] == template["metadata"]["labels"]
    assert service["selector"] == manifest["Deployment"]["spec"]["selector"]["matchLabels"]
    named = {port["name"] for port in pod["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == named


def test_the_unit_of_systemd_starts_the_server_and_lets_it_drain() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(EXAMPLES / "strait.service")
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert PurePosixPath(program).name in SCRIPTS
    config = parse_settings(ServeConfig, words)
    assert float(service["TimeoutStopSec"]) >= config.drain_timeout + config.close_timeout_s
    assert config.token_file is not None and service["LoadCredential"].split(":")[0] == Path(config.token_file).name


def test_the_images_entry_point_and_ports_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    sources = set(re.findall(r"^FROM (\w+) AS", text, re.MULTILINE)) | set(re.findall(r"--from=(\w+)", text))
    assert {"cpu", "cuda"} <= stages and sources <= stages
    entry = re.search(r"^ENTRYPOINT (\[.+\])$", text, re.MULTILINE)
    exposed = re.search(r"^EXPOSE (.+)$", text, re.MULTILINE)
    # The words of `docker run` take the place of a CMD: it must hold nothing that they need.
    assert entry and exposed and not re.search("^CMD", text, re.MULTILINE)
    program, *words = yaml.safe_load(entry[1])
    assert program in SCRIPTS
    operating = (ROOT / "docs/how-to/operate.md").read_text()
    for run in re.findall(r"^docker run .* strait:\w+ (.*)$", operating, re.MULTILINE):
        assert parse_settings(ServeConfig, [*words, *shlex.split(run)]).host == "0.0.0.0"
    config = parse_settings(ServeConfig, words)
    assert exposed[1].split() == [str(config.port), str(config.grpc_port)] and config.host == "0.0.0.0"
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE):
        assert (ROOT / copied).exists() and copied not in ignored
