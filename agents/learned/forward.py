"""``agents.learned.network.CandidateNet`` without torch: compiled, allocating nothing, reading weights from one vector.

Numbers are float32, as the network was trained in; they lie in the float64 vector and memory that every policy has, two per
place. Matrices lie input by input, so that the inner loops run over outputs that lie side by side: the compiler turns them
into vector instructions. The input normalisation is folded into the first layers. The policy's own memory holds Strait's,
scratch, the logits and the observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from agents.policies import strait
from agents.policies.base import MEMORY_SIZE
from agents.policies.strait import StraitParams
from envs.scheduling.candidates import batches_on_next_core, candidate_of, has_room
from envs.scheduling.forecast import in_flight
from envs.scheduling.jit import inlined, njit
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, VALID, observation_size, observe
from envs.scheduling.rates import deferral_ms

# Head of the vector: width, deferral timer in mean solo latencies, batches per core, logit of Strait's choice. Strait's
# parameters follow, then the weights.
HIDDEN, DEFER_AFTER, MAX_BATCHES_PER_CORE, STRAIT_BONUS, STRAIT = range(5)
HEAD = STRAIT + len(fields(StraitParams))
# VALID of the candidate that Strait would choose (agents.training.ppo.strait_bonus); 1 of any other that is valid.
CHOSEN = 2.0
# Vectors of scratch, each ``hidden`` wide: the summary's embedding, what it adds to a candidate's, two layers of each of two
# candidates, sum and maximum of all embeddings, the hidden layer of DEFER; behind them places (int32) of a layer's or
# a candidate's numbers that are not zero.
SUMMARY, CONTEXT, LAYER, LAYER_TOO, EMBEDDING, EMBEDDING_TOO, TOTAL, LARGEST, DEFER, PLACES = range(10)
N_SCRATCH = 10  # and N_CANDIDATE places more

CACHE_LINE_BYTES = 64
ZERO = np.float32(0.0)
# Mean solo latencies; a deadline is at most 16 of its own model's, and some models take six times the mean.
MOST_SLACK = 100.0
LEAST = np.float32(-np.inf)


@inlined
def _logits_at(hidden):
    """Place of the logits in the memory's float32 numbers, behind Strait's memory and the scratch."""
    return 2 * MEMORY_SIZE + N_SCRATCH * hidden + N_CANDIDATE


def aligned_zeros(*shape: int) -> np.ndarray:
    """Zeros that begin with a line of the processor's cache, as NumPy's do by chance only.

    A decision takes 4 % longer where vector instructions straddle two lines.
    """
    size = math.prod(shape)
    whole = np.zeros(size + CACHE_LINE_BYTES // 8)
    begin = -whole.ctypes.data % CACHE_LINE_BYTES // 8
    return whole[begin : begin + size].reshape(shape)


def memory_size(hidden: int, n_candidates: int) -> int:
    """Floats of memory that a decision among ``n_candidates`` needs."""
    return (_logits_at(hidden) + n_candidates + 1 + observation_size(n_candidates) + 1) // 2


def logits_of(memory: np.ndarray, hidden: int, n_candidates: int) -> np.ndarray:
    """The logits (A,) that ``score`` left in ``memory``; a view."""
    at = _logits_at(hidden)
    return memory.view(np.float32)[at : at + n_candidates + 1]


def observation_of(memory: np.ndarray, hidden: int, n_candidates: int) -> np.ndarray:
    """Where in ``memory`` ``score`` reads the observation; a view."""
    at = _logits_at(hidden) + n_candidates + 1
    return memory.view(np.float32)[at : at + observation_size(n_candidates)]


def pack(
    weights: Mapping[str, np.ndarray], defer: float, max_batches_per_core: float = 0.0, caution: float = 1.0
) -> np.ndarray:
    """The weights of a ``CandidateNet`` (its state dict as arrays) as one vector for ``choose``.

    Args:
        weights: arrays by name; the value head is not needed.
        defer: mean solo latencies after which a deferral ends, if no event ends it before.
        max_batches_per_core: batches that may share a core where the network decides; 0: no limit.
        caution: factor on the logit that Strait's choice begins with.
    """
    w = {k: np.array(v, np.float64) for k, v in weights.items()}
    hidden = w["summary.weight"].shape[0]
    for layer in ("summary", "candidate"):
        w[f"{layer}.weight"] /= w[f"{layer}_std"]
        w[f"{layer}.bias"] -= w[f"{layer}.weight"] @ w[f"{layer}_mean"]
    # The candidates' bias goes into what the summary adds to them.
    w["context.bias"] = w["candidate.bias"]
    w["candidate.bias"] = np.zeros(0)
    parts = []
    for layer in ("summary", "context", "candidate", "embed", "score", "defer", "defer_out"):
        parts += [w[f"{layer}.bias"], w[f"{layer}.weight"].T.ravel()]
    flat = np.concatenate(parts).astype(np.float32)
    packed = aligned_zeros(HEAD + (len(flat) + 1) // 2)
    packed[:STRAIT] = hidden, defer, max_batches_per_core, caution * w["strait_bonus"][0]
    packed[STRAIT:HEAD] = w["strait"]
    packed[HEAD:].view(np.float32)[: len(flat)] = flat
    return packed


@inlined
def _add_product(w, at, x, y):
    """Add to y (n_out,) the product of x (n_in,) and the matrix at w[at:], (n_in, n_out)."""
    n = y.shape[0]
    i = 0
    # Eight inputs at a time: each output is loaded and stored once for all of them.
    while i + 8 <= x.shape[0]:
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        rows = w[at + i * n : at + (i + 8) * n]
        for j in range(n):
            low = x0 * rows[j] + x1 * rows[n + j] + x2 * rows[2 * n + j] + x3 * rows[3 * n + j]
            high = x4 * rows[4 * n + j] + x5 * rows[5 * n + j] + x6 * rows[6 * n + j] + x7 * rows[7 * n + j]
            y[j] += low + high
        i += 8
    while i < x.shape[0]:
        row = w[at + i * n : at + (i + 1) * n]
        for j in range(n):
            y[j] += x[i] * row[j]
        i += 1


@inlined
def _add_two_products(w, at, x, u, y, v, places):
    """Add to y the product of x, and to v that of u, and the matrix at w[at:], (n_in, n_out), which is read once for both.

    Of a rectified layer two thirds are zeros, mostly the same ones in both: their rows are not read. ``places`` (n_in,) int32
    is scratch for where the others are.
    """
    n = y.shape[0]
    n_in = 0
    for i in range(x.shape[0]):
        # Kept if the next is not written over it: which are zero looks random, and branches on it would be mispredicted.
        places[n_in] = i
        n_in += int(x[i] != ZERO) | int(u[i] != ZERO)
    k = 0
    # Three inputs at a time: with four, the compiler would need more checks that nothing overlaps than it makes.
    while k + 3 <= n_in:
        a, b, c = places[k], places[k + 1], places[k + 2]
        row_a = w[at + a * n : at + (a + 1) * n]
        row_b = w[at + b * n : at + (b + 1) * n]
        row_c = w[at + c * n : at + (c + 1) * n]
        x_a, x_b, x_c, u_a, u_b, u_c = x[a], x[b], x[c], u[a], u[b], u[c]
        for j in range(n):
            y[j] += x_a * row_a[j] + x_b * row_b[j] + x_c * row_c[j]
            v[j] += u_a * row_a[j] + u_b * row_b[j] + u_c * row_c[j]
        k += 3
    while k < n_in:
        i = places[k]
        row = w[at + i * n : at + (i + 1) * n]
        for j in range(n):
            y[j] += x[i] * row[j]
            v[j] += u[i] * row[j]
        k += 1


@inlined
def _dot(x, y):
    """Inner product of two vectors, in four partial sums that do not wait for each other."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    i = 0
    while i + 4 <= x.shape[0]:
        a += x[i] * y[i]
        b += x[i + 1] * y[i + 1]
        c += x[i + 2] * y[i + 2]
        d += x[i + 3] * y[i + 3]
        i += 4
    while i < x.shape[0]:
        a += x[i] * y[i]
        i += 1
    return (a + b) + (c + d)


@inlined
def _dense(w, at, x, y):
    """Let y (n_out,) be the rectified layer at w[at:] (bias, then matrix) of x (n_in,)."""
    for j in range(y.shape[0]):
        y[j] = w[at + j]
    _add_product(w, at + y.shape[0], x, y)
    _rectify(y)


@inlined
def _rectify(y):
    for j in range(y.shape[0]):
        y[j] = ZERO if y[j] < ZERO else y[j]  # max would not become a vector instruction


@njit
def score(params, memory, n_candidates):
    """Logits of all actions from the observation in ``memory``, written before it; -inf where not valid.

    Args:
        params: packed weights.
        memory: (memory_size,) of one scheduler.
        n_candidates: actions without DEFER.

    Returns:
        Index of the action with the largest logit, DEFER being ``n_candidates``.
    """
    h = int(params[HIDDEN])
    w = params[HEAD:].view(np.float32)
    numbers = memory.view(np.float32)
    bonus = np.float32(params[STRAIT_BONUS])
    # Where each layer begins.
    context_at = h + N_SUMMARY * h
    candidate_at = context_at + h + h * h
    embed_at = candidate_at + N_CANDIDATE * h
    score_at = embed_at + h + h * h
    defer_at = score_at + 1 + h
    out_at = defer_at + h + 3 * h * h
    scratch = numbers[2 * MEMORY_SIZE : _logits_at(h)]
    summary = scratch[SUMMARY * h : (SUMMARY + 1) * h]
    context = scratch[CONTEXT * h : (CONTEXT + 1) * h]
    layer = scratch[LAYER * h : (LAYER + 1) * h]
    layer_too = scratch[LAYER_TOO * h : (LAYER_TOO + 1) * h]
    embeddings = scratch[EMBEDDING * h : (EMBEDDING_TOO + 1) * h]
    total = scratch[TOTAL * h : (TOTAL + 1) * h]
    largest = scratch[LARGEST * h : (LARGEST + 1) * h]
    places = memory.view(np.int32)[2 * MEMORY_SIZE + PLACES * h : _logits_at(h)]
    logits = numbers[_logits_at(h) : _logits_at(h) + n_candidates + 1]
    obs = numbers[_logits_at(h) + n_candidates + 1 :]
    _dense(w, 0, obs[n_candidates * N_CANDIDATE : n_candidates * N_CANDIDATE + N_SUMMARY], summary)
    for j in range(h):
        context[j] = w[context_at + j]
        total[j] = ZERO
        largest[j] = ZERO
    _add_product(w, context_at + h, summary, context)
    n_valid = 0
    strait_defers = True
    best = n_candidates
    best_logit = LEAST
    for i in range(n_candidates):
        logits[i] = LEAST
    i = _next_valid(obs, -1, n_candidates)
    while i < n_candidates:
        too = _next_valid(obs, i, n_candidates)
        n_here = 2 if too < n_candidates else 1
        row = obs[i * N_CANDIDATE : (i + 1) * N_CANDIDATE]
        row_too = obs[too * N_CANDIDATE : (too + 1) * N_CANDIDATE] if n_here == 2 else row
        for j in range(h):
            layer[j] = context[j]
            layer_too[j] = context[j]
            embeddings[j] = w[embed_at + j]
            embeddings[h + j] = w[embed_at + j]
        _add_two_products(w, candidate_at, row, row_too, layer, layer_too, places)
        _rectify(layer)
        _rectify(layer_too)
        _add_two_products(w, embed_at + h, layer, layer_too, embeddings[:h], embeddings[h:], places)
        _rectify(embeddings)
        for one in range(n_here):
            action = too if one == 1 else i
            embedding = embeddings[one * h : (one + 1) * h]
            for j in range(h):
                total[j] += embedding[j]
                largest[j] = embedding[j] if embedding[j] > largest[j] else largest[j]
            logit = w[score_at] + _dot(w[score_at + 1 : defer_at], embedding)
            if obs[action * N_CANDIDATE + VALID] > CHOSEN - 0.5:
                logit += bonus
                strait_defers = False
            logits[action] = logit
            if logit > best_logit:
                best_logit = logit
                best = action
        n_valid += n_here
        i = _next_valid(obs, too, n_candidates)
    logits[n_candidates] = _defer_logit(w, defer_at, out_at, scratch, h, n_valid)
    if strait_defers:
        logits[n_candidates] += bonus
    # Not "DEFER's > best": with weights that give nan, no comparison holds and the safe choice is DEFER.
    return best if best_logit >= logits[n_candidates] else n_candidates


@inlined
def _next_valid(obs, after, n_candidates):
    """The valid candidate behind ``after``; at least ``n_candidates`` where there is none."""
    i = after + 1
    while i < n_candidates and obs[i * N_CANDIDATE + VALID] < 0.5:
        i += 1
    return i


@inlined
def _defer_logit(w, defer_at, out_at, scratch, h, n_valid):
    """Logit of DEFER from the summary's embedding and the mean and maximum of the candidates'."""
    hidden = scratch[DEFER * h : (DEFER + 1) * h]
    total = scratch[TOTAL * h : (TOTAL + 1) * h]
    for j in range(h):
        hidden[j] = w[defer_at + j]
        total[j] /= np.float32(max(n_valid, 1))
    matrix_at = defer_at + h
    _add_product(w, matrix_at, scratch[SUMMARY * h : (SUMMARY + 1) * h], hidden)
    _add_product(w, matrix_at + h * h, total, hidden)
    _add_product(w, matrix_at + 2 * h * h, scratch[LARGEST * h : (LARGEST + 1) * h], hidden)
    logit = w[out_at]
    for j in range(h):
        logit += w[out_at + 1 + j] * max(hidden[j], ZERO)
    return logit


@inlined
def _can_wait_long(state, tables, env, action):
    """Whether the first request of a candidate has more slack than any in training: nothing was learned of such."""
    priority, model, _ = candidate_of(tables, state.queue.shape[2], action)
    deadline = state.entry[env, priority, model, state.queue[env, priority, model].head].deadline
    return deadline - state.scheduler[env].now > MOST_SLACK * tables.device[env % tables.solo.shape[0]].unit_ms


@njit
def choose(state, tables, memory, env, params):
    """One decision: ask Strait, observe, score, take the best; where a core would be shared, Strait's is final."""
    n_candidates = 2 * state.queue.shape[2] * tables.size.shape[0]
    own = state.scheduler[env]
    if own.n_queued == 0 or not has_room(state, tables, env):
        return n_candidates, np.inf
    choice, wake = strait.choose(state, tables, memory, env, params[STRAIT:HEAD])
    if params[MAX_BATCHES_PER_CORE] > 0.0 and batches_on_next_core(state, env) > params[MAX_BATCHES_PER_CORE]:
        return choice, wake  # in training no batch shared a core; Strait knows when one should
    at = _logits_at(int(params[HIDDEN])) + n_candidates + 1
    n_features = n_candidates * N_CANDIDATE + N_SUMMARY
    if at + n_features > 2 * memory.shape[1]:
        return -1, np.inf  # no room; LearnedPolicy checks before it asks
    obs = memory[env].view(np.float32)[at : at + n_features]
    observe(state, tables, env, obs)
    if choice < n_candidates:
        obs[choice * N_CANDIDATE + VALID] = CHOSEN
    action = score(params, memory[env], n_candidates)
    # On an idle device a deferral can only lose what is there, and what it gains hangs on arrivals that may not come.
    idle = in_flight(state, env) == 0
    if action == n_candidates and choice < n_candidates and (idle or _can_wait_long(state, tables, env, choice)):
        action = choice
    if action < n_candidates:
        # Which of those that can wait for long is a matter of throughput, which Strait knows more of.
        if choice < n_candidates and _can_wait_long(state, tables, env, action):
            action = choice
        return action, np.inf
    return action, own.now + deferral_ms(tables, env % tables.solo.shape[0], params[DEFER_AFTER])
