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
from envs.scheduling.state import CORES, FORGETTING, N_FEATURES, QUANTILE_RATE, QUANTILES, SPEED_RATE

BIAS_RATE = 0.02
BIAS_FIRST_RATE = 0.4  # of what was never seen; falls to BIAS_RATE with the batches seen
SURPRISE = 0.1  # relative error beyond which a batch is a straggler: it moves what is learned no further
LEAN = 0.2  # bound on how much more an error counts where the guess was too high, and less where it was too low
MAX_SPEED = 1.0  # bound on the log of the device's speed
PACE_RATE = 0.2  # of a batch's error that its core is held to be slower by; see stream_t.pace
PACE_KEEP = 0.9  # share of a core's pace that is left after each batch that ends, on whatever core
SPEED_MOVED = 0.1  # change of the device's speed within a batch that makes its calibration count for 1 / e
LEAST_CALIBRATED = 0.1  # share that it counts for at the least
N_QUANTILES = len(QUANTILES)
LEVELS = np.array(QUANTILES)
# Of quantiles that nothing moved yet; falls with the root of the batches to the profile's rate.
QUANTILE_FIRST_RATE = 0.3


@inlined
def set_slower(st, e):
    """Work out the factor on all that executes on each core; to be called whenever speed or pace changed."""
    slower = math.exp(st.env[e].speed)
    for c in range(st.stream.shape[1]):
        pace = st.stream[e, c].pace
        st.stream[e, c].slower = slower * math.exp(pace) if pace != 0.0 else slower


@inlined
def learn(st, tb, e, k, exec_ms, total_ms):
    """Update the predictor from the batch that ended on stream k.

    Args:
        st: state. tb: tables. e: scheduler. k: stream.
        exec_ms: measured execution time. total_ms: measured time from dispatch to finish.
    """
    g = e % tb.solo.shape[0]
    s = st.stream[e, k]
    if s.work > 0.0 and s.solo > 0.0 and tb.device[g, FORGETTING] > 0.0:
        _learn_slowdown(st, tb, e, k, exec_ms)
    rate = tb.device[g, QUANTILE_RATE]
    if s.predicted > 0.0 and rate > 0.0:
        ratio = total_ms / s.predicted
        # What is dispatched later is unknown at dispatch, and so is how far the first quantiles are off.
        st.judged[e, s.n_co] += 1.0
        rate = max(rate, QUANTILE_FIRST_RATE / math.sqrt(st.judged[e, s.n_co]))
        # Quantiles cannot undo a shift that the speed was about to learn: they would be too wide once it has.
        moved = (st.env[e].speed - s.speed) / SPEED_MOVED
        rate *= max(math.exp(-moved * moved), LEAST_CALIBRATED)
        for q in range(N_QUANTILES):
            level = LEVELS[q]
            value = st.scale[e, s.n_co, q]
            value += rate * (level if ratio > value else level - 1.0)
            st.scale[e, s.n_co, q] = max(value, 0.2)


@inlined
def _learn_slowdown(st, tb, e, k, exec_ms):
    g = e % tb.solo.shape[0]
    s = st.stream[e, k]
    env = st.env[e]
    m = s.model
    forget = tb.device[g, FORGETTING]
    w = st.weight
    cov = st.cov
    x = st.moment[e, k]
    gain = st.work[e, :, feature_column(st)]
    # What the bracket of the slowdown was on average, if the speed is right.
    y = min(exec_ms / ((s.solo + s.owed) * s.sliced / s.work * st.stream[e, s.core].slower), MAX_SLOWDOWN)
    guess = 1.0 + st.bias[e, m, s.b]
    power = forget
    for f in range(N_FEATURES):
        x[f] /= s.sliced
    for f in range(N_FEATURES):
        acc = 0.0
        for h in range(N_FEATURES):
            acc += cov[e, f, h] * x[h]
        gain[f] = acc
        guess += w[e, f] * x[f]
        power += x[f] * acc
    guess = min(max(guess, 1.0), MAX_SLOWDOWN)
    # Down the slope of the relative error, which is what is judged: a guess too high by some share errs by more than one too
    # low. A straggler must not throw the weights: beyond a bound the slope is flat (Huber), and as much less certainty is
    # gained from it.
    ratio = guess / max(y, 1e-6)
    surprise = 1.0 - ratio
    believed = min(1.0, SURPRISE / max(abs(surprise), EPS))
    surprise *= believed * min(max(ratio, 1.0 - LEAN), 1.0 + LEAN)
    rate = tb.device[g, SPEED_RATE]
    env.speed = min(max(env.speed + rate * surprise, -MAX_SPEED), MAX_SPEED)
    if rate > 0.0 and tb.device[g, CORES] > 0.0:
        for c in range(st.stream.shape[1]):
            st.stream[e, c].pace *= PACE_KEEP
        st.stream[e, s.core].pace += PACE_RATE * surprise
    set_slower(st, e)
    error = (1.0 - rate) * surprise * guess
    trace = 0.0
    for f in range(N_FEATURES):
        w[e, f] += gain[f] / power * error
        trace += cov[e, f, f]
    # Without excitation forgetting alone would blow the covariance up; it stops at a bound.
    keep = 1.0 / forget if trace < 1e3 else 1.0
    for f in range(N_FEATURES):
        for h in range(N_FEATURES):
            cov[e, f, h] = (cov[e, f, h] - believed * gain[f] * gain[h] / power) * keep
    st.seen[e, m, s.b] += 1.0
    st.bias[e, m, s.b] += max(BIAS_RATE, BIAS_FIRST_RATE / st.seen[e, m, s.b]) * error
