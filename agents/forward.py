"""``agents.network.CandidateNet`` without torch: compiled, allocating nothing, reading weights from one float64 vector.

The input normalisation is folded into the first layers, and weights lie input-major so that the inner loops run over
consecutive outputs, four inputs at a time (the compiler turns them into vector instructions). Scratch lies in the policy's
own memory: six layers, then the logits, then the observation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.jit import njit
from envs.observation import N_CANDIDATE, N_SUMMARY, observe
from envs.scheduler import has_room, turns_on_spare

HIDDEN, TIMER, TURNS = 0, 1, 2  # head of the vector: width, deferral timer in ms, batches a core; weights follow
HEAD = 3
EMBED, CONTEXT, FIRST, SECOND, MEAN, LARGEST = range(6)  # rows of scratch, ``hidden`` long each
N_ROWS = 6


def memory_size(hidden: int, n_candidates: int) -> int:
    """Floats of scratch that a decision among ``n_candidates`` needs."""
    return N_ROWS * hidden + n_candidates + 1 + n_candidates * N_CANDIDATE + N_SUMMARY


def pack(weights: Mapping[str, np.ndarray], timer_ms: float, turns: float = 0.0) -> np.ndarray:
    """The weights of a ``CandidateNet`` (its state dict as arrays) as one vector for ``choose``.

    Args:
        weights: arrays by name; the value head is not needed.
        timer_ms: a deferral ends after so long, if no event ends it before.
        turns: batches that may share a core; 0: no limit.
    """
    w = {k: np.asarray(v, np.float64) for k, v in weights.items()}
    hidden = w["summary.weight"].shape[0]
    parts = [np.array([hidden, timer_ms, turns], float)]
    for layer, part in (("summary", "summary"), ("candidate", "candidate")):
        scaled = w[f"{layer}.weight"] / w[f"{part}_std"]
        parts += [w[f"{layer}.bias"] - scaled @ w[f"{part}_mean"], scaled.T.ravel()]
    parts.append(w["context.weight"].T.ravel())
    parts += [w["embed.bias"], w["embed.weight"].T.ravel()]
    parts += [w["score.bias"], w["score.weight"].ravel()]
    parts += [w["defer.bias"], w["defer.weight"].T.ravel()]
    parts += [w["defer_out.bias"], w["defer_out.weight"].ravel()]
    return np.concatenate(parts)


@njit
def _add_layer(p, at, n_in, n_out, x, y):
    """Add the product of x (n_in,) and the matrix at p[at:], (n_in, n_out) row-major, to y (n_out,)."""
    k = 0
    # Slices, not offsets: an index that may be negative would be tested for it, which stops vector instructions.
    while k + 4 <= n_in:
        x0 = x[k]
        x1 = x[k + 1]
        x2 = x[k + 2]
        x3 = x[k + 3]
        row = at + k * n_out
        w0 = p[row : row + n_out]
        w1 = p[row + n_out : row + 2 * n_out]
        w2 = p[row + 2 * n_out : row + 3 * n_out]
        w3 = p[row + 3 * n_out : row + 4 * n_out]
        for j in range(n_out):
            y[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
        k += 4
    while k < n_in:
        x0 = x[k]
        row = at + k * n_out
        w0 = p[row : row + n_out]
        for j in range(n_out):
            y[j] += x0 * w0[j]
        k += 1


@njit
def _copy(source, to):
    for j in range(to.shape[0]):
        to[j] = source[j]


@njit
def _relu(y):
    for j in range(y.shape[0]):
        y[j] = max(y[j], 0.0)


@njit
def _dot(p, at, y):
    total = 0.0
    for j in range(y.shape[0]):
        total += p[at + j] * y[j]
    return total


@njit
def score(p, memory, n_candidates):
    """Logits of all actions from the observation in ``memory``, written before it; -inf where not valid.

    Args:
        p: packed weights. memory: (memory_size,) scratch of one scheduler. n_candidates: actions without DEFER.

    Returns:
        Index of the action with the largest logit, DEFER being ``n_candidates``.
    """
    h = int(p[HIDDEN])
    logits = N_ROWS * h
    obs = logits + n_candidates + 1
    embed = memory[EMBED * h : (EMBED + 1) * h]
    context = memory[CONTEXT * h : (CONTEXT + 1) * h]
    first = memory[FIRST * h : (FIRST + 1) * h]
    second = memory[SECOND * h : (SECOND + 1) * h]
    mean = memory[MEAN * h : (MEAN + 1) * h]
    largest = memory[LARGEST * h : (LARGEST + 1) * h]
    summary_b = HEAD
    candidate_b = summary_b + h + N_SUMMARY * h
    context_w = candidate_b + h + N_CANDIDATE * h
    embed_b = context_w + h * h
    score_b = embed_b + h + h * h
    defer_b = score_b + 1 + h
    out_b = defer_b + h + 3 * h * h
    summary = obs + n_candidates * N_CANDIDATE
    _copy(p[summary_b:], embed)
    _add_layer(p, summary_b + h, N_SUMMARY, h, memory[summary : summary + N_SUMMARY], embed)
    _relu(embed)
    _copy(p[candidate_b:], context)
    _add_layer(p, context_w, h, h, embed, context)
    for j in range(h):
        mean[j] = 0.0
        largest[j] = 0.0
    n_valid = 0
    best = n_candidates
    best_logit = -np.inf
    for i in range(n_candidates):
        row = obs + i * N_CANDIDATE
        memory[logits + i] = -np.inf
        if memory[row] < 0.5:
            continue
        n_valid += 1
        _copy(context, first)
        _add_layer(p, candidate_b + h, N_CANDIDATE, h, memory[row : row + N_CANDIDATE], first)
        _relu(first)
        _copy(p[embed_b:], second)
        _add_layer(p, embed_b + h, h, h, first, second)
        _relu(second)
        for j in range(h):
            mean[j] += second[j]
            largest[j] = max(largest[j], second[j])
        logit = p[score_b] + _dot(p, score_b + 1, second)
        memory[logits + i] = logit
        if logit > best_logit:
            best_logit = logit
            best = i
    for j in range(h):
        mean[j] /= max(n_valid, 1)
    # The input of the DEFER head is three rows that do not lie together, so its matrix is taken in three parts.
    _copy(p[defer_b:], first)
    _add_layer(p, defer_b + h, h, h, embed, first)
    _add_layer(p, defer_b + h + h * h, h, h, mean, first)
    _add_layer(p, defer_b + h + 2 * h * h, h, h, largest, first)
    _relu(first)
    logit = p[out_b] + _dot(p, out_b + 1, first)
    memory[logits + n_candidates] = logit
    # Not "logit > best": with weights that give nan, no comparison holds and the safe choice is DEFER.
    return best if best_logit >= logit else n_candidates


@njit
def choose(st, tb, mem, e, p):
    """One decision: observe, score, take the best."""
    n_candidates = 2 * st.queue.shape[2] * tb.size.shape[0]
    env = st.env[e]
    if env.n_queued == 0 or not has_room(st, tb, e):
        return n_candidates, np.inf
    if p[TURNS] > 0.0 and turns_on_spare(st, e) > p[TURNS]:
        return n_candidates, np.inf
    h = int(p[HIDDEN])
    obs = N_ROWS * h + n_candidates + 1
    size = n_candidates * N_CANDIDATE + N_SUMMARY
    if obs + size > mem.shape[1]:
        return -1, np.inf  # no room; LearnedPolicy checks before it asks
    observe(st, tb, e, mem[e, obs : obs + size])
    action = score(p, mem[e], n_candidates)
    return action, (env.now + p[TIMER] if action == n_candidates else np.inf)
