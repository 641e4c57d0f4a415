"""A picture of one scheduler: queues by priority and model, streams with progress and slack, outcomes so far.

Reads the scheduling state alone, so that it draws a simulated world and the live engine alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.scheduling.state import HIGH, LATE, MET, OUTCOMES, PRIORITIES, SchedState

WIDTH, MARGIN, ROW, HEAD = 720, 16, 26, 34
PAPER, INK, FAINT, RULE = (252, 252, 250), (40, 44, 52), (130, 136, 146), (222, 224, 228)
COLOUR = {0: (214, 96, 58), 1: (70, 122, 178)}  # high priority, low priority
LIGHT = {0: (247, 215, 203), 1: (206, 222, 238)}
GOOD, BAD = (62, 142, 92), (186, 48, 48)
FULL_QUEUE = 16  # a queue bar is full at so many requests


def _text(
    picture: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int = 13, ink=INK, anchor: str = "lm"
) -> None:
    picture.text((x, y), text, fill=ink, font=ImageFont.load_default(size), anchor=anchor)


def _bar(picture: ImageDraw.ImageDraw, x: float, y: float, width: float, share: float, light, full) -> None:
    picture.rectangle((x, y - 8, x + width, y + 8), fill=light)
    if share > 0:
        picture.rectangle((x, y - 8, x + max(width * min(share, 1.0), 1.0), y + 8), fill=full)


def _queues(picture: ImageDraw.ImageDraw, state: SchedState, models: Sequence[str], e: int, x: int, y: int) -> None:
    _text(picture, x, y, "Queues", 14)
    for p, name in enumerate(PRIORITIES):
        _text(picture, x + 112 + 110 * p, y, name, 12, COLOUR[p])
    for m, model in enumerate(models):
        at = y + ROW * (m + 1)
        _text(picture, x, at, model[:14], 12)
        for p in range(2):
            length = int(state.queue[e, p, m].length)
            left = x + 112 + 110 * p
            _bar(picture, left, at, 70, length / FULL_QUEUE, (240, 241, 243), COLOUR[p])
            _text(picture, left + 76, at, str(length), 12, INK if length else FAINT)


def _streams(
    picture: ImageDraw.ImageDraw, state: SchedState, models: Sequence[str], e: int, x: int, y: int, width: int
) -> None:
    _text(picture, x, y, "Streams", 14)
    _text(picture, x + width, y, "predicted slack", 12, FAINT, "rm")
    now = float(state.scheduler[e].now)
    for k in range(state.stream.shape[1]):
        at = y + ROW * (k + 1)
        s = state.stream[e, k]
        if not s.busy:
            _bar(picture, x, at, width - 90, 0.0, (240, 241, 243), FAINT)
            _text(picture, x + 6, at, "idle", 12, FAINT)
            continue
        p = int(s.priority)
        whole = max(float(s.finish) - float(s.start), 1e-6)
        _bar(picture, x, at, width - 90, (now - float(s.start)) / whole, LIGHT[p], COLOUR[p])
        _text(picture, x + 6, at, f"{models[s.model][:16]} x {s.n}", 12)
        slack = float(s.deadline) - float(s.finish)
        if np.isfinite(slack):
            _text(picture, x + width, at, f"{slack:+.1f} ms", 12, GOOD if slack >= 0 else BAD, "rm")


def _outcomes(picture: ImageDraw.ImageDraw, state: SchedState, e: int, y: int) -> None:
    picture.line((MARGIN, y - ROW // 2, WIDTH - MARGIN, y - ROW // 2), fill=RULE)
    for p, name in enumerate(PRIORITIES):
        at = y + ROW * p + 6
        count = state.count[e, p]
        ended = int(count.sum())
        _text(picture, MARGIN, at, f"{name} priority", 13, COLOUR[p])
        parts = [f"{OUTCOMES[o]} {count[o]}" for o in range(MET, len(OUTCOMES)) if o <= LATE + 1 or count[o]]
        _text(picture, MARGIN + 112, at, "   ".join(parts), 13)
        rate = f"{100 * (1 - count[MET] / ended):.1f} %" if ended else "-"
        _text(picture, WIDTH - MARGIN, at, f"violations {rate}", 13, INK, "rm")


def draw(state: SchedState, models: Sequence[str], e: int = 0) -> np.ndarray:
    """Draw scheduler e.

    Args:
        state: scheduling state, with finish times as of the last look (an observation looks).
        models: names.
        e: which scheduler.

    Returns:
        (height, 720, 3) uint8; the height follows from the number of models and streams.
    """
    rows = max(len(models), state.stream.shape[1]) + 1
    height = MARGIN + HEAD + ROW * (rows + 3)
    image = Image.new("RGB", (WIDTH, height), PAPER)
    picture = ImageDraw.Draw(image)
    own = state.scheduler[e]
    high = int(state.queue[e, HIGH].length.sum())
    _text(picture, MARGIN, MARGIN + 8, f"{float(own.now) / 1e3:8.3f} s", 16)
    queued = f"{int(own.n_queued)} queued ({high} high)   {int(own.n_free)} of {state.stream.shape[1]} streams free"
    _text(picture, WIDTH - MARGIN, MARGIN + 8, queued, 13, FAINT, "rm")
    top = MARGIN + HEAD + 8
    _queues(picture, state, models, e, MARGIN, top)
    _streams(picture, state, models, e, 360, top, WIDTH - MARGIN - 360)
    _outcomes(picture, state, e, top + ROW * rows + 10)
    return np.asarray(image)
