"""Publication-quality figures, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from reports.figures.breakdown import breakdown_figure, classes_figure, cost_figure, idle_figure
from reports.figures.pair import pair_figure
from reports.figures.roofline import roofline_figure
from reports.figures.style import save, styled
from reports.figures.timeline import timeline_figure
from reports.views.actions import action_list, representative
from reports.views.idle import CAUSES, idle_by_cause
from reports.views.ops import ops_of
from simulator.result import Result


def write_figures(result: Result, folder: Path) -> list[Path]:
    """Draw every figure of one simulated step into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with styled():
        for name, figure in figures_of(result):
            written += save(figure, folder, name)
    return written


def figures_of(result: Result) -> Iterator[tuple[str, Figure]]:
    """The figures of one step by name; draw them inside `styled()`."""
    actions = action_list(result.timeline)
    chosen = representative(actions)
    ops = ops_of(result.timeline, chosen)
    step = result.metrics["step_time_s"]
    yield "timeline", timeline_figure(actions, f"{result.scenario.name}: one training step, {step:.2f} s")
    yield "pair", pair_figure(ops, chosen)
    yield "breakdown", breakdown_figure(result.ranks, result.breakdown_s)
    yield "idle", idle_figure(idle_by_cause(result, actions).causes, CAUSES, step)
    yield "classes", classes_figure(result.classes, step)
    yield "cost", cost_figure(result.breakdown_s, result.metrics["run_cost_usd"])
    yield "roofline", roofline_figure(ops, result.scenario.cluster.gpu)
