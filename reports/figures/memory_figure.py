"""Memory of a rank over the step, stacked by group."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures.style import colour_legend, new_figure
from reports.html.memory_page import thinned
from reports.views.palette import MEMORY
from simulator.memory import GROUPS, Curve
from simulator.units import GB

COLUMNS = 600


def memory_figure(curve: Curve, capacity: float, title: str) -> Figure:
    """Areas of a step's memory under the line of what the GPU has."""
    figure = new_figure(2.6)
    axes = figure.subplots()
    times, columns = thinned(curve, COLUMNS)
    bottom = [0.0] * len(times)
    shown = {}
    for at, name in enumerate(GROUPS):
        top = [low + column[at] / GB for low, column in zip(bottom, columns, strict=True)]
        if any(column[at] for column in columns):
            axes.fill_between(times, bottom, top, step="post", color=MEMORY[name], linewidth=0)
            shown[name] = MEMORY[name]
        bottom = top
    axes.axhline(capacity / GB, color="#16191d", lw=0.9, ls="--")
    axes.text(times[-1], capacity / GB, f"{capacity / GB:.0f} GB on the GPU ", ha="right", va="bottom", fontsize=7)
    axes.set_xlim(0, times[-1])
    axes.set_ylim(0, 1.1 * max(capacity / GB, *bottom))
    axes.set_xlabel("time [s]")
    axes.set_ylabel("memory [GB]")
    axes.set_title(title)
    colour_legend(figure, shown, loc="outside lower center", ncols=len(shown))
    return figure
