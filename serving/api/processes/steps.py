"""The user's code before and after a model: tokenizers, decoders of pictures, names of classes.

It runs on the host, in processes of its own, for all items of a call at once. To clients, the model takes what the code before
it takes, and answers what the code after it does. The scheduler's deadline is what is left of the client's: less the time that
the code before took, and what the code after will take by what it took lately.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from envs.scheduling.state import LOW
from serving.api.infer_call import InferCall, left_out, same_size
from serving.api.model_view import ModelView, view_model
from serving.api.plane import BIG
from serving.api.refusal import Kind, Refusal
from serving.models.processes.pool import Named, WorkerProcesses, pack_tensors, unpack_tensors
from serving.models.served import HostStep, ServedModel
from serving.models.tensors import TensorSpec, bf16_bits
from traces.errors import InputError

log = logging.getLogger(__name__)

PROCESS = "serving.api.processes.step_process"
LONGEST_S = 30.0  # of a call, after which its process is ended
SIZE = 8  # of made-up examples, where it varies
# Weight of the newest time in mean and spread, as TCP has it for round trips (RFC 6298).
MEAN_SHARE, SPREAD_SHARE = 0.125, 0.25
FADING = 0.7


def job_of(step: HostStep, given: Named, outputs: Sequence[str] = ()) -> tuple[dict[str, Any], Any]:
    """What a process is told: names of the outputs are given where the code need not name them."""
    heads, data = pack_tensors(given)
    return {"function": step.function, "folder": step.folder, "tensors": heads, "outputs": list(outputs)}, data


class _Time:
    """How long a step takes for calls of about one size, lately."""

    def __init__(self, took_ms: float) -> None:
        self._mean_ms, self._spread_ms = took_ms, took_ms / 2

    def add(self, took_ms: float) -> None:
        self._spread_ms += SPREAD_SHARE * (abs(took_ms - self._mean_ms) - self._spread_ms)
        self._mean_ms += MEAN_SHARE * (took_ms - self._mean_ms)

    def doubt(self) -> None:
        self._mean_ms *= FADING
        self._spread_ms *= FADING

    @property
    def most_ms(self) -> float:
        """What a call hardly exceeds."""
        return self._mean_ms + 2.0 * self._spread_ms


class StepRunner:
    """Runs one step of a model, and knows how long that takes."""

    def __init__(self, step: HostStep, which: str, model: str, pool: WorkerProcesses) -> None:
        self.step = step
        self.where = f"{which} of model {model!r}"
        self._pool = pool
        # By the number of items, in powers of two: what more items cost is not known before it is seen.
        self._times = {1: _Time(step.alone_ms)}

    def expected_ms(self, n: int) -> float:
        """Time that n items hardly exceed, behind those that wait."""
        known = max((size for size in self._times if size <= n.bit_length()), default=1)
        waiting = max(self._pool.unfinished + 1 - self._pool.count, 0) / self._pool.count
        return (1.0 + waiting) * self._times[known].most_ms

    def doubt(self) -> None:
        """What was learned fades, since nothing is learned where nothing is tried."""
        for one in self._times.values():
            one.doubt()

    async def run(self, given: Named, n: int, until_ms: float, outputs: Sequence[str] = ()) -> Named:
        """Run it on n items.

        Args:
            given: tensors. n: items. until_ms: time from now at which nobody waits any more.
            outputs: names, where the code need not name them.

        Raises:
            Refusal: the code says that the input is bad, fails, or takes too long.
        """
        loop = asyncio.get_running_loop()
        job = partial(job_of, self.step, given, outputs)
        big = sum(array.nbytes for _, array in given.values()) >= BIG
        try:
            async with asyncio.timeout(max(until_ms, 0.0) / 1e3):
                told = await loop.run_in_executor(None, job) if big else job()
                result, data = await self._pool.run(*told, LONGEST_S)
        except TimeoutError:
            raise Refusal(Kind.UNREACHABLE, f"{self.where} took too long for the deadline") from None
        except RuntimeError as error:
            raise Refusal(Kind.FAULT, f"{self.where}: {error}") from None
        if "refused" in result:
            raise Refusal(Kind.BAD_INPUT, f"{self.where}: {result['refused']}")
        if "error" in result:
            log.warning("%s failed: %s", self.where, result["error"])
            raise Refusal(Kind.FAULT, f"{self.where}: {result['error']}")
        size, took_ms = n.bit_length(), float(result["took_ms"])
        self._times.setdefault(size, _Time(took_ms)).add(took_ms)
        if data.nbytes < BIG:
            return unpack_tensors(result["tensors"], data)
        return await loop.run_in_executor(None, unpack_tensors, result["tensors"], data)


class SteppedModel:
    """A model with a step before it, after it, or both.

    Args:
        inner: the model as it is without.
        model: with the steps; a bucket of it.
        count: processes for it. They are its own: its modules clash with nobody's, and nobody waits for its calls.

    Attributes:
        view: the model as clients see it.
        inner: see above.
        steps: the steps as they were loaded.
    """

    def __init__(self, inner: ModelView, model: ServedModel, count: int) -> None:
        self.inner = inner
        self.steps = before, after = model.preprocess, model.postprocess
        self._pool = pool = WorkerProcesses(PROCESS, count, "code before and after models")
        for step in self.steps:
            if step is not None:  # its first requests need not wait for its import
                pool.warm_up(job_of(step, {})[0])
        self._before = StepRunner(before, "preprocess", inner.name, pool) if before else None
        self._after = StepRunner(after, "postprocess", inner.name, pool) if after else None
        view = inner if after is None else _with(inner, outputs=after.tensors)
        if before is not None:  # its size is known only behind the step
            view = replace(view, inputs=before.tensors, largest=None, least=1, buckets=())
        self.view = view

    def close(self) -> None:
        """End its processes."""
        self._pool.close()

    def expected_ms(self, n: int) -> float:
        """Time that both steps hardly exceed for n items."""
        return sum(one.expected_ms(n) for one in (self._before, self._after) if one)

    def smallest(self, size: int | None) -> ModelView:
        """The model as it is scheduled at the least: its size is known only behind the step before it."""
        return self.inner.buckets[0][1] if self._before and self.inner.buckets else self.inner.bucket(size)

    def doubt(self) -> None:
        """A request was refused for the time that its steps would take: that fades, since nothing is learned without trying."""
        for one in (self._before, self._after):
            if one:
                one.doubt()

    def after_ms(self, n: int) -> float:
        """The same of the step after the model."""
        return self._after.expected_ms(n) if self._after else 0.0

    async def before(
        self, values: tuple[np.ndarray, ...], size: int | None, until_ms: float
    ) -> tuple[tuple[np.ndarray, ...], int | None]:
        """The model's inputs from the client's (n, ...), and the size that varies; `until_ms` is of `StepRunner.run`.

        Raises:
            Refusal: the code refuses them, fails, takes too long, or returns what the model does not take.
        """
        if self._before is None:
            return values, size
        runner, n = self._before, len(values[0])
        given = {spec.name: (spec.datatype, array) for spec, array in zip(runner.step.tensors, values)}
        made = await runner.run(given, n, until_ms)
        try:
            return fitted(made, n, self.inner)
        except InputError as error:
            raise Refusal(Kind.FAULT, f"{runner.where}: {error}") from None

    async def after(self, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """What clients get, from all outputs of the model (n, ...). Raises Refusal: the code fails.

        A late answer is an answer, so that it runs whatever the deadline.
        """
        if self._after is None:
            return outputs
        runner, n = self._after, len(outputs[0])
        given = {spec.name: (spec.datatype, array) for spec, array in zip(self.inner.outputs, outputs)}
        made = await runner.run(given, n, 1e3 * LONGEST_S, [spec.name for spec in runner.step.tensors])
        try:
            return tuple(_fits(spec, made[spec.name], n) for spec in runner.step.tensors)
        except InputError as error:
            raise Refusal(Kind.FAULT, f"{runner.where}: {error}") from None

    def whole(self, call: InferCall, values: tuple[np.ndarray, ...], size: int | None) -> InferCall:
        """The call that the model itself gets: for those outputs that the client asked for, or that the step after it needs."""
        outputs = call.outputs
        if self._after is not None:
            outputs = tuple(outputs[0]._replace(place=place) for place in range(len(self.inner.outputs)))
        return InferCall(call.id, values, size, call.parameters, outputs)

    def chosen(self, call: InferCall, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Of what the step after the model returned, the outputs that the client wants."""
        return outputs if self._after is None else tuple(outputs[one.place] for one in call.outputs)


def _with(view: ModelView, outputs: tuple[TensorSpec, ...]) -> ModelView:
    buckets = tuple((size, replace(one, outputs=outputs)) for size, one in view.buckets)
    return replace(view, outputs=outputs, buckets=buckets)


def _fits(spec: TensorSpec, found: tuple[str, np.ndarray], n: int) -> np.ndarray:
    """An array as the tensor has it. Raises InputError: another type or shape."""
    datatype, array = found
    if spec.datatype == "BF16" and datatype == "FP32":
        array = bf16_bits(array)
    if (
        array.ndim < 1
        or len(array) != n
        or "BYTES" in {datatype, spec.datatype} != {"BYTES"}
        or not spec.takes(array[0, ...])
    ):
        raise InputError(
            f"it returns {spec.name!r} as {datatype} {list(array.shape)}; expected {spec.datatype} {[n, *spec.shape]}"
        )
    return array.astype(spec.dtype, copy=False)


def fitted(made: Named, n: int, view: ModelView, made_up: bool = False) -> tuple[tuple[np.ndarray, ...], int | None]:
    """The inputs of n items of a model, and the size that varies.

    Args:
        made: what the code before the model returned.
        n: items.
        view: the model.
        made_up: whether of made-up items, whose sizes and numbers may be any.

    Raises:
        InputError: what was made does not fit the model.
    """
    names = [spec.name for spec in view.inputs]
    if list(made) == ["output"] and len(names) == 1:  # a lone array needs no name
        made = {names[0]: made["output"]}
    if unknown := [name for name in made if name not in names]:
        raise InputError(f"it returns {unknown[0]!r}; the model takes {', '.join(names)}")
    size, found = None, {}
    for spec in view.inputs:
        if spec.name in made:
            array = found[spec.name] = _fits(spec, made[spec.name], n)
            if not made_up:
                size = same_size(spec, array.shape[1:], size, view) if spec.varies else size
                view.check_values(spec, array)
    if made_up:
        size = SIZE
    return tuple(found[spec.name] if spec.name in found else left_out(spec, (n,), size) for spec in view.inputs), size


def check_steps(models: Sequence[ServedModel]) -> tuple[ServedModel, ...]:
    """Try a model's steps on made-up items, and note how long an item takes. Takes a second or more, so call it off the loop.

    Args:
        models: the model, or its buckets.

    Raises:
        InputError: the code cannot be imported, fails, or does not fit the model.
    """
    model, before, after = models[0], models[0].preprocess, models[0].postprocess
    if before is None and after is None:
        return tuple(models)
    view = view_model(models, [0.0] * len(models), LOW)
    pool = WorkerProcesses(PROCESS, 1, "code before and after models")
    try:
        if before is not None:
            check = partial(fitted, n=1, view=view, made_up=True)
            before = _tried(before, f"preprocess of model {model.model!r}", before.tensors, (), pool, check)
        if after is not None:
            specs = after.tensors
            names = [spec.name for spec in specs]
            where = f"postprocess of model {model.model!r}"
            fit_all = lambda made: [_fits(spec, made[spec.name], 1) for spec in specs]  # noqa: E731
            after = _tried(after, where, model.outputs, names, pool, fit_all)
    finally:
        pool.close()
    return tuple(replace(one, preprocess=before, postprocess=after) for one in models)


def _tried(
    step: HostStep,
    where: str,
    specs: Sequence[TensorSpec],
    outputs: Sequence[str],
    pool: WorkerProcesses,
    check: Callable[[Named], object],
) -> HostStep:
    """A step that was tried on a made-up item of tensors, with the time that it took."""
    rng = np.random.default_rng(0)
    given = {spec.name: (spec.datatype, spec.sized(SIZE).example(rng)[None]) for spec in specs}
    try:
        result, data = pool.run_now(*job_of(step, given, outputs), LONGEST_S)
    except RuntimeError as error:
        raise InputError(f"{where}: {error}") from None
    if "error" in result:
        raise InputError(f"{where}: {result['error']}")
    if "refused" in result:
        log.warning("%s refuses a made-up item (%s), so it could not be checked", where, result["refused"])
        return step
    try:
        check(unpack_tensors(result["tensors"], data))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return replace(step, alone_ms=float(result["took_ms"]))
