"""The pipeline of one step as in papers: a row per rank, a box per action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from reports.figures.style import WIDTH, colour_legend, new_figure
from reports.views import words
from reports.views.actions import ActionSpan
from reports.views.palette import PHASES, ink_on

_BOX = 0.43
"""Half the height of a box, in rows."""
_LABEL_INCHES = 0.11
"""Width of a box that takes two digits at the smallest legible size."""


def timeline_figure(actions: Sequence[ActionSpan], title: str) -> Figure:
    """The whole step above, its beginning below, large enough to number the microbatches; rows of the ranks that have
    actions here."""
    ranks = len({a.rank for a in actions})
    step = max(a.end for a in actions)
    row = 0.17 if ranks <= 16 else max(0.03, 2.7 / ranks)
    figure = new_figure(2 * (row * ranks + 0.45) + 0.55)
    top, bottom = figure.subplots(2, 1)
    draw(top, actions, (0.0, step))
    top.set_title(title)
    window = (0.0, _beginning(actions, step))
    draw(bottom, actions, window)
    bottom.set_title(f"The first {words.seconds(window[1])}; numbers are microbatches, pairs show the forward's")
    bottom.set_xlabel("time [s]")
    shown = {a.phase for a in actions}
    names = {words.PHASES[phase]: PHASES[phase] for phase in PHASES if phase in shown}
    colour_legend(figure, {**names, "bubble": PHASES["bubble"]}, loc="outside lower center", ncols=len(names) + 1)
    return figure


def _beginning(actions: Sequence[ActionSpan], step: float) -> float:
    """How much to show so that most boxes are wide enough for a number."""
    widths = sorted(a.seconds for a in actions if a.phase in ("forward", "overlapped") and a.seconds > 0)
    if not widths:
        return step
    narrow = widths[len(widths) // 10]
    return min(step, narrow * (WIDTH - 0.6) / _LABEL_INCHES)


def draw(axes: Axes, actions: Sequence[ActionSpan], window: tuple[float, float]) -> None:
    """Boxes of the actions inside a window [s]; numbers where they fit."""
    numbers = sorted({a.rank for a in actions})
    rows = {rank: row for row, rank in enumerate(numbers)}
    actions = [replace(a, rank=rows[a.rank]) for a in actions]
    ranks = len(numbers)
    axes.set_xlim(*window)
    axes.set_ylim(ranks - 0.4, -0.6)
    axes.set_ylabel("pipeline rank")
    every = max(1, ranks // 16)
    axes.set_yticks(range(0, ranks, every), [str(rank) for rank in numbers[::every]])
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    seen = [a for a in actions if a.end > window[0] and a.start < window[1]]
    axes.add_collection(_bubbles(ranks, window))
    for phase in dict.fromkeys(a.phase for a in seen):
        boxes = [_box(a.rank, a.start, a.end) for a in seen if a.phase == phase]
        axes.add_collection(PolyCollection(boxes, facecolors=PHASES[phase], edgecolors="white", linewidths=0.15))
    _number(axes, seen, window)


def _bubbles(ranks: int, window: tuple[float, float]) -> PolyCollection:
    """The rows themselves: what no box covers is bubble."""
    rows = [_box(rank, *window) for rank in range(ranks)]
    return PolyCollection(rows, facecolors=PHASES["bubble"], edgecolors="none")


def _box(rank: int, start: float, end: float) -> list[tuple[float, float]]:
    low, high = rank - _BOX, rank + _BOX
    return [(start, low), (end, low), (end, high), (start, high)]


def _number(axes: Axes, actions: Sequence[ActionSpan], window: tuple[float, float]) -> None:
    """The microbatch in every box that has room for it."""
    ranks = 1 + max((a.rank for a in actions), default=0)
    per_inch = (window[1] - window[0]) / (WIDTH - 0.6)
    if ranks > 24:
        return
    for a in actions:
        inside = min(a.end, window[1]) - max(a.start, window[0])
        text = str(a.microbatches[0]) if a.microbatches else ""
        if text and inside >= (0.042 * len(text) + 0.015) * per_inch and inside > 0.8 * a.seconds:
            middle = (max(a.start, window[0]) + min(a.end, window[1])) / 2
            axes.text(
                middle, a.rank + 0.03, text, ha="center", va="center",
                fontsize=4.6, color=ink_on(PHASES[a.phase]), clip_on=True,
            )  # fmt: skip
