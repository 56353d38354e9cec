"""One overlapped pair, op by op: a lane for compute and one for communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from reports.figures.style import WIDTH, colour_legend, new_figure
from reports.views import words
from reports.views.actions import ActionSpan
from reports.views.ops import OpSpan
from reports.views.palette import DIRECTIONS, PHASES, ink_on

LANES = ("communication", "compute")
NAMES = {
    "F": "forward",
    "B": "backward for input",
    "W": "backward for weights",
    "N": "barrier, counts",
}
_SHORT = {"attn": "ATTN", "mlp": "MLP", "dispatch": "DISPATCH", "combine": "COMBINE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Ops of one segment that follow each other on a lane [s]."""

    segment: str
    stream: str
    direction: str
    start: float
    end: float


def stretches(ops: Sequence[OpSpan]) -> list[Stretch]:
    """Neighbouring ops of one segment, joined."""
    found: list[Stretch] = []
    for stream in LANES:
        open_: Stretch | None = None
        for op in (op for op in ops if op.stream == stream):
            same = open_ is not None and (open_.segment, open_.direction) == (op.segment, op.direction)
            if open_ is not None and same and op.start - open_.end < 1e-5:
                found.pop()
                open_ = Stretch(
                    segment=op.segment, stream=stream, direction=op.direction, start=open_.start, end=op.end
                )
            else:
                open_ = Stretch(segment=op.segment, stream=stream, direction=op.direction, start=op.start, end=op.end)
            found.append(open_)
    return found


def pair_figure(ops: Sequence[OpSpan], action: ActionSpan) -> Figure:
    """The whole action above, one layer of it below, with names."""
    joined = stretches(ops)
    window = layer_window(ops, action.seconds)
    whole = window == (0.0, action.seconds)
    figure = new_figure(1.75 if whole else 2.7)
    rows = [figure.subplots()] if whole else list(figure.subplots(2, 1, height_ratios=(0.75, 1)))
    title = f"{_kind(action)} {action.text} on pipeline rank {action.rank}: {words.seconds(action.seconds)}"
    rows[0].set_title(title)
    if not whole:
        _draw(rows[0], ops, joined, (0.0, action.seconds))
        rows[1].set_title(f"One layer of it: {words.seconds(window[1] - window[0])}")
    _draw(rows[-1], ops, joined, window)
    rows[-1].set_xlabel("time since the action began [ms]")
    used = {op.direction for op in ops}
    colours = {NAMES[key]: DIRECTIONS[key] for key in NAMES if key in used}
    colour_legend(figure, {**colours, "nothing runs": PHASES["bubble"]}, loc="outside lower center", ncols=5)
    return figure


def _kind(action: ActionSpan) -> str:
    return "Overlapped pair" if action.phase == "overlapped" else words.PHASES[action.phase].capitalize()


def layer_window(ops: Sequence[OpSpan], seconds: float) -> tuple[float, float]:
    """One period in the middle of the action: from where a forward attention (or backward one) begins to the next [s].

    An attention begins behind a kernel of another segment; communication that it waits for is part of it.
    """
    for direction in ("F", "B"):
        mine = [op for op in ops if op.stream == "compute" and op.segment.endswith(f".{direction}")]
        before = ["", *(op.segment for op in mine)]
        attention = f"attn.{direction}"
        starts = [op.start for op, last in zip(mine, before, strict=False) if op.segment == attention != last]
        if len(starts) > 2:
            at = (len(starts) - 1) // 2
            return starts[at], starts[at + 1]
    return 0.0, seconds


def _draw(axes: Axes, ops: Sequence[OpSpan], joined: Sequence[Stretch], window: tuple[float, float]) -> None:
    axes.set_xlim(window[0] * 1e3, window[1] * 1e3)
    axes.set_ylim(-0.5, len(LANES) - 0.5)
    axes.set_yticks(range(len(LANES)), LANES)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    rows = [_box(lane, *window) for lane in range(len(LANES))]
    axes.add_collection(PolyCollection(rows, facecolors=PHASES["bubble"], edgecolors="none"))
    close = len({op.segment for op in ops}) and (window[1] - window[0]) < 0.05
    for key, colour in DIRECTIONS.items():
        seen = [op for op in ops if op.direction == key and op.end > window[0] and op.start < window[1]]
        boxes = [_box(LANES.index(op.stream), op.start, op.end) for op in seen]
        axes.add_collection(
            PolyCollection(boxes, facecolors=colour, edgecolors="white", linewidths=0.15 if close else 0.0)
        )
    name_segments(axes, joined, window)


def _box(lane: int, start: float, end: float) -> list[tuple[float, float]]:
    return [(start * 1e3, lane - 0.4), (end * 1e3, lane - 0.4), (end * 1e3, lane + 0.4), (start * 1e3, lane + 0.4)]


def name_segments(axes: Axes, joined: Sequence[Stretch], window: tuple[float, float]) -> None:
    """Segments by name in their lanes, where there is room, with `window` [s] as wide as the figure."""
    per_inch = (window[1] - window[0]) / (WIDTH - 1.1)
    for s in joined:
        start, end = max(s.start, window[0]), min(s.end, window[1])
        if s.direction == "N":
            continue
        name = s.segment.rpartition(".")[0] or s.segment
        text = _SHORT.get(name, name.upper())
        if (end - start) / per_inch > 0.068 * len(text) + 0.04:
            axes.text(
                (start + end) / 2 * 1e3, LANES.index(s.stream), text, ha="center", va="center", fontsize=6,
                color=ink_on(DIRECTIONS[s.direction]), clip_on=True,
                bbox={"facecolor": DIRECTIONS[s.direction], "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
