"""The models on a device: loaded, measured alone, described."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from envs.profiles.profile import Profile
from serving.executors.executor import Executor
from serving.models.repository import check_memory, memory_of
from serving.models.served import ServedModel
from serving.models.tensors import split_bucket
from serving.profiling.calibrate import SoloRun, calibrated, machine_of, measure_solo
from traces.errors import InputError
from traces.machine import MachineInfo, ModelInfo

log = logging.getLogger("serving")


def known_buckets(profile: Profile, name: str) -> list[int]:
    """The buckets of a model that a profile knows."""
    found = [split_bucket(one) for one in profile.models]
    return sorted(int(bucket) for model, bucket in found if model == name and bucket)


class DeviceModels:
    """Loads models into an executor and measures them.

    A suffix is put behind a model's name in the executor, where another model of its name may be loaded.

    Args:
        executor: of the device.
        base: profile whose interference is taken over.
        batch_sizes: sizes that batches may have.
        memory_bytes: limit of what all models need; None: there is none.
        recorded: whether batches are recorded: a recording is refitted by times alone, so that each model is measured once.

    Attributes:
        described: the models that are, or were, loaded, by name.
        solo: their runs alone.
    """

    def __init__(
        self,
        executor: Executor,
        base: Profile,
        batch_sizes: Sequence[int],
        memory_bytes: int | None = None,
        recorded: bool = False,
    ) -> None:
        self.executor = executor
        self.batch_sizes = tuple(batch_sizes)
        self._base = base
        self._memory_bytes = memory_bytes
        self._recorded = recorded
        self.described: dict[str, ModelInfo] = {}
        self.solo: list[SoloRun] = []

    def load(self, models: Sequence[ServedModel], suffix: str = "") -> None:
        """Load a model, or its buckets.

        Raises:
            InputError: it does not fit the memory limit.
        """
        self.check_memory(models, beside=bool(suffix))
        for model in models:
            self.executor.load(replace(model, name=model.name + suffix))
            self.described[model.name] = ModelInfo(**model.describe())
        buckets = ", ".join(str(model.bucket) for model in models if model.bucket is not None)
        log.info("model %s is loaded from %s%s", models[0].model, models[0].source, buckets and f", buckets {buckets}")

    def check_memory(self, models: Sequence[ServedModel], beside: bool = False) -> None:
        """Refuse a model that does not fit beside the others, and beside the one of its name or in its place; as `load`."""
        name = models[0].model
        others = [other for other in self.executor.models.values() if beside or other.model != name]
        check_memory(others, models, self.batch_sizes[-1], self._memory_bytes)

    def fits(self, models: Sequence[ServedModel], beside: bool = False) -> bool:
        """Whether a model fits; arguments as of `check_memory`."""
        try:
            self.check_memory(models, beside)
        except InputError:
            return False
        return True

    def check_alone(self, models: Sequence[ServedModel]) -> None:
        """Refuse a model that does not even fit alone; errors as of `load`."""
        check_memory([], models, self.batch_sizes[-1], self._memory_bytes)

    def check_beside(self, models: Sequence[ServedModel], others: Sequence[Sequence[ServedModel]]) -> None:
        """Refuse a model that fits beside none of the others: while one is loaded, another must stay. Errors as of `load`."""
        largest = self.batch_sizes[-1]
        try:
            check_memory(min(others, key=lambda one: memory_of(one, largest)), models, largest, self._memory_bytes)
        except InputError as error:
            raise InputError(
                f"beside the smallest other model, and one must stay while another is loaded: {error}"
            ) from None

    def know(self, names: Sequence[str], given: Profile | None, suffix: str = "") -> Profile:
        """What is known of loaded models: what a profile says, else what is measured. Errors as of `measure`."""
        if given is None:
            return self.measure(names, suffix)
        if self._recorded and not {run.model for run in self.solo}.issuperset(names):
            self.measure(names, suffix)
        return given.select(list(names))

    def measure(self, names: Sequence[str], suffix: str = "") -> Profile:
        """Measure loaded models alone, and fit the base profile to that. Takes seconds.

        Raises:
            InputError: a model fails.
        """
        measured = measure_solo(self.executor, [n + suffix for n in names], self.batch_sizes, serving=bool(suffix))
        runs = [replace(run, model=run.model.removesuffix(suffix)) for run in measured]
        self.solo = [run for run in self.solo if run.model not in names] + runs
        profile = calibrated(self._base, self.info(names), runs)
        for name, solo_ms in zip(names, profile.solo_latency_ms):
            log.info("model %s takes %.2f ms alone", name, solo_ms)
        return profile

    def info(self, names: Sequence[str] | None = None) -> MachineInfo:
        """The description of this machine with some of the models; None: with all that are, or were, loaded."""
        described = [self.described[name] for name in names or self.described]
        return machine_of(self.executor, described, self.batch_sizes)
