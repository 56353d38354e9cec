"""A replay of requests: distributions of latencies, and queue, KV cache and tokens over time."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.style import new_figure, save, styled
from reports.views.replay_curves import Panel, distributions, over_time
from simulator.serving.serve import Served

WIDTHS = (1.1, 2.6, 1.1, 1.1)
"""Widths of lines in points: the second is seen behind the third, where they fall together."""


def write_replay_figures(served: Served, folder: Path) -> list[Path]:
    """Draw the figures of a replay into `folder`; distributions only where they do not depend on when one stops."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with styled():
        panel = distributions(served)
        if panel is not None:
            written += save(_alone(panel), folder, "latencies")
        written += save(_below_each_other(over_time(served)), folder, "over-time")
    return written


def _alone(panel: Panel) -> Figure:
    figure = new_figure(3.0, 5.6)
    axes = figure.subplots()
    axes.set_title(panel.title)
    _draw(axes, panel)
    for name, colour, limit in panel.limits:
        axes.axvline(limit, color=colour, lw=0.8, ls="--", label=f"limit: {name}")
    axes.set_xlabel(panel.across)
    axes.set_ylim(0, 103)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def _below_each_other(panels: list[Panel]) -> Figure:
    figure = new_figure(1.6 * len(panels))
    every = figure.subplots(len(panels), 1, sharex=True)
    for axes, panel in zip(every, panels, strict=True):
        axes.set_title(panel.title)
        _draw(axes, panel)
        axes.set_ylim(bottom=0)
        if len(panel.curves) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    every[-1].set_xlabel(panels[-1].across)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for curve, width in zip(panel.curves, WIDTHS, strict=False):
        axes.plot(curve.x, curve.y, color=curve.colour, label=curve.name, drawstyle="steps-post", lw=width)
    axes.set_ylabel(panel.up)
    if panel.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(True)
