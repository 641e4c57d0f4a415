"""The observation: for each candidate its features, then a summary of the system. One layout for training and serving.

All entries are free of units and bounded by [-LIMIT, LIMIT]; times are divided by the request's own relative deadline or by
the device's time scale (mean solo latency), counts by the number of streams or on a log scale. Rows of candidates that are
not valid are zero; the first entry of a row says whether it is valid.
"""

from __future__ import annotations

import math
from itertools import zip_longest

from envs.scheduling.candidates import available, has_room, n_high_of
from envs.scheduling.forecast import in_flight, parallelism, predict_finishes, refresh_forecast
from envs.scheduling.jit import inlined
from envs.scheduling.operations import head_deadline
from envs.scheduling.predictor import FINISH
from envs.scheduling.rates import earned_per_ms, offered_rates
from envs.scheduling.state import HIGH, LOW, P90
from envs.scheduling.worth import LEAST, disturbance, expected_met, spread_of_prediction
from traces.workload import HIGH_WEIGHT

SCHEMA = "strait-observation/4"
LIMIT = 4.0

# The features of a candidate, in order, each with what it means. The places below and the environment's table follow from it.
CANDIDATE_FEATURES = {
    "valid": "valid (1)",
    "high_priority": "share of the batch that is of high priority",
    "slack": "slack of the head at the predicted finish, share of its deadline",
    "slack_p90": "the same at the calibrated 90 % quantile",
    "spare": "that, in ten mean solo latencies",
    "duration": "log of the predicted duration over the mean solo latency",
    "size": "batch size over the largest",
    "met_share": "share of the batch expected to be in time",
    "harm_high": "high-priority requests in flight that are expected to be met less, / 2",
    "harm_low": "low-priority ones, / 4",
    "delay_high": "delay added to batches in flight with any high, in mean solo latencies",
    "delay_low": "the same for those with low alone",
    "worth": "log of the value expected to be met per ms, over what a full device earns of late",
    "waited": "time the head has waited, share of its deadline",
    "left_in_queue": "log(1 + requests left that it could have taken)",
    "slowdown": "predicted slowdown - 1",
    "batch_gain": "execution time per request over that of a batch of 1",
    "larger_fits": "a larger batch is valid",
}
(
    VALID, HIGH_PRIORITY, SLACK, SLACK_P90, SPARE, DURATION, SIZE, MET_SHARE, HARM_HIGH, HARM_LOW, DELAY_HIGH, DELAY_LOW,
    WORTH, WAITED, LEFT_IN_QUEUE, SLOWDOWN, BATCH_GAIN, LARGER_FITS,
) = range(len(CANDIDATE_FEATURES))  # fmt: skip
# The features of the system that follow those of all candidates.
SUMMARY_FEATURES = {
    "free_streams": "free streams, share of K",
    "in_flight_high": "in flight with any high, share of K",
    "in_flight_low": "in flight with low alone",
    "queued_high": "log(1 + queued), high",
    "queued_low": "log(1 + queued), low",
    "queued_work_high": "log(1 + queued work), high",
    "queued_work_low": "log(1 + queued work), low",
    "rate_high": "offered work, high, over what the device does at once",
    "rate_low": "offered work, low",
    "next_finish": "time to the next predicted finish",
    "slack_in_flight_high": "least slack in flight with any high",
    "slack_in_flight_low": "least slack in flight with low alone",
    "slack_queued_high": "least slack queued, high",
    "slack_queued_low": "least slack queued, low",
    "scale_p90": "calibrated 90 % quantile",
    "idle_cores": "idle cores, share",
    "parallelism": "batches that the device does at once, share of K",
    "fullness": "log of the batches in flight over that",
    "weight_of_high": "log of what a high-priority request counts, over 5",
    "earning": "log of the value met of late in a mean solo latency",
}
(
    FREE_STREAMS, IN_FLIGHT_HIGH, IN_FLIGHT_LOW, QUEUED_HIGH, QUEUED_LOW, QUEUED_WORK_HIGH, QUEUED_WORK_LOW, RATE_HIGH,
    RATE_LOW, NEXT_FINISH, SLACK_IN_FLIGHT_HIGH, SLACK_IN_FLIGHT_LOW, SLACK_QUEUED_HIGH, SLACK_QUEUED_LOW, SCALE_P90,
    IDLE_CORES, PARALLELISM, FULLNESS, WEIGHT_OF_HIGH, EARNING,
) = range(len(SUMMARY_FEATURES))  # fmt: skip
N_CANDIDATE = len(CANDIDATE_FEATURES)
N_SUMMARY = len(SUMMARY_FEATURES)


def feature_table() -> str:
    """Both lists side by side as rows of a Markdown table, as the environment's docstring has them."""
    rows = zip_longest(CANDIDATE_FEATURES.values(), SUMMARY_FEATURES.values(), fillvalue="")
    return "\n".join(f"| {i} | {candidate} | {i} | {summary} |" for i, (candidate, summary) in enumerate(rows))


def observation_size(n_candidates: int) -> int:
    """Length of the observation for a number of candidates (actions without DEFER)."""
    return n_candidates * N_CANDIDATE + N_SUMMARY


@inlined
def _clip(x):
    return min(max(x, -LIMIT), LIMIT)


@inlined
def _log(x):
    return _clip(math.log(max(x, 1e-6)))


@inlined
def _summary(state, tables, env, first, at_once, earning, out, at):
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
    out[at + FREE_STREAMS] = own.n_free / n_streams
    out[at + IN_FLIGHT_HIGH] = fly_high / n_streams
    out[at + IN_FLIGHT_LOW] = fly_low / n_streams
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
        out[at + QUEUED_HIGH + priority] = _clip(math.log1p(queued))
        out[at + QUEUED_WORK_HIGH + priority] = _clip(math.log1p(work / unit))
        out[at + SLACK_QUEUED_HIGH + priority] = _clip(slack / unit)
    cores = min(int(tables.device[group].cores), n_streams)
    slots = cores if cores > 0 else n_streams
    rate_high, rate_low = offered_rates(state, tables, env)
    out[at + RATE_HIGH] = _clip(rate_high / at_once)
    out[at + RATE_LOW] = _clip(rate_low / at_once)
    out[at + NEXT_FINISH] = _clip(first / unit)
    out[at + SLACK_IN_FLIGHT_HIGH] = _clip(slack_high / unit)
    out[at + SLACK_IN_FLIGHT_LOW] = _clip(slack_low / unit)
    out[at + SCALE_P90] = _clip(state.scale[env, fly_high + fly_low, P90])
    idle = 0
    for c in range(slots):
        alone = 1
        for stream in range(c, n_streams, slots):
            if state.stream[env, stream].busy == 1:
                alone = 0
        idle += alone
    out[at + IDLE_CORES] = idle / slots
    out[at + PARALLELISM] = at_once / n_streams
    out[at + FULLNESS] = _log((fly_high + fly_low) / at_once)
    out[at + WEIGHT_OF_HIGH] = _log(own.high_weight / HIGH_WEIGHT)
    out[at + EARNING] = _log(earning * unit)


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
    at_once = parallelism(state, tables, env)
    earning = earned_per_ms(state, tables, env, own.high_weight)
    _summary(state, tables, env, first, at_once, earning, out, 2 * n_models * n_sizes * N_CANDIDATE)
    if own.n_queued == 0 or not has_room(state, tables, env):
        return
    per_unit = 1.0 / unit
    per_largest = 1.0 / largest
    late_earning = max(earning / at_once, LEAST / unit)
    scale = state.scale[env, in_flight(state, env), P90]
    spread_of = spread_of_prediction(state, env)
    # Priorities innermost: what a batch would do does not depend on its own, so it is foreseen once for both.
    for model in range(n_models):
        held = (available(state, tables, env, HIGH, model), available(state, tables, env, LOW, model))
        for size in range(n_sizes):
            n = tables.size[size]
            if n > max(held):
                break
            solo = tables.solo[group, model, size]
            larger = tables.size[min(size + 1, n_sizes - 1)]
            n_placed = predict_finishes(state, tables, env, model, size)
            duration = state.scratch[env, FINISH, n_placed]
            harm_high, harm_low, delay_high, delay_low = disturbance(state, env, n_placed, spread_of)
            cost = max(duration + delay_high + delay_low, LEAST)
            # Once for both priorities; divisions and logarithms are much of what a decision takes.
            log_duration = _log(duration * per_unit)
            slowdown = _clip((duration - tables.h2d[group, model, size] - tables.d2h[group, model, size]) / solo - 1.0)
            gain = solo / (n * tables.solo[group, model, 0])
            per_request = 1.0 / n
            per_earning = 1.0 / (cost * late_earning)
            for priority in range(2):
                if n > held[priority]:
                    continue
                head = state.entry[env, priority, model, state.queue[env, priority, model].head]
                per_span = 1.0 / max(head.deadline - head.arrival, 1e-3)
                slack = head.deadline - now - duration
                slack_p90 = head.deadline - now - duration * scale
                high, low = expected_met(state, env, priority, model, n, duration, spread_of)
                earned = own.high_weight * (high - harm_high) + low - harm_low
                i = ((priority * n_models + model) * n_sizes + size) * N_CANDIDATE
                out[i + VALID] = 1.0
                out[i + HIGH_PRIORITY] = n_high_of(state, env, priority, model, n) * per_request
                out[i + SLACK] = _clip(slack * per_span)
                out[i + SLACK_P90] = _clip(slack_p90 * per_span)
                out[i + SPARE] = _clip(0.1 * slack_p90 * per_unit)
                out[i + DURATION] = log_duration
                out[i + SIZE] = n * per_largest
                out[i + MET_SHARE] = (high + low) * per_request
                out[i + HARM_HIGH] = _clip(0.5 * harm_high)
                out[i + HARM_LOW] = _clip(0.25 * harm_low)
                out[i + DELAY_HIGH] = _clip(delay_high * per_unit)
                out[i + DELAY_LOW] = _clip(delay_low * per_unit)
                out[i + WORTH] = _log(earned * per_earning)
                out[i + WAITED] = _clip((now - head.arrival) * per_span)
                out[i + LEFT_IN_QUEUE] = _clip(math.log1p(held[priority] - n))
                out[i + SLOWDOWN] = slowdown
                out[i + BATCH_GAIN] = gain
                out[i + LARGER_FITS] = 1.0 if size + 1 < n_sizes and larger <= held[priority] else 0.0
