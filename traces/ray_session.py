"""A session on a Ray cluster. Nothing else imports Ray, which the extra `ray` installs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traces.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
# Read by Ray when it is imported. The third is what it will do anyway, and warns of.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OBJECT_STORE_BYTES = 100 * 2**20  # only settings and results go through it


def import_ray() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("--cluster: the package ray is not here; install strait-rl[ray]") from None


def check_cluster(cluster: str) -> None:
    """Refuse what is no cluster.

    Raises:
        InputError: it is not local, auto or ray://HOST:PORT.
    """
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if cluster not in ("local", "auto") and not (cluster.startswith("ray://") and host and port.isdecimal()):
        raise InputError(f"--cluster: {cluster!r}; it must be local, auto or ray://HOST:PORT")


@contextmanager
def ray_session(cluster: str, cpus: int, show_output: bool = True) -> Iterator[Any]:
    """Connect to a cluster, and disconnect at the end; actors and tasks of this process end with it.

    Ray's threads print at any time; whatever is printed meanwhile goes to standard error.

    Args:
        cluster: "local" starts one on this machine for as long as the session lasts; "auto" is the one that this machine
            belongs to, or that RAY_ADDRESS names; ray://HOST:PORT is one by its client port.
        cpus: how many a local cluster has.
        show_output: whether what the workers print is written to standard error.

    Yields:
        The package `ray`, connected.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """
    check_cluster(cluster)
    ray = import_ray()
    options: dict[str, Any] = {"log_to_driver": show_output}
    if cluster == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        # An address that the environment names would be joined instead.
        options["address"] = "local"
    else:
        options["address"] = cluster
    with stdout_to_stderr():
        try:
            with _sources_for_workers():
                ray.init(**options)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            # A client's error ends with the server's, in a traceback; others say first what is wrong.
            line = str(error).strip().splitlines()[-1 if cluster.startswith("ray://") else 0]
            raise InputError(f"--cluster {cluster}: {line}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def node_address() -> str:
    """Address of this machine as other machines of the cluster see it; for actors and tasks."""
    return str(import_ray().util.get_node_ip_address())


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what this process and its children write to standard output to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _sources_for_workers() -> Iterator[None]:
    """Let the workers of a cluster that starts now import from where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
