"""Publication-quality figures, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reports.figures.breakdown_figure import breakdown_figure, classes_figure, cost_figure, idle_figure
from reports.figures.curves_figure import Swept, panels_of, runs_figure, scaling_figure, trade_figure
from reports.figures.memory_figure import memory_figure
from reports.figures.pair_figure import pair_figure
from reports.figures.ranks_figure import ranks_figure
from reports.figures.roofline_figure import roofline_figure
from reports.figures.serving_figure import serving_figures
from reports.figures.style import save, styled
from reports.figures.timeline_figure import timeline_figure
from reports.views.actions import action_list, representative
from reports.views.idle import CAUSES, idle_by_cause
from reports.views.ops import ops_of
from reports.views.sidebyside import serves, traded
from simulator.memory import curve_of
from simulator.results.result import Result


def write_figures(result: Result, folder: Path, ranks: Collection[int] = ()) -> list[Path]:
    """Draw every figure of one simulated step into `folder`; the timeline of these pipeline `ranks` (none: all)."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with styled():
        for name, figure in figures_of(result, ranks):
            written += save(figure, folder, name)
    return written


def figures_of(result: Result, ranks: Collection[int] = ()) -> Iterator[tuple[str, Figure]]:
    """The figures of one step by name, the timeline of these pipeline `ranks` (none: all); draw them inside
    `styled()`."""
    if result.scenario.workload.serves:
        yield from serving_figures(result)
        return
    actions = action_list(result.timeline)
    chosen = representative(actions)
    ops = ops_of(result.timeline, chosen)
    step = result.metrics["step_time_s"]
    drawn = [action for action in actions if action.rank in ranks] or actions
    yield "timeline", timeline_figure(drawn, f"{result.scenario.name}: one training step, {step:.2f} s")
    yield "pair", pair_figure(ops, chosen)
    yield "breakdown", breakdown_figure(result.ranks, result.breakdown_s)
    yield "idle", idle_figure(idle_by_cause(result, actions).causes, CAUSES, step)
    yield "classes", classes_figure(result.classes, step)
    yield "cost", cost_figure(result.breakdown_s, result.metrics["run_cost_usd"])
    curve = curve_of(result.built, result.schedule, result.timeline, result.memory.worst.rank)
    yield "memory", memory_figure(curve, result.memory.capacity, f"Memory of rank {curve.rank} (highest peak)")
    if result.waits is not None:
        yield "ranks", ranks_figure(result.waits)
    yield "roofline", roofline_figure(ops, result.scenario.cluster.gpu)


def write_comparison_figures(
    titles: Sequence[str], results: Sequence[Mapping[str, Any]], varied: Mapping[str, Sequence[str]], folder: Path
) -> list[Path]:
    """Draw variants next to each other, and curves over the input that varies if that is one number."""
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        written = save(runs_figure(titles, results), folder, "runs")
        points = traded(titles, results)
        if points is not None:
            written += save(trade_figure(*points), folder, "pareto")
        line = _line(results, varied)
        if line is not None:
            (path,) = varied
            written += save(scaling_figure(path, [line]), folder, "scaling")
    return written


def _line(results: Sequence[Mapping[str, Any]], varied: Mapping[str, Sequence[str]]) -> Swept | None:
    if len(varied) != 1 or len(results) < 2:
        return None
    try:
        values = [float(value) for value in next(iter(varied.values()))]
    except ValueError:
        return None
    ordered = sorted(zip(values, results, strict=True), key=lambda pair: pair[0])
    served = serves(results)
    keys = [key for key, _, _ in panels_of(served)]
    metrics = [{key: result["metrics"][key] for key in keys} for _, result in ordered]
    return Swept(name="", serves=served, values=[value for value, _ in ordered], metrics=metrics)
