"""The scheduling state: what a scheduler knows, in simulation and live alike.

A batch of N independent schedulers is one ``SchedState``: a NamedTuple of NumPy arrays with a leading axis N. The live
engine is the batch of one. Structured (record) arrays keep the fields of one thing together, and keep the number of
arrays that cross from Python into compiled code small, which is what a call costs.

Axes: N schedulers, 2 priorities (HIGH, LOW), M models, B batch sizes, Q queue places, K streams, F features. Compiled code
indexes them with ``env``, ``priority``, ``model``, ``size`` (an index, not a number of requests), ``stream``; and the rows of
``Tables`` with ``group``. Times are milliseconds on the clock of the episode (virtual) or of the engine (real).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from traces.workload import HIGH, HIGH_WEIGHT, LOW, PRIORITIES

__all__ = ["HIGH", "LOW", "PRIORITIES", "SchedState", "Tables", "make_state", "n_actions", "records"]

# Outcomes of a request. Every request ends in exactly one of those above WAITING.
WAITING, MET, LATE, DROPPED, FAILED, CANCELLED = range(6)
OUTCOMES = ("waiting", "met", "late", "dropped", "failed", "cancelled")

# Demand of a batch on the device: compute, memory bandwidth and cache, each as a fraction of the whole.
COMPUTE, MEMORY, CACHE = range(3)
N_DEMAND = 3
N_FEATURES = 10  # features of the online interference predictor, see envs.scheduling.predictor
N_SCRATCH = 21  # rows of the finish-time integration's scratch, see envs.scheduling.predictor
QUANTILES = (0.5, 0.9, 0.95)  # levels of the calibrated finish-time quantiles
P50, P90, P95 = range(3)  # their places
GRACE_MS = 2000.0  # how long after its deadline a queued request is dropped whatever the policy says (live engine)

scheduler_t = np.dtype(
    [
        ("now", "f8"),  # time of the last event seen
        ("wake", "f8"),  # deferral timer; inf when none is set
        ("high_weight", "f8"),  # what a high-priority request counts, a low-priority one being 1; outlives ``clear``
        ("rate_high", "f8"),  # offered high-priority work, ms of solo execution per ms (exponential average)
        ("rate_low", "f8"),
        ("rate_time", "f8"),  # time of the last update of both
        ("met_high", "f8"),  # high-priority requests met per ms (exponential average)
        ("met_low", "f8"),
        ("met_time", "f8"),
        ("next_batch", "i8"),  # id of the next batch
        ("n_free", "i4"),  # free streams
        ("n_queued", "i4"),  # requests in all queues
        ("n_ended", "i4"),  # requests in `ended`, waiting to be read by the simulator or the engine
        ("deferred", "i4"),  # 1 after a deferral until the next event
        ("forecast_valid", "i4"),  # 1 while stream.finish holds the present forecast
        ("next_stream", "i4"),  # free stream that the next dispatch takes, on the least busy core; -1 when none is free
        ("log_slowdown", "f8"),  # log of how much longer executions take at present than profiled, whatever runs beside
        ("parallelism", "f8"),  # see envs.scheduling.forecast; 0 where it is to be worked out again
        ("cached_model", "i4"),  # candidate whose finish times the scratch holds; -1 for none
        ("cached_size", "i4"),
        ("cached_at", "f8"),  # when they were predicted
        ("cached_wait", "f8"),  # time until that candidate's execution begins
    ],
    align=True,
)
queue_t = np.dtype([("head", "i4"), ("length", "i4")], align=True)
entry_t = np.dtype([("id", "i8"), ("arrival", "f8"), ("deadline", "f8")], align=True)
stream_t = np.dtype(
    [
        ("batch", "i8"),  # id of the batch in flight
        ("start", "f8"),  # when it was dispatched
        ("wait", "f8"),  # predicted time until its execution begins (copies before it, its own copy)
        ("left", "f8"),  # predicted execution left, in ms of solo execution
        ("post", "f8"),  # predicted copy back
        ("solo", "f8"),  # execution time alone on the device
        ("predicted", "f8"),  # predicted time from dispatch to finish, made at dispatch
        ("deadline", "f8"),  # earliest deadline in the batch, of either priority
        ("finish", "f8"),  # predicted finish time if nothing more is dispatched (envs.scheduling.forecast)
        ("work", "f8"),  # execution done so far as the predictor sees it, ms of solo execution
        ("shared_work", "f8"),  # the same, each ms counted as often as there were batches on the core
        ("join_cost", "f8"),  # solo ms lost to joining and being joined on its core so far; below 0: gained
        ("log_slowdown", "f8"),  # the scheduler's when it was dispatched
        ("core_log_slowdown", "f8"),  # of the core with this index: how much slower it is than the device, as a log
        ("core_slowdown", "f8"),  # of that core: exp(scheduler.log_slowdown + core_log_slowdown)
        ("busy", "i4"),
        ("model", "i4"),
        ("priority", "i4"),  # HIGH if any of its requests is
        ("size_index", "i4"),  # of the batch size
        ("n", "i4"),  # requests in the batch
        ("n_high", "i4"),  # those of high priority among them, which are its first members
        ("n_corunners", "i4"),  # batches in flight when it was dispatched, itself not counted
        ("core", "i4"),  # that the stream is pinned to
    ],
    align=True,
)
ended_t = np.dtype(
    [("id", "i8"), ("arrival", "f8"), ("outcome", "i4"), ("priority", "i4"), ("model", "i4"), ("batch", "i4")],
    align=True,
)
device_t = np.dtype(
    [
        ("cores", "f8"),  # stream k is pinned to core k % cores, whose batches are time-sliced; 0: each has its own
        ("max_batches_per_core", "f8"),  # batches that may share a core; 0: no limit
        ("mixed_batches", "f8"),  # 1: a batch of high priority may take low priority of its model along
        ("time_slice_ms", "f8"),  # of the batches on a shared core; 0: they share it evenly
        ("dispatch_ms", "f8"),  # cost of a dispatch before its copy begins
        ("unit_ms", "f8"),  # mean solo latency: the time scale that makes observations free of units
        ("forgetting", "f8"),  # factor of the online predictor; 0: it does not learn
        ("quantile_rate", "f8"),  # learning rate of the calibrated quantiles
        ("log_slowdown_rate", "f8"),  # learning rate of the device's log slowdown
    ],
    align=True,
)


class SchedState(NamedTuple):
    """What the scheduler knows. Filled by the simulator or by the live engine, read by policies.

    Attributes:
        scheduler: (N,) records, scalars of each scheduler.
        queue: (N, 2, M) records, one FIFO ring per priority and model.
        entry: (N, 2, M, Q) records, the places of the rings.
        stream: (N, K) records, the batch in flight on each stream.
        member: (N, K, S) records, the requests of that batch; S is the largest batch size.
        ended: (N, E) records, requests that ended and were not yet read.
        count: (N, 2, 6) int64, requests by priority and outcome.
        weight: (N, F) weights of the slowdown predictor.
        cov: (N, F, F) inverse-covariance state of its recursive least squares.
        bias: (N, M, B) slowdown bias of each model and batch size.
        n_learned: (N, M, B) batches that the bias was learned from.
        feature_sum: (N, K, F) sum of the features of the batch in flight, weighted as ``shared_work`` is.
        scale: (N, K + 1, len(QUANTILES)) calibrated quantiles of actual over predicted time, by number of co-runners.
        n_calibrated: (N, K + 1) batches that each of them was learned from.
        scratch: (N, N_SCRATCH, K + 2) of the finish-time integration: columns for batches, the last for a feature vector;
            its last rows have a column for each core.
    """

    scheduler: np.ndarray
    queue: np.ndarray
    entry: np.ndarray
    stream: np.ndarray
    member: np.ndarray
    ended: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    weight: np.ndarray
    cov: np.ndarray
    bias: np.ndarray
    n_learned: np.ndarray
    feature_sum: np.ndarray
    scale: np.ndarray
    n_calibrated: np.ndarray
    scratch: np.ndarray


class Tables(NamedTuple):
    """What the scheduler was told about models and device: the profile as arrays, and its tunable constants.

    The leading axis G is 1 (all schedulers share one profile) or N. Times in ms.

    Attributes:
        size: (B,) int32, batch sizes, ascending.
        solo: (G, M, B) execution time alone on the device.
        h2d: (G, M, B) copy to the device.
        d2h: (G, M, B) copy back.
        demand: (G, M, B, N_DEMAND) fractions of the device.
        share: (G, M, B) share of the solo execution in which the device itself is the bottleneck: 1 on a CPU, less on a GPU
            where the host that launches kernels is the slower of the two.
        device: (G,) records.
        quantile: (G, len(QUANTILES)) calibrated quantiles to start from.
        weight: (G, F) weights that the predictor starts from.
        cov: (G, F, F) and their covariance.
    """

    size: np.ndarray
    solo: np.ndarray
    h2d: np.ndarray
    d2h: np.ndarray
    demand: np.ndarray
    share: np.ndarray
    device: np.ndarray
    quantile: np.ndarray
    weight: np.ndarray
    cov: np.ndarray


def records(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeroed array of records whose fields read as attributes, compiled or not."""
    return np.zeros(shape, dtype).view(np.recarray)


def make_state(n: int, n_models: int, sizes: np.ndarray, n_streams: int, queue_places: int) -> SchedState:
    """Allocate the state of ``n`` schedulers; call ``envs.scheduling.operations.clear`` on each before use.

    Args:
        n: number of schedulers.
        n_models: number of models M.
        sizes: (B,) batch sizes.
        n_streams: number of streams K.
        queue_places: places Q of each queue; a request that finds its queue full is refused.
    """
    largest = int(sizes[-1])
    scheduler = records((n,), scheduler_t)
    scheduler["high_weight"] = HIGH_WEIGHT
    return SchedState(
        scheduler=scheduler,
        queue=records((n, 2, n_models), queue_t),
        entry=records((n, 2, n_models, queue_places), entry_t),
        stream=records((n, n_streams), stream_t),
        member=records((n, n_streams, largest), entry_t),
        ended=records((n, 2 * n_models * queue_places + n_streams * largest), ended_t),
        count=np.zeros((n, 2, len(OUTCOMES)), np.int64),
        weight=np.zeros((n, N_FEATURES)),
        cov=np.zeros((n, N_FEATURES, N_FEATURES)),
        bias=np.zeros((n, n_models, len(sizes))),
        n_learned=np.zeros((n, n_models, len(sizes))),
        feature_sum=np.zeros((n, n_streams, N_FEATURES)),
        scale=np.ones((n, n_streams + 1, len(QUANTILES))),
        n_calibrated=np.zeros((n, n_streams + 1)),
        scratch=np.zeros((n, N_SCRATCH, n_streams + 2)),
    )


def n_actions(state: SchedState, tables: Tables) -> int:
    """Number of actions: a candidate for each (priority, model, batch size), and DEFER as the last."""
    return 2 * state.queue.shape[2] * tables.size.shape[0] + 1
