"""A serving step: one layer of both microbatches on their streams, what limits the step, what fills the memory."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from reports.figures.breakdown_figure import classes_figure
from reports.figures.roofline_figure import roofline_figure
from reports.figures.style import colour_legend, new_figure
from reports.views import words
from reports.views.ops import ops_of_task
from reports.views.palette import LIMITS, SERVED_MEMORY, STAGES, ink_on
from reports.views.stages import NAMES, StageSpan, middle_layer, stage_spans
from simulator.memory import MemoryReport
from simulator.results.result import Result
from simulator.units import GB

_TEXT = 0.045
"""Share of the width from which on a stage is named inside its box."""


def serving_figures(result: Result) -> Iterator[tuple[str, Figure]]:
    """The figures of one serving step by name; draw them inside `styled()`."""
    spans = stage_spans(result)
    ops = [op for span in spans for op in ops_of_task(result.timeline, span.task)]
    yield "timeline", layer_figure(result, spans)
    yield "limits", limits_figure(result)
    yield "classes", classes_figure(result.classes, result.metrics["step_time_s"])
    yield "memory", rank_memory_figure(result.memory)
    yield "roofline", roofline_figure(ops, result.scenario.cluster.gpu)


def layer_figure(result: Result, spans: list[StageSpan]) -> Figure:
    """A layer in the middle of the step, and what runs next to it, a row for each stream of each microbatch."""
    block, start, end = middle_layer(result, spans)
    two = any(span.microbatch for span in spans)
    rows = [(microbatch, compute) for microbatch in ((0, 1) if two else (0,)) for compute in (True, False)]
    figure = new_figure(1.0 + 0.42 * len(rows))
    axes = figure.subplots()
    seen: dict[str, str] = {}
    for at, row in enumerate(rows):
        mine = [s for s in spans if (s.microbatch, s.compute) == row and s.end > start and s.start < end]
        boxes = [_box(s, at, start) for s in mine]
        axes.add_collection(PolyCollection(boxes, facecolors=[STAGES[s.stage] for s in mine], linewidths=0))
        for span in mine:
            seen.setdefault(NAMES.get(span.segment, span.segment), STAGES[span.stage])
            left, right = max(span.start, start), min(span.end, end)
            if right - left > _TEXT * (end - start):
                name, ink = NAMES.get(span.segment, span.segment), ink_on(STAGES[span.stage])
                middle = 1e6 * ((left + right) / 2 - start)
                axes.text(middle, at, name, ha="center", va="center", fontsize=5.5, color=ink, clip_on=True)
    names = {True: "compute", False: "communication"}
    axes.set_yticks(range(len(rows)), [f"{names[c]} {m}" if two else names[c] for m, c in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1e6 * (end - start))
    axes.set_xlabel("time [µs]")
    axes.set_title(f"{result.scenario.name}: layer {block} of a step of {words.seconds(result.metrics['step_time_s'])}")
    axes.tick_params(left=False)
    colour_legend(figure, seen, loc="outside lower center", ncols=4)
    return figure


def _box(span: StageSpan, row: int, start: float) -> list[tuple[float, float]]:
    left, right, high = 1e6 * (span.start - start), 1e6 * (span.end - start), 0.36
    return [(left, row - high), (right, row - high), (right, row + high), (left, row + high)]


def limits_figure(result: Result) -> Figure:
    """What limits the step: compute kernels by their limit, communication that nothing hides, and idle time."""
    step = result.metrics["step_time_s"]
    limits = {
        key.removeprefix("bound_by_").removesuffix("_s"): value
        for key, value in result.metrics.items()
        if key.startswith("bound_by_")
    }
    figure = new_figure(0.9 + 0.22 * len(limits))
    axes = figure.subplots()
    values = [1e3 * seconds for seconds in limits.values()]
    axes.barh(range(len(limits)), values, color=[LIMITS[k] for k in limits], height=0.7)
    for at, value in enumerate(values):
        axes.text(value, at, f" {value:.3g} ms ({words.percent(value / 1e3 / step)})", va="center", fontsize=7)
    axes.set_yticks(range(len(limits)), [words.of_limit(f"bound_by_{name}_s") for name in limits])
    axes.set_ylim(len(limits) - 0.5, -0.5)
    axes.set_xlim(0, 1.22 * max(values))
    axes.set_xlabel("time of the step [ms]")
    axes.set_title(f"What limits a step of {words.seconds(step)}")
    axes.tick_params(left=False)
    return figure


def rank_memory_figure(report: MemoryReport) -> Figure:
    """What fills the memory of the rank with the highest peak, as one bar up to the capacity."""
    figure = new_figure(1.3)
    axes = figure.subplots()
    colours = SERVED_MEMORY
    left, seen = 0.0, dict[str, str]()
    for item in report.worst.items:
        if item.bytes > 0.0:
            axes.barh(0, item.bytes / GB, left=left, color=colours[item.group], height=0.7)
            left += item.bytes / GB
            seen.setdefault(item.group.replace("_", " "), colours[item.group])
    axes.axvline(report.capacity / GB, color="black", lw=1.0, ls="--")
    axes.set_yticks([])
    axes.set_xlim(0, 1.03 * max(left, report.capacity / GB))
    axes.set_xlabel("memory of a GPU [GB]; dashed: what it has")
    axes.set_title(f"{report.peak / GB:.1f} of {report.capacity / GB:.1f} GB: {report.answer}")
    colour_legend(figure, seen, loc="outside lower center", ncols=6)
    return figure
