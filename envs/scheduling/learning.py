"""What the scheduler's predictor learns from each batch that ends: weights, bias, speed, pace and calibrated quantiles.

A batch's measured slowdown and the mean of its features update the weights by recursive least squares with forgetting
(Haykin, Adaptive Filter Theory, ch. 10), the bias of its model and size, the speed (an exponential average, fast enough to
follow a machine whose neighbours come and go) and the pace; the ratio of its actual to its predicted time moves the calibrated
quantiles (adaptive conformal inference, Gibbs and Candes 2021, as an online quantile step). envs.scheduling.predictor says
what they mean.
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.jit import inlined
from envs.scheduling.predictor import EPS, MAX_SLOWDOWN, feature_column
from envs.scheduling.state import N_FEATURES, QUANTILES

BIAS_RATE = 0.02
BIAS_FIRST_RATE = 0.4  # of what was never seen; falls to BIAS_RATE with the batches seen
HUBER_BOUND = 0.1  # relative error beyond which a batch is a straggler: it moves what is learned no further
ASYMMETRY = 0.2  # bound on how much more an error counts where the guess was too high, and less where it was too low
MAX_LOG_SLOWDOWN = math.log(MAX_SLOWDOWN)  # bound on the log of how slow the device is, and how fast
PACE_RATE = 0.2  # of a batch's error that its core is held to be slower by; see stream_t.core_log_slowdown
PACE_KEEP = 0.9  # share of a core's pace that is left after each batch that ends, on whatever core
LOG_SLOWDOWN_MOVED = 0.1  # change of the device's speed within a batch that makes its calibration count for 1 / e
LEAST_CALIBRATED = 0.1  # share that it counts for at the least
N_QUANTILES = len(QUANTILES)
LEVELS = np.array(QUANTILES)
# Of quantiles that nothing moved yet; falls with the root of the batches to the profile's rate.
QUANTILE_FIRST_RATE = 0.3


@inlined
def set_core_slowdowns(state, env):
    """Work out the factor on all that executes on each core; to be called whenever speed or pace changed."""
    slower = math.exp(state.scheduler[env].log_slowdown)
    for c in range(state.stream.shape[1]):
        pace = state.stream[env, c].core_log_slowdown
        state.stream[env, c].core_slowdown = slower * math.exp(pace) if pace != 0.0 else slower


@inlined
def learn(state, tables, env, stream, exec_ms, total_ms):
    """Update the predictor from the batch that ended on stream k.

    Args:
        state, tables, env: of the scheduler. stream: where the batch was.
        exec_ms: measured execution time. total_ms: measured time from dispatch to finish.
    """
    group = env % tables.solo.shape[0]
    s = state.stream[env, stream]
    if s.work > 0.0 and s.solo > 0.0 and tables.device[group].forgetting > 0.0:
        _learn_slowdown(state, tables, env, stream, exec_ms)
    rate = tables.device[group].quantile_rate
    if s.predicted > 0.0 and rate > 0.0:
        ratio = total_ms / s.predicted
        # What is dispatched later is unknown at dispatch, and so is how far the first quantiles are off.
        state.n_calibrated[env, s.n_corunners] += 1.0
        rate = max(rate, QUANTILE_FIRST_RATE / math.sqrt(state.n_calibrated[env, s.n_corunners]))
        # Quantiles cannot undo a shift that the speed was about to learn: they would be too wide once it has.
        moved = (state.scheduler[env].log_slowdown - s.log_slowdown) / LOG_SLOWDOWN_MOVED
        rate *= max(math.exp(-moved * moved), LEAST_CALIBRATED)
        for q in range(N_QUANTILES):
            level = LEVELS[q]
            value = state.scale[env, s.n_corunners, q]
            value += rate * (level if ratio > value else level - 1.0)
            state.scale[env, s.n_corunners, q] = max(value, 0.2)


@inlined
def _learn_slowdown(state, tables, env, stream, exec_ms):
    group = env % tables.solo.shape[0]
    s = state.stream[env, stream]
    own = state.scheduler[env]
    model = s.model
    forget = tables.device[group].forgetting
    w = state.weight
    cov = state.cov
    x = state.feature_sum[env, stream]
    gain = state.scratch[env, :, feature_column(state)]
    # What the bracket of the slowdown was on average, if the speed is right.
    y = min(
        exec_ms / ((s.solo + s.join_cost) * s.shared_work / s.work * state.stream[env, s.core].core_slowdown),
        MAX_SLOWDOWN,
    )
    guess = 1.0 + state.bias[env, model, s.size_index]
    power = forget
    for f in range(N_FEATURES):
        x[f] /= s.shared_work
    for f in range(N_FEATURES):
        acc = 0.0
        for h in range(N_FEATURES):
            acc += cov[env, f, h] * x[h]
        gain[f] = acc
        guess += w[env, f] * x[f]
        power += x[f] * acc
    guess = min(max(guess, 1.0), MAX_SLOWDOWN)
    # Down the slope of the relative error, which is what is judged: a guess too high by some share errs by more than one too
    # low. A straggler must not throw the weights: beyond a bound the slope is flat (Huber), and as much less certainty is
    # gained from it.
    ratio = guess / max(y, 1e-6)
    surprise = 1.0 - ratio
    believed = min(1.0, HUBER_BOUND / max(abs(surprise), EPS))
    surprise *= believed * min(max(ratio, 1.0 - ASYMMETRY), 1.0 + ASYMMETRY)
    rate = tables.device[group].log_slowdown_rate
    own.log_slowdown = min(max(own.log_slowdown + rate * surprise, -MAX_LOG_SLOWDOWN), MAX_LOG_SLOWDOWN)
    if rate > 0.0 and tables.device[group].cores > 0.0:
        for c in range(state.stream.shape[1]):
            state.stream[env, c].core_log_slowdown *= PACE_KEEP
        state.stream[env, s.core].core_log_slowdown += PACE_RATE * surprise
    set_core_slowdowns(state, env)
    error = (1.0 - rate) * surprise * guess
    trace = 0.0
    for f in range(N_FEATURES):
        w[env, f] += gain[f] / power * error
        trace += cov[env, f, f]
    # Without excitation forgetting alone would blow the covariance up; it stops at a bound.
    keep = 1.0 / forget if trace < 1e3 else 1.0
    for f in range(N_FEATURES):
        for h in range(N_FEATURES):
            cov[env, f, h] = (cov[env, f, h] - believed * gain[f] * gain[h] / power) * keep
    state.n_learned[env, model, s.size_index] += 1.0
    state.bias[env, model, s.size_index] += (
        max(BIAS_RATE, BIAS_FIRST_RATE / state.n_learned[env, model, s.size_index]) * error
    )
