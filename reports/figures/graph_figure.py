"""The op graph of a block: lanes of ops as wide as they are long, waits between lanes, the critical path marked."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figures.pair_figure import LANES, NAMES, name_segments, stretches
from reports.figures.style import new_figure
from reports.views import words
from reports.views.graph_ops import GraphOp, graph_ops, title_of
from reports.views.palette import DIRECTIONS, PHASES
from simulator.studies.block_graph import BlockGraph

_HALF = 0.27
"""Half the height of a lane, lanes being 1 apart: waits are drawn in the room between."""
_PATH, _WAIT = "#16191d", "#8a8f98"
_Point = tuple[float, float]


def graph_figure(graphs: Sequence[BlockGraph], name: str) -> Figure:
    """The graphs of the job `name` below each other, on one scale of time."""
    figure = new_figure(0.75 + 1.6 * len(graphs))
    longest = max(shown.seconds for shown in graphs)
    used: set[str] = set()
    rows = figure.subplots(len(graphs), 1, squeeze=False)[:, 0]
    for axes, shown in zip(rows, graphs, strict=True):
        ops = graph_ops(shown)
        used |= {one.span.direction for one in ops}
        axes.set_title(f"{title_of(shown)}: {words.seconds(shown.seconds)} ({name})")
        _lanes(axes, ops, shown.seconds, longest)
        _waits(axes, ops)
        _path(axes, shown, ops)
    rows[-1].set_xlabel("time since the action began [ms]")
    _legend(figure, used)
    return figure


def _legend(figure: Figure, used: set[str]) -> None:
    handles: list[Patch | Line2D] = [
        Patch(facecolor=DIRECTIONS[key], edgecolor="none", label=NAMES[key]) for key in NAMES if key in used
    ]
    handles += [
        Patch(facecolor=PHASES["bubble"], edgecolor="none", label="nothing runs"),
        Line2D([], [], color=_WAIT, linewidth=0.8, label="waits for the other stream"),
        Line2D([], [], color=_PATH, linewidth=2.0, label="critical path"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _lanes(axes: Axes, ops: Sequence[GraphOp], seconds: float, longest: float) -> None:
    axes.set_xlim(0.0, longest * 1e3)
    axes.set_ylim(-0.5, len(LANES) - 0.5)
    axes.set_yticks(range(len(LANES)), LANES)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    idle = [_box(lane, 0.0, seconds) for lane in range(len(LANES))]
    axes.add_collection(PolyCollection(idle, facecolors=PHASES["bubble"], edgecolors="none"))
    for key, colour in DIRECTIONS.items():
        spans = [one.span for one in ops if one.span.direction == key]
        boxes = [_box(LANES.index(span.stream), span.start, span.end) for span in spans]
        axes.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors="white", linewidths=0.2))
    name_segments(axes, stretches([one.span for one in ops]), (0.0, longest))


def _box(lane: int, start: float, end: float) -> list[_Point]:
    low, high = lane - _HALF, lane + _HALF
    return [(start * 1e3, low), (end * 1e3, low), (end * 1e3, high), (start * 1e3, high)]


def _edge(op: GraphOp) -> float:
    """The edge of an op's lane that faces the other lane."""
    lane = LANES.index(op.span.stream)
    return lane + (_HALF if lane == 0 else -_HALF)


def _waits(axes: Axes, ops: Sequence[GraphOp]) -> None:
    """A line from the end of what is waited for to the start of what waits."""
    by_node = {one.node: one for one in ops}
    pairs = [(by_node[before], one) for one in ops for before, _ in one.waits]
    lines = [[(a.span.end * 1e3, _edge(a)), (b.span.start * 1e3, _edge(b))] for a, b in pairs]
    axes.add_collection(LineCollection(lines, colors=_WAIT, linewidths=0.8))


def _path(axes: Axes, shown: BlockGraph, ops: Sequence[GraphOp]) -> None:
    """A line along the critical ops, which crosses to the other lane where the path does."""
    by_node = {one.node: one for one in ops}
    points: list[_Point] = []
    for node in shown.path:
        one = by_node[node]
        points += [(one.span.start * 1e3, _edge(one)), (one.span.end * 1e3, _edge(one))]
    axes.add_line(Line2D(*zip(*points, strict=True), color=_PATH, linewidth=2.0, solid_capstyle="butt", clip_on=False))
