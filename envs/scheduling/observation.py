"""The observation: for each candidate its features, then a summary of the system. One layout for training and serving.

All entries are free of units and bounded by [-LIMIT, LIMIT]; times are divided by the request's own relative deadline or by
the device's time scale (mean solo latency), counts by the number of streams or on a log scale. Rows of candidates that are
not valid are zero; the first entry of a row says whether it is valid.
"""

from __future__ import annotations

import math

from envs.scheduling.forecast import evaluate_candidate, in_flight, late_in_queue, refresh_forecast
from envs.scheduling.jit import inlined
from envs.scheduling.operations import RATE_WINDOW_MS, has_room, head_deadline
from envs.scheduling.state import HIGH, P90

SCHEMA = "strait-observation/2"
LIMIT = 4.0

CANDIDATE_FEATURES = (
    "valid",  # 1; the learned policy marks what it starts from with 2 (agents.training.strait_bonus)
    "high_priority",
    "slack",  # of the head at the predicted finish, share of its relative deadline
    "slack_p90",  # the same at the calibrated 90 % quantile
    "duration",  # log of predicted duration over the time scale
    "size",  # batch size over the largest
    "met_share",  # share of the batch predicted to meet its deadline
    "late_high",  # requests in flight that it would make late
    "late_low",
    "delay_high",  # delay added to batches in flight
    "delay_low",
    "waited",  # of the head, share of its relative deadline
    "left_in_queue",
    "slowdown",  # predicted, minus 1
    "batch_gain",  # time per request over that of batch size 1
    "larger_fits",  # 1 if a larger batch size is valid
)
SUMMARY_FEATURES = (
    "free_streams",
    "in_flight_high",
    "in_flight_low",
    "queued_high",
    "queued_low",
    "queued_work_high",
    "queued_work_low",
    "rate_high",
    "rate_low",
    "next_finish",
    "slack_in_flight_high",
    "slack_in_flight_low",
    "slack_queued_high",
    "slack_queued_low",
    "scale_p90",
    "idle_cores",  # share of the cores that no batch in flight runs on
)
N_CANDIDATE = len(CANDIDATE_FEATURES)
N_SUMMARY = len(SUMMARY_FEATURES)


def observation_size(n_candidates: int) -> int:
    """Length of the observation for a number of candidates (actions without DEFER)."""
    return n_candidates * N_CANDIDATE + N_SUMMARY


@inlined
def _clip(x):
    return min(max(x, -LIMIT), LIMIT)


@inlined
def _summary(state, tables, env, first, out, at):
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    unit = tables.device[group].unit_ms
    n_streams = state.stream.shape[1]
    fly_high = 0
    fly_low = 0
    slack_high = LIMIT * unit
    slack_low = LIMIT * unit
    for stream in range(n_streams):
        s = state.stream[env, stream]
        if s.busy == 0:
            continue
        if s.priority == HIGH:
            fly_high += 1
            slack_high = min(slack_high, s.deadline - s.finish)
        else:
            fly_low += 1
            slack_low = min(slack_low, s.deadline - s.finish)
    i = at
    out[i] = own.n_free / n_streams
    out[i + 1] = fly_high / n_streams
    out[i + 2] = fly_low / n_streams
    for priority in range(2):
        queued = 0
        work = 0.0
        slack = LIMIT * unit
        for model in range(state.queue.shape[2]):
            length = state.queue[env, priority, model].length
            if length > 0:
                queued += length
                work += length * tables.solo[group, model, 0]
                slack = min(slack, head_deadline(state, env, priority, model) - own.now - tables.solo[group, model, 0])
        out[i + 3 + priority] = _clip(math.log1p(queued))
        out[i + 5 + priority] = _clip(math.log1p(work / unit))
        out[i + 12 + priority] = _clip(slack / unit)
    cores = min(int(tables.device[group].cores), n_streams)
    slots = cores if cores > 0 else n_streams
    decay = math.exp(-(own.now - own.rate_time) / RATE_WINDOW_MS)
    out[i + 7] = _clip(own.rate_high * decay / slots)
    out[i + 8] = _clip(own.rate_low * decay / slots)
    out[i + 9] = _clip(first / unit)
    out[i + 10] = _clip(slack_high / unit)
    out[i + 11] = _clip(slack_low / unit)
    out[i + 14] = _clip(state.scale[env, fly_high + fly_low, P90])
    idle = 0
    for c in range(slots):
        alone = 1
        for stream in range(c, n_streams, slots):
            if state.stream[env, stream].busy == 1:
                alone = 0
        idle += alone
    out[i + 15] = idle / slots


@inlined
def observe(state, tables, env, out):
    """Write the observation of scheduler e into ``out`` (observation_size,) float32."""
    group = env % tables.solo.shape[0]
    own = state.scheduler[env]
    now = own.now
    unit = tables.device[group].unit_ms
    n_models = state.queue.shape[2]
    n_sizes = tables.size.shape[0]
    largest = tables.size[n_sizes - 1]
    out[:] = 0.0
    first = refresh_forecast(state, tables, env)
    _summary(state, tables, env, first, out, 2 * n_models * n_sizes * N_CANDIDATE)
    if own.n_queued == 0 or not has_room(state, tables, env):
        return
    scale = state.scale[env, in_flight(state, env), P90]
    # Priorities innermost: what a batch would do does not depend on its own, so it is foreseen once for both.
    for model in range(n_models):
        longest = max(state.queue[env, 0, model].length, state.queue[env, 1, model].length)
        for size in range(n_sizes):
            n = tables.size[size]
            if n > longest:
                break
            solo = tables.solo[group, model, size]
            larger = tables.size[min(size + 1, n_sizes - 1)]
            for priority in range(2):
                length = state.queue[env, priority, model].length
                if n > length:
                    continue
                head = state.entry[env, priority, model, state.queue[env, priority, model].head]
                span = max(head.deadline - head.arrival, 1e-3)
                duration, late_high, late_low, delay_high, delay_low = evaluate_candidate(
                    state, tables, env, model, size, 1.0
                )
                i = ((priority * n_models + model) * n_sizes + size) * N_CANDIDATE
                out[i] = 1.0
                out[i + 1] = 1.0 - priority
                out[i + 2] = _clip((head.deadline - now - duration) / span)
                out[i + 3] = _clip((head.deadline - now - duration * scale) / span)
                out[i + 4] = _clip(math.log(max(duration / unit, 1e-3)))
                out[i + 5] = n / largest
                out[i + 6] = 1.0 - late_in_queue(state, env, priority, model, n, now + duration) / n
                out[i + 7] = _clip(late_high / 2.0)
                out[i + 8] = _clip(late_low / 4.0)
                out[i + 9] = _clip(delay_high / unit)
                out[i + 10] = _clip(delay_low / unit)
                out[i + 11] = _clip((now - head.arrival) / span)
                out[i + 12] = _clip(math.log1p(length - n))
                out[i + 13] = _clip(
                    (duration - tables.h2d[group, model, size] - tables.d2h[group, model, size]) / solo - 1.0
                )
                out[i + 14] = solo / (n * tables.solo[group, model, 0])
                out[i + 15] = 1.0 if size + 1 < n_sizes and larger <= length else 0.0
