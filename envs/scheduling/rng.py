"""Counter-based random numbers: a draw is a hash of (seed, counter), so it does not depend on what was drawn before.

That gives common random numbers: the noise of a batch is a function of the episode's seed and of its first request, and
two policies compared on one seed meet the same noise. The hash is the finaliser of SplitMix64 (Steele et al., 2014).
"""

from __future__ import annotations

import math

import numpy as np

from envs.scheduling.jit import inlined

# Streams that are derived from an episode's seed, each for one purpose: ``mix(seed, NOISE)``.
NOISE, DRIFT, SHARED_CORE_WAIT, NEXT_EPISODE, DEVICE, STREAMS, WINDOW, HIGH_WEIGHT = 1, 2, 3, 7, 11, 12, 13, 14

_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xBF58476D1CE4E5B9)
_C = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2**-53


@inlined
def mix(seed, counter):
    """64-bit hash of a uint64 seed and a non-negative integer counter."""
    z = seed + _A * (np.uint64(counter) + np.uint64(1))
    z = (z ^ (z >> _S30)) * _B
    z = (z ^ (z >> _S27)) * _C
    return z ^ (z >> _S31)


@inlined
def uniform(seed, counter):
    """Uniform draw in [0, 1)."""
    return float(mix(seed, counter) >> _S11) * _TO_UNIT


def uniforms(seed, n):
    """Uniform draws (n,) of a seed for counters 0..n-1, for Python."""
    with np.errstate(over="ignore"):
        return (np.array([mix(np.uint64(seed), i) for i in range(n)], np.uint64) >> _S11) * _TO_UNIT


@inlined
def exponential(seed, counter, mean):
    """Exponential draw."""
    return -mean * math.log(1.0 - uniform(seed, counter))


@inlined
def normal(seed, counter):
    """Standard normal draw (Box and Muller, 1958); uses counters 2c and 2c + 1 of the derived stream."""
    u = 1.0 - uniform(seed, 2 * counter)
    v = uniform(seed, 2 * counter + 1)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
