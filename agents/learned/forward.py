"""``agents.learned.network.CandidateNet`` without torch: compiled, allocating nothing, reading weights from one vector.

Numbers are float32, as the network was trained in; they lie in the float64 vector and memory that every policy has, two a
place. The input normalisation is folded into the first layers. Valid candidates are gathered a block at a time with
features as rows and candidates as columns, so that the inner loops run over candidates that lie side by side (the compiler
turns them into vector instructions). The policy's own memory holds Strait's, scratch, the logits and the observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from agents.policies import strait
from agents.policies.base import MEMORY_SIZE
from agents.policies.strait import StraitParams
from envs.scheduling.jit import njit
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, observation_size, observe
from envs.scheduling.operations import batches_on_next_core, has_room

# Head of the vector: width, deferral timer in ms, batches a core, logit of Strait's choice. Strait's parameters follow, then
# the weights.
HIDDEN, TIMER, MAX_BATCHES_PER_CORE, PRIOR, REFERENCE = range(5)
HEAD = REFERENCE + len(fields(StraitParams))
# first feature of the candidate that Strait would choose (agents.training.strait_bonus); 1 of any other that is valid
CHOSEN = 2.0
BLOCK = 64  # candidates that are scored together
LANES = 8  # partial sums and maxima of a row; columns of a block are filled up to a multiple
ZERO = np.float32(0.0)
LEAST = np.float32(-np.inf)


@njit
def _scratch(hidden):
    """float32 places before the logits: Strait's memory, a block's features and two layers, sums and maxima, two vectors."""
    return 2 * MEMORY_SIZE + BLOCK * (N_CANDIDATE + 2 * hidden) + 2 * LANES * hidden + 2 * hidden


@njit
def _observation_at(hidden, n_candidates):
    return _scratch(hidden) + n_candidates + 1


def memory_size(hidden: int, n_candidates: int) -> int:
    """Floats of scratch that a decision among ``n_candidates`` needs."""
    return (_observation_at(hidden, n_candidates) + observation_size(n_candidates) + 1) // 2


def logits_of(memory: np.ndarray, hidden: int, n_candidates: int) -> np.ndarray:
    """The logits (A,) that ``score`` left in ``memory``; a view."""
    at = _scratch(hidden)
    return memory.view(np.float32)[at : at + n_candidates + 1]


def observation_of(memory: np.ndarray, hidden: int, n_candidates: int) -> np.ndarray:
    """Where in ``memory`` ``score`` reads the observation; a view."""
    at = _observation_at(hidden, n_candidates)
    return memory.view(np.float32)[at : at + observation_size(n_candidates)]


def pack(weights: Mapping[str, np.ndarray], timer_ms: float, max_batches_per_core: float = 0.0) -> np.ndarray:
    """The weights of a ``CandidateNet`` (its state dict as arrays) as one vector for ``choose``.

    Args:
        weights: arrays by name; the value head is not needed.
        timer_ms: a deferral ends after so long, if no event ends it before.
        max_batches_per_core: batches that may share a core where the network decides; 0: no limit.
    """
    w = {k: np.array(v, np.float64) for k, v in weights.items()}
    hidden = w["summary.weight"].shape[0]
    for layer in ("summary", "candidate"):
        w[f"{layer}.weight"] /= w[f"{layer}_std"]
        w[f"{layer}.bias"] -= w[f"{layer}.weight"] @ w[f"{layer}_mean"]
    # What one vector goes through lies input by input, what a block goes through output by output.
    for layer in ("summary", "context", "defer"):
        w[f"{layer}.weight"] = w[f"{layer}.weight"].T
    parts = [w["summary.bias"], w["summary.weight"], w["candidate.bias"], w["candidate.weight"], w["context.weight"]]
    for layer in ("embed", "score", "defer", "defer_out"):
        parts += [w[f"{layer}.bias"], w[f"{layer}.weight"]]
    flat = np.concatenate([part.ravel() for part in parts]).astype(np.float32)
    packed = np.zeros(HEAD + (len(flat) + 1) // 2)
    packed[:REFERENCE] = hidden, timer_ms, max_batches_per_core, w["prior"][0]
    packed[REFERENCE:HEAD] = w["reference"]
    packed[HEAD:].view(np.float32)[: len(flat)] = flat
    return packed


@njit
def _add_layer(world, n_in, x, n_out, y, width):
    """Add the product of the matrix w (n_out, n_in) and x (n_in, BLOCK) to y (n_out, BLOCK), the first ``width`` columns."""
    for j in range(n_out):
        # Slices, not offsets: an index that may be negative would be tested for it, which stops vector instructions.
        row = y[j * BLOCK : j * BLOCK + width]
        k = 0
        while k + 4 <= n_in:
            at = j * n_in + k
            w0 = world[at]
            w1 = world[at + 1]
            w2 = world[at + 2]
            w3 = world[at + 3]
            x0 = x[k * BLOCK : k * BLOCK + width]
            x1 = x[(k + 1) * BLOCK : (k + 1) * BLOCK + width]
            x2 = x[(k + 2) * BLOCK : (k + 2) * BLOCK + width]
            x3 = x[(k + 3) * BLOCK : (k + 3) * BLOCK + width]
            for c in range(width):
                row[c] += w0 * x0[c] + w1 * x1[c] + w2 * x2[c] + w3 * x3[c]
            k += 4
        while k < n_in:
            w0 = world[j * n_in + k]
            x0 = x[k * BLOCK : k * BLOCK + width]
            for c in range(width):
                row[c] += w0 * x0[c]
            k += 1


@njit
def _relu(y, n_rows, width):
    for j in range(n_rows):
        row = y[j * BLOCK : j * BLOCK + width]
        for c in range(width):
            row[c] = ZERO if row[c] < ZERO else row[c]  # max would be slow: it does not become a vector instruction


@njit
def _add_vector(world, at, x, y):
    """Add the product of the matrix at w[at:], (n_in, n_out), and x (n_in,) to y (n_out,)."""
    n_out = y.shape[0]
    for k in range(x.shape[0]):
        value = x[k]
        row = world[at + k * n_out : at + (k + 1) * n_out]
        for j in range(n_out):
            y[j] += value * row[j]


@njit
def score(params, memory, n_candidates):
    """Logits of all actions from the observation in ``memory``, written before it; -inf where not valid.

    Args:
        p: packed weights. memory: (memory_size,) scratch of one scheduler. n_candidates: actions without DEFER.

    Returns:
        Index of the action with the largest logit, DEFER being ``n_candidates``.
    """
    h = int(params[HIDDEN])
    w = params[HEAD:].view(np.float32)
    prior = np.float32(params[PRIOR])
    f = memory.view(np.float32)
    logits = f[_scratch(h) : _scratch(h) + n_candidates + 1]
    obs = f[_observation_at(h, n_candidates) :]
    f = f[2 * MEMORY_SIZE :]
    features = f[: N_CANDIDATE * BLOCK]
    first = f[N_CANDIDATE * BLOCK : (N_CANDIDATE + h) * BLOCK]
    second = f[(N_CANDIDATE + h) * BLOCK : (N_CANDIDATE + 2 * h) * BLOCK]
    at = (N_CANDIDATE + 2 * h) * BLOCK
    sums = f[at : at + h * LANES]
    peaks = f[at + h * LANES : at + 2 * h * LANES]
    embed = f[at + 2 * h * LANES : at + 2 * h * LANES + h]
    context = f[at + 2 * h * LANES + h : at + 2 * h * LANES + 2 * h]
    candidate_b = h + N_SUMMARY * h
    context_w = candidate_b + h + N_CANDIDATE * h
    embed_b = context_w + h * h
    score_b = embed_b + h + h * h
    defer_b = score_b + 1 + h
    out_b = defer_b + h + 3 * h * h
    summary = n_candidates * N_CANDIDATE
    for j in range(h):
        embed[j] = w[j]
        context[j] = w[candidate_b + j]
    _add_vector(w, h, obs[summary : summary + N_SUMMARY], embed)
    for j in range(h):
        embed[j] = max(embed[j], ZERO)
    _add_vector(w, context_w, embed, context)
    for j in range(h * LANES):
        sums[j] = ZERO
        peaks[j] = ZERO
    n_valid = 0
    n_chosen = 0
    best = n_candidates
    best_logit = LEAST
    begin = 0
    while begin < n_candidates:
        n = 0
        end = begin
        while end < n_candidates and n < BLOCK:
            logits[end] = LEAST
            row = obs[end * N_CANDIDATE : (end + 1) * N_CANDIDATE]
            if row[0] > 0.5:
                for k in range(N_CANDIDATE):
                    features[k * BLOCK + n] = row[k]
                n += 1
            end += 1
        width = (n + LANES - 1) // LANES * LANES
        for k in range(N_CANDIDATE):
            for c in range(n, width):
                features[k * BLOCK + c] = ZERO
        for j in range(h):
            bias = context[j]
            row = first[j * BLOCK : j * BLOCK + width]
            for c in range(width):
                row[c] = bias
            bias = w[embed_b + j]
            row = second[j * BLOCK : j * BLOCK + width]
            for c in range(width):
                row[c] = bias
        _add_layer(w[candidate_b + h :], N_CANDIDATE, features, h, first, width)
        _relu(first, h, width)
        _add_layer(w[embed_b + h :], h, first, h, second, width)
        _relu(second, h, width)
        # The features are not needed any more: their first row takes the scores.
        scores = features[:width]
        for c in range(width):
            scores[c] = w[score_b]
        for j in range(h):
            weight = w[score_b + 1 + j]
            row = second[j * BLOCK : j * BLOCK + width]
            for c in range(width):
                scores[c] += weight * row[c]
            for c in range(n, width):
                row[c] = ZERO
            total = sums[j * LANES : (j + 1) * LANES]
            peak = peaks[j * LANES : (j + 1) * LANES]
            for c in range(0, width, LANES):
                part = row[c : c + LANES]
                for lane in range(LANES):
                    total[lane] += part[lane]
                    peak[lane] = part[lane] if part[lane] > peak[lane] else peak[lane]
        c = 0
        for i in range(begin, end):
            if obs[i * N_CANDIDATE] > 0.5:
                logit = scores[c]
                if obs[i * N_CANDIDATE] > CHOSEN - 0.5:
                    logit += prior
                    n_chosen += 1
                logits[i] = logit
                if logit > best_logit:
                    best_logit = logit
                    best = i
                c += 1
        n_valid += n
        begin = end
    # The scratch of a block is free: the DEFER head's input and hidden layer.
    pooled = first[: 3 * h]
    hidden = second[:h]
    for j in range(h):
        total = ZERO
        peak = ZERO
        for lane in range(LANES):
            total += sums[j * LANES + lane]
            peak = max(peak, peaks[j * LANES + lane])
        pooled[j] = embed[j]
        pooled[h + j] = total / np.float32(max(n_valid, 1))
        pooled[2 * h + j] = peak
        hidden[j] = w[defer_b + j]
    _add_vector(w, defer_b + h, pooled, hidden)
    logit = w[out_b] + (prior if n_chosen == 0 else ZERO)
    for j in range(h):
        logit += w[out_b + 1 + j] * max(hidden[j], ZERO)
    logits[n_candidates] = logit
    # Not "logit > best": with weights that give nan, no comparison holds and the safe choice is DEFER.
    return best if best_logit >= logit else n_candidates


@njit
def choose(state, tables, memory, env, params):
    """One decision: ask Strait, observe, score, take the best; where a core would be shared, Strait's is final."""
    n_candidates = 2 * state.queue.shape[2] * tables.size.shape[0]
    own = state.scheduler[env]
    if own.n_queued == 0 or not has_room(state, tables, env):
        return n_candidates, np.inf
    if params[MAX_BATCHES_PER_CORE] > 0.0 and batches_on_next_core(state, env) > params[MAX_BATCHES_PER_CORE]:
        # In training no batch shared a core. Strait knows when one should.
        return (
            strait.choose(state, tables, memory, env, params[REFERENCE:HEAD])
            if params[PRIOR] > 0.0
            else (n_candidates, np.inf)
        )
    at = _observation_at(int(params[HIDDEN]), n_candidates)
    size = n_candidates * N_CANDIDATE + N_SUMMARY
    if at + size > 2 * memory.shape[1]:
        return -1, np.inf  # no room; LearnedPolicy checks before it asks
    reference = n_candidates
    if params[PRIOR] > 0.0:
        reference, _ = strait.choose(state, tables, memory, env, params[REFERENCE:HEAD])
    obs = memory[env].view(np.float32)[at : at + size]
    observe(state, tables, env, obs)
    if reference < n_candidates:
        obs[reference * N_CANDIDATE] = CHOSEN
    action = score(params, memory[env], n_candidates)
    return action, (own.now + params[TIMER] if action == n_candidates else np.inf)
