"""A run as a picture: queue lengths, what each stream copied and executed, and which deadlines were met.

Drawn from the rows of ``envs.drawing.trace_events``, which a simulated episode gives (``episode``) and a live run as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.drawing.trace_events import BatchRow, RequestRow
from envs.scheduling.state import OUTCOMES, PRIORITIES, SchedState, Tables
from envs.simulation.records import IDLE
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.files import atomic_path
from traces.measurements import Phases

Decide = Callable[[SchedState, Tables], tuple[int, float]]

COLOUR = ("#d6603a", "#467ab2")  # by priority, as in envs.drawing.frame
COPY, GOOD, BAD = "#c9ccd1", "#3e8e5c", "#ba3030"
BAR = 0.7  # height of a batch, of the distance between streams


def episode(sim: Simulator, decide: Decide) -> tuple[list[RequestRow], list[BatchRow]]:
    """Run world 0 from where it stands to its end; its requests and batches as rows of a timeline.

    Args:
        sim: one world that has begun. decide: action and wake time for scheduler 0, as ``Policy.decide``.
    """
    st, world, models = sim.state, sim.world, sim.profile.models
    streams, runs = st.stream[0], world.run[0]
    batches: list[BatchRow] = []
    flying: dict[int, tuple[Any, ...]] = {}
    actions, wakes = np.zeros(1, np.int64), np.zeros(1)
    while world.episode[0].done == 0:
        actions[0], wakes[0] = decide(st, sim.tables)
        batch, k = int(st.scheduler[0].next_batch), int(st.scheduler[0].next_stream)
        sim.step(actions, wakes)
        if int(st.scheduler[0].next_batch) > batch:
            s = streams[k]
            known = (batch, k, int(s.priority), models[s.model], int(s.n), int(s.n_high))
            flying[k] = (*known, float(s.start), float(s.predicted))
        # A stream is taken again by the next decision at the earliest: what it did until then is still noted there.
        for k in [k for k in flying if runs[k].phase == IDLE]:
            *what, start, predicted = flying.pop(k)
            copied, ended = float(runs[k].h2d_end), float(runs[k].exec_end)
            phases = Phases(start, float(runs[k].h2d_start), copied, copied, ended, float(runs[k].until))
            batches.append(BatchRow._make((*what, phases, predicted, None)))
    rows = world.request[0, : int(world.episode[0].n)]
    requests = [
        RequestRow(i, models[r.model], int(r.priority), OUTCOMES[r.outcome], float(r.arrival), float(r.start),
                   float(r.finish), float(r.deadline), int(r.batch))
        for i, r in enumerate(rows)
    ]  # fmt: skip
    return requests, batches


def draw_timeline(
    requests: Sequence[RequestRow],
    batches: Sequence[BatchRow],
    path: Path | str,
    window_ms: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Draw a run, or a window of it, into a PNG or SVG file.

    Args:
        requests: that ended. batches: that ended.
        path: file to write, whole or not at all.
        window_ms: first and last time shown; None: everything.
        title: of the picture.

    Raises:
        InputError: there is nothing to draw, or the file is of no known kind.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not requests:
        raise InputError("timeline: the run has no request; nothing to draw")
    if Path(path).suffix not in (".png", ".svg"):
        raise InputError(f"{path}: expected a file that ends in .png or .svg")
    start, end = window_ms or (0.0, max(r.finish_ms for r in requests))
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    queues, device, ends = figure.subplots(3, 1, sharex=True, height_ratios=(1.1, 2.2, 0.8))
    _queues(queues, requests)
    _streams(device, [b for b in batches if b.phases.d2h_end_ms >= start and b.phases.dispatch_ms <= end], end - start)
    _ends(ends, [r for r in requests if start <= r.finish_ms <= end])
    ends.set_xlim(start, end)
    ends.set_xlabel("time (ms)")
    queues.set_title(title, loc="left", fontsize=10)
    for axes in (queues, device, ends):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _queues(axes: Any, requests: Sequence[RequestRow]) -> None:
    for priority, name in enumerate(PRIORITIES):
        mine = [r for r in requests if r.priority == priority]
        times = np.array([r.arrival_ms for r in mine] + [r.left_queue_ms for r in mine])
        change = np.repeat([1, -1], len(mine))
        order = np.lexsort((-change, times))
        axes.step(
            times[order],
            np.cumsum(change[order]),
            where="post",
            color=COLOUR[priority],
            lw=1.2,
            label=f"{name} priority",
        )
    axes.set_ylim(0, None)
    axes.set_ylabel("queued", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _streams(axes: Any, batches: Sequence[BatchRow], shown_ms: float) -> None:
    streams = sorted({b.stream for b in batches})
    for b in batches:
        at, phases = streams.index(b.stream), b.phases
        for begin, end in ((phases.h2d_start_ms, phases.h2d_end_ms), (phases.exec_end_ms, phases.d2h_end_ms)):
            axes.barh(at, end - begin, BAR, left=begin, color=COPY)
        begin, took = phases.exec_start_ms, phases.exec_end_ms - phases.exec_start_ms
        top = at - BAR / 2  # of a mixed batch, high priority is on top
        for n, colour in zip((b.n_high, b.batch_size - b.n_high), COLOUR, strict=True):
            height = BAR * n / b.batch_size
            axes.barh(top, took, height, left=begin, align="edge", color=colour, alpha=0.75, lw=0)
            top += height
        axes.barh(at, took, BAR, left=begin, fill=False, edgecolor="white", lw=0.6)
        if took > 0.015 * shown_ms:
            axes.text(
                begin + took / 2, at, f"{b.model} x{b.batch_size}", ha="center", va="center", fontsize=7,
                color="white", rotation=0 if took > 0.09 * shown_ms else 90, clip_on=True,
            )  # fmt: skip
    axes.set_yticks(range(len(streams)), [f"stream {k}" for k in streams])
    axes.invert_yaxis()
    axes.set_ylabel("batches", fontsize=9)


def _ends(axes: Any, requests: Sequence[RequestRow]) -> None:
    for met, colour, marker, label in ((True, GOOD, "|", "deadline met"), (False, BAD, "x", "missed or dropped")):
        shown = [r for r in requests if (r.outcome == "met") == met]
        axes.scatter(
            [r.finish_ms for r in shown], [r.priority for r in shown], s=40, c=colour, marker=marker, linewidths=1.2,
            label=label,
        )  # fmt: skip
    axes.set_yticks(range(len(PRIORITIES)), PRIORITIES)
    axes.set_ylim(1.6, -0.6)
    axes.set_ylabel("ended", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 1.35))
