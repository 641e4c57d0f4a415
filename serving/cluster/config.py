"""Settings of replicas and doors."""

from __future__ import annotations

from dataclasses import dataclass, field

from traces.errors import InputError
from traces.ray_session import check_cluster
from traces.settings import size_in_bytes


@dataclass
class ClusterConfig:
    """Where replicas are, and how a door speaks to them.

    Attributes:
        peer_port: port on which doors may send requests, for a replica of a cluster; 0 takes a free one, None takes none.
        peers: HOST:PORT of replicas; this process then is a door, which listens and serves nothing itself.
        router: how a door chooses a replica: quote, most_slack, power_of_two, join_shortest_queue, round_robin or random.
        peer_retries: how often a request is sent again whose replica was lost.
        peer_silence_ms: a replica that says nothing for so long is lost.
        peer_ca: certificates (PEM) that vouch for those of the replicas; a door speaks TLS to them when it is given.
        cluster: start the replicas on Ray, and be their door: local (on this machine), auto (the cluster that this machine
            belongs to, or that RAY_ADDRESS names), or ray://HOST:PORT. Needs strait-rl[ray].
        replicas: how many, for --cluster, or beside --replica_number.
        replica_number: of this replica, from 0. Of models that do not all fit --memory_limit, replicas begin with different
            ones, so that together they hold all; doors send a request where its model is. With --cluster, each gets its own.
        most_replicas: with --cluster, start up to so many while quotes foretell violations, and give them up later; by
            default their number does not change.
        violation_target: share of violations that quotes may foretell before more are started.
        gpus_per_replica: accelerators of each, or a share of one; by default 1, where the device is cuda, or auto and the
            cluster has any.
        cpus_per_replica: cores of each.
        memory_per_replica: memory of the machine that each needs, e.g. 4G; by default it does not matter.
    """

    peer_port: int | None = None
    peers: list[str] = field(default_factory=list)
    router: str = "quote"
    peer_retries: int = 2
    peer_silence_ms: float = 400.0
    peer_ca: str | None = None
    cluster: str | None = None
    replicas: int = 1
    replica_number: int = 0
    most_replicas: int | None = None
    violation_target: float = 0.02
    gpus_per_replica: float | None = None
    cpus_per_replica: float = 1.0
    memory_per_replica: str | None = None

    def check_cluster(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            InputError: with their flags.
        """
        size_in_bytes("--memory_per_replica", self.memory_per_replica)
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise InputError(f"--most_replicas: {self.most_replicas}; it must be at least --replicas ({self.replicas})")
        if self.cluster is None:
            return
        check_cluster(self.cluster)
        if self.peers or self.peer_port is not None:
            raise InputError("--cluster starts its own replicas; it does not go with --peers or --peer_port")
