"""The manifest for KubeRay fits itself and this version of the project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import ServeConfig
from serving.ray.run import resources_of
from traces.command import parse_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kinds() -> dict[str, Any]:
    text = (ROOT / "docs" / "examples" / "kuberay.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def containers(kinds: dict[str, Any]) -> dict[str, Any]:
    cluster, door = kinds["RayCluster"]["spec"], kinds["Deployment"]["spec"]
    templates = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"], door["template"]]
    return {one["name"]: one for template in templates for one in template["spec"]["containers"]}


def settings(kinds: dict[str, Any]) -> ServeConfig:
    return parse_settings(ServeConfig, containers(kinds)["door"]["args"])


def test_all_pods_have_one_image_with_the_ray_that_the_project_is_tested_with(kinds: dict[str, Any]) -> None:
    assert kinds.keys() == {"RayCluster", "Deployment", "Service"}
    assert len({one["image"] for one in containers(kinds).values()}) == 1
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and kinds["RayCluster"]["spec"]["rayVersion"] == pinned[1]
    page = (ROOT / "docs" / "how-to" / "many-accelerators.md").read_text()
    assert f"FROM rayproject/ray:{pinned[1]}-py311-gpu" in page


def test_the_door_finds_the_cluster_and_is_found(kinds: dict[str, Any]) -> None:
    config, known = settings(kinds), containers(kinds)
    client = next(port["containerPort"] for port in known["head"]["ports"] if port["name"] == "client")
    assert config.cluster == f"ray://{kinds['RayCluster']['metadata']['name']}-head-svc:{client}"
    ports = {port["name"]: port["containerPort"] for port in known["door"]["ports"]}
    assert ports == {"http": config.port, "grpc": config.grpc_port} and config.grpc and config.host == "0.0.0.0"
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} == ports.keys()
    door = kinds["Deployment"]["spec"]
    labels = door["template"]["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == labels == door["selector"]["matchLabels"]
    assert door["replicas"] == 1


def test_a_replica_fits_a_worker_and_there_are_workers_for_all(kinds: dict[str, Any]) -> None:
    config = settings(kinds)
    workers = kinds["RayCluster"]["spec"]["workerGroupSpecs"][0]
    limits = containers(kinds)["worker"]["resources"]["limits"]
    needs = resources_of(config, 0.0)
    assert needs.gpus == float(limits["nvidia.com/gpu"]) == 1.0
    assert needs.cpus <= float(limits["cpu"])
    # Ray offers about 70 % of a machine's memory to actors and tasks.
    assert needs.memory_bytes <= 0.7 * int(limits["memory"].removesuffix("Gi")) * 2**30
    assert (config.replicas, config.most_replicas) == (workers["minReplicas"], workers["maxReplicas"])


def test_every_pod_shows_the_token_of_the_cluster_and_none_is_written_here(kinds: dict[str, Any]) -> None:
    for one in containers(kinds).values():
        env = {variable["name"]: variable for variable in one["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "strait", "key": "ray"}
    assert settings(kinds).token == "$(CLIENT_TOKEN)"  # Kubernetes fills it in
