"""A door whose replicas run on a Ray cluster: ``serve.py --cluster``."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from dataclasses import replace

from serving.api.listen import check_addresses, tls_context
from serving.cluster.remote_plane import RemotePlane
from serving.cluster.scaling import Scaler, Scaling
from serving.config import ServeConfig
from serving.door import answer, open_plane
from serving.models.repository import read_entries
from serving.ray.fleet import Fleet, Resources
from serving.reload import resolve_policy
from serving.signals import Signals
from traces.ray_session import ray_session
from traces.settings import size_in_bytes

log = logging.getLogger("serving")

SCALE_S = 2.0  # between changes of the number of replicas


async def run_on_ray(config: ServeConfig) -> None:
    """Start replicas, and answer clients until the process is stopped; the replicas end with it.

    Raises:
        InputError: a setting is wrong, an address is taken, Ray is not installed or the cluster cannot be reached.
    """
    assert config.cluster is not None
    config.read_token()
    tls = tls_context(config)
    check_addresses(config)
    read_entries(config.model_sources)
    resolve_policy(config)  # what is wrong here would be wrong in each replica
    most = config.most_replicas or config.replicas
    cpus = max(math.ceil(most * config.cpus_per_replica), 1)
    with ray_session(config.cluster, cpus, show_output=not config.log_json) as ray:
        signals = Signals()
        # Only this door may send requests to its replicas, whatever network they are in.
        peer_token = config.token or secrets.token_urlsafe(32)
        plane = open_plane(config, [None] * most, peer_token)
        resources = resources_of(config, float(ray.cluster_resources().get("GPU", 0.0)))
        log.info("%d replicas on Ray, each with %s", config.replicas, resources)
        fleet = Fleet(ray, replica_config(config, peer_token), resources, lambda place, at: plane.links[place].move(at))
        scaling = None
        try:
            fleet.resize(config.replicas)
            if most > config.replicas:
                scaling = asyncio.ensure_future(_scale(config, plane, fleet))
            await answer(plane, tls, signals.stopping, _some_replica(plane, fleet), config.drain_timeout)
        finally:
            if scaling is not None:
                scaling.cancel()
            await plane.close()
            await fleet.close()


def resources_of(config: ServeConfig, cluster_gpus: float) -> Resources:
    """What each replica needs.

    Args:
        config: settings.
        cluster_gpus: accelerators of the cluster as it is.
    """
    gpus = config.gpus_per_replica
    if gpus is None:
        cuda = config.device.startswith("cuda") or (config.device == "auto" and cluster_gpus > 0)
        gpus = 1.0 if cuda else 0.0
    memory = size_in_bytes("--memory_per_replica", config.memory_per_replica) or 0
    return Resources(config.cpus_per_replica, gpus, memory)


def replica_config(config: ServeConfig, token: str) -> ServeConfig:
    """Settings of a replica: those of the door, but it listens to doors only with `token`, on free ports.

    Its TLS is that of `peer_ca`, for which certificate and key must be on each machine.
    """
    if config.peer_ca is None:
        config = replace(config, tls_cert=None, tls_key=None)
    return replace(config, cluster=None, port=0, grpc=False, peer_port=0, token=token)


async def _scale(config: ServeConfig, plane: RemotePlane, fleet: Fleet) -> None:
    """Keep as many replicas as the quotes of the calls want."""
    assert config.most_replicas is not None
    loop = asyncio.get_running_loop()
    scaler = Scaler(Scaling(config.replicas, config.most_replicas, config.violation_target), loop.time())
    plane.on_quote = scaler.add
    while True:
        await asyncio.sleep(SCALE_S)
        up = sum(link.accepting for link in plane.links)
        wanted = scaler.wanted(loop.time(), fleet.size, up)
        if wanted != fleet.size:
            log.info("%d replicas in place of %d, by the violations that quotes foretell", wanted, fleet.size)
            fleet.resize(wanted)


async def _some_replica(plane: RemotePlane, fleet: Fleet) -> None:
    """Wait for a replica, or raise why there is none."""
    came = asyncio.ensure_future(plane.some_replica())
    await asyncio.wait({came, fleet.failed}, return_when=asyncio.FIRST_COMPLETED)
    if not came.done():
        came.cancel()
        await fleet.failed
