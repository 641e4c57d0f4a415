"""Settings of the server, one typed dataclass: the same names in Python, YAML and flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agents.choose import CANDIDATES
from serving.api.config import ApiConfig
from serving.cluster.config import ClusterConfig
from serving.engine.config import EngineConfig
from serving.models.builtin.registry import DEFAULT_MODELS
from traces.errors import InputError
from traces.settings import check_types, size_in_bytes
from traces.workload import WorkloadConfig

# Settings that a door, which has no device, would take no notice of.
_OF_A_DEVICE = ("models", "policy", "device", "profile", "batch_sizes", "streams", "memory_limit")


@dataclass
class ServeConfig(ApiConfig, ClusterConfig, EngineConfig):
    """What to serve, by which policy, and where to answer.

    Attributes:
        models: names with commas between, or a list: built-in models, NAME=builtin:MODEL (one under another name), or folders
            and YAML files that list models with their shapes (serving.models.repository). Empty: the default set of
            built-in models.
        policy: a policy by name (fifo, edf, strait, ...; ppo is trained and ships), or a policy.safetensors; or
            auto: the one of `candidates` that does best in simulation on the models as measured.
        candidates: policies that --policy auto chooses from, beside Strait.
        compare_s: seconds between comparisons of the candidates on the requests of late, for --policy auto; 0: none.
        streams: batches that may be in flight side by side.
        device: auto, cpu, cuda, cuda:N, or sim:PROFILE[:SLOWNESS], a simulated device that takes a profile's time and no CPU.
        profile: "auto" measures the models on this machine for some seconds; else a profile by name, or a JSON file.
        batch_sizes: sizes to measure, ascending; for --profile auto. Empty: those of the shipped profile.
        logdir: folder for TensorBoard.
        record: folder to record arrivals and batches in; envs.fit and --replay read it. Models are measured alone at the start
            for it, whatever --profile says.
        timeline: file for a timeline (Chrome trace JSON: open in ui.perfetto.dev), written at the end.
        otel_endpoint: collector to which OpenTelemetry traces go, a span per request: the URL of its OTLP over HTTP, e.g.
            http://localhost:4318. Needs strait-rl[otel].
        otel_ratio: share of the requests without a trace context that are exported; others as their caller's says.
        replay: serve a recorded or made workload in place of a network, print what became of it, and exit: a workload
            file, a trace file, poisson, bursty, diurnal, gamma, azure_llm_2023, mooncake or twin:NAME.
        load: load of --replay as a share of the capacity, which is measured first; by default a file keeps its own arrivals.
        duration: seconds that --replay takes.
        seed: seed of --replay and of its inputs.
        high_fraction: share of high priority in made workloads.
        drain_timeout: seconds that a stopping server gives the requests inside.
        memory_limit: most that the weights of the models in memory and one largest batch of each may take, e.g. 2G; those that
            do not fit are loaded when a request asks for them, in place of those used least; none by default.
        explain: log what a trained policy thought of each candidate.
        log_level: debug, info, warning or error; debug logs every request.
        log_json: log one JSON object per line.

    Raises:
        InputError: a setting is out of range.
    """

    models: list[str] | str = field(default_factory=list)
    policy: str = "strait"
    candidates: tuple[str, ...] = CANDIDATES
    compare_s: float = 600.0
    streams: int = 4
    device: str = "auto"
    profile: str = "auto"
    batch_sizes: list[int] = field(default_factory=list)
    logdir: str | None = None
    record: str | None = None
    timeline: str | None = None
    otel_endpoint: str | None = None
    otel_ratio: float = 0.1
    replay: str | None = None
    load: float | None = None
    duration: float = 60.0
    seed: int = 0
    high_fraction: float = WorkloadConfig.high_fraction
    drain_timeout: float = 10.0
    memory_limit: str | None = None
    explain: bool = False
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        check_types(self, "--")
        self.log_level = self.log_level.lower()
        sizes = self.batch_sizes
        if sizes and (sizes != sorted(set(sizes)) or sizes[0] != 1):
            raise InputError(f"--batch_sizes: {sizes}; they must be ascending from 1, which a lone request needs")
        counts, times = (
            (
                "replicas",
                "streams",
                "queue_places",
                "max_body_bytes",
                "max_grpc_bytes",
                "max_per_client",
                "step_processes",
            ),
            ("body_timeout_s", "keepalive_s"),
        )
        self._require("at least 1", lambda value: value >= 1, *counts)
        above_0 = (
            "peer_silence_ms", "duration", "decision_budget_ms", "deadline_factor", "load", "high_weight", *times,
        )  # fmt: skip
        self._require("a number above 0", lambda value: value is None or 0 < value < math.inf, *above_0)
        self._require("at least 0", lambda value: value is None or 0 <= value < math.inf, "gpus_per_replica")
        at_least_0 = (
            "replica_number",
            "cpus_per_replica",
            "peer_retries",
            "drain_timeout",
            "close_timeout_s",
            "compare_s",
            "grace_ms",
            "deadline_floor_ms",
        )
        self._require("at least 0", lambda value: 0 <= value < math.inf, *at_least_0)
        ports = ("port", "grpc_port", "peer_port")
        self._require("from 0 to 65535", lambda value: value is None or 0 <= value <= 65535, *ports)
        # A server that has seen nothing quotes 99.7 % at most, and would never see anything if more were asked.
        self._require("from 0 to 0.99", lambda value: 0 <= value <= 0.99, "least_quote")
        shares = ("high_fraction", "violation_target", "otel_ratio")
        self._require("from 0 to 1", lambda value: 0 <= value <= 1, *shares)
        self._require("debug, info, warning or error", ("debug", "info", "warning", "error").__contains__, "log_level")
        self._require("none, deflate or gzip", ("none", "deflate", "gzip").__contains__, "grpc_compression")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls_cert and --tls_key go together: give both or neither")
        self.check_cluster()
        own = ["replay", "record", "timeline", "logdir"] if self.peers or self.cluster is not None else []
        # Those of --cluster are given to its replicas.
        own += ["peer_port", "otel_endpoint", *_OF_A_DEVICE] if self.peers else []
        for flag in own:
            if getattr(self, flag) != getattr(type(self), flag, []):  # its default; that of lists is in no class
                hint = "give it to the replicas, not to their door" if self.peers else "it does not go with --cluster"
                raise InputError(f"--{flag} is for a server with a device of its own; {hint}")
        self.memory_bytes  # noqa: B018 (refuses a malformed limit now, not at the first load)

    def _require(self, rule: str, holds: Callable[[Any], bool], *names: str) -> None:
        for name in names:
            if not holds(value := getattr(self, name)):
                raise InputError(f"--{name}: {value!r}; it must be {rule}")

    @property
    def model_sources(self) -> list[str]:
        """The words of `models`, one by one; by default those of a simulated device's profile, or the default set."""
        words = self.models.split(",") if isinstance(self.models, str) else self.models
        given = [word.strip() for word in words if word.strip()]
        if given or not self.device.startswith("sim"):
            return given or list(DEFAULT_MODELS)
        from serving.executors.sim import simulated_profile  # here, so that --help does not wait for torch

        simulated = simulated_profile(self.device)
        return [f"{name}=builtin:empty" for name in simulated[0].models] if simulated else list(DEFAULT_MODELS)

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes; None for none."""
        return size_in_bytes("--memory_limit", self.memory_limit)
