"""Curves over a varied input, runs as stacked bars, and the front of what cannot be bettered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.style import colour_legend, new_figure
from reports.views import words
from reports.views.palette import LIMITS, PHASES, SERIES
from reports.views.sidebyside import serves
from reports.views.trade import TRADES, Traded
from simulator.spec.workload import WorkloadName

PANELS = (
    ("step_time_s", "step time [s]", 1.0),
    ("tokens_per_s_per_gpu", "tokens/s on each GPU", 1.0),
    ("mfu_causal", "MFU, causal attention [%]", 100.0),
    ("bubble_ratio", "bubble [%]", 100.0),
)


SERVED = (
    ("step_time_s", "step time [s]", 1.0),
    ("tokens_per_s_per_gpu", "tokens/s on each GPU", 1.0),
    ("mfu", "MFU, causal attention [%]", 100.0),
    ("memory_bandwidth_used", "memory bandwidth used [%]", 100.0),
)


def panels_of(serves: bool) -> tuple[tuple[str, str, float], ...]:
    """Key, title and factor of each panel of a scaling figure, of training or of serving steps."""
    return SERVED if serves else PANELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One line of a scaling figure: its name, the metrics at each value of the input, and whether it serves."""

    name: str
    serves: bool = False
    values: Sequence[float]
    metrics: Sequence[Mapping[str, float]]


def scaling_figure(label: str, lines: Sequence[Swept]) -> Figure:
    """Step time, throughput, MFU and bubble (of serving, memory bandwidth) over one input."""
    figure = new_figure(3.6)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    ratios = [b / a for line in lines for a, b in zip(line.values, line.values[1:], strict=False) if a > 0]
    for axes, (key, title, factor) in zip(panels, panels_of(lines[0].serves), strict=True):
        for line, colour, marker in zip(lines, SERIES, "os^Dv<", strict=False):
            axes.plot(
                line.values, [factor * m[key] for m in line.metrics], color=colour, marker=marker, label=line.name
            )
        axes.set_ylabel(title)
        axes.set_ylim(0, 1.12 * factor * max((m[key] for line in lines for m in line.metrics), default=1.0) or 1.0)
        axes.grid(True)
        _scale(axes, lines, min(ratios, default=1.0))
    for axes in panels[2:]:
        axes.set_xlabel(label)
    if len(lines) > 1:
        panels[0].legend()
    return figure


def _scale(axes: Axes, lines: Sequence[Swept], ratio: float) -> None:
    """A logarithmic axis where values double, with the values themselves as ticks."""
    values = sorted({value for line in lines for value in line.values})
    if ratio >= 1.4 and values[0] > 0:
        axes.set_xscale("log")
    if len(values) <= 8:
        axes.set_xticks(values, [f"{value:g}" if value < 1e5 else _si(value) for value in values])
        axes.minorticks_off()


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:g}"


def runs_figure(titles: Sequence[str], results: Sequence[Mapping[str, Any]]) -> Figure:
    """Variants next to each other: the phases of a mean rank, stacked, and the step time as their background."""
    figure = new_figure(1.1 + 0.28 * len(titles))
    axes = figure.subplots()
    left = [0.0] * len(titles)
    parts, names, palette = _parts(results)
    shown = [part for part in palette if any(times.get(part, 0.0) > 1e-9 for times in parts)]
    for part in shown:
        values = [times.get(part, 0.0) for times in parts]
        axes.barh(range(len(titles)), values, left=left, color=palette[part], height=0.72)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for at, result in enumerate(results):
        step = result["metrics"]["step_time_s"]
        axes.text(step + 0.01 * max(left), at, words.seconds(step), va="center", fontsize=7)
    axes.set_yticks(range(len(titles)), list(titles))
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * max(left))
    axes.set_xlabel("time on a mean rank [s]")
    axes.set_title("Where the steps go")
    axes.tick_params(left=False)
    colours = {names[part]: palette[part] for part in shown}
    colour_legend(figure, colours, loc="outside lower center", ncols=len(colours))
    return figure


def _parts(results: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, float]], Mapping[str, str], dict[str, str]]:
    """What steps are divided into: the parts of each [s], names, and colours. Serving steps by what limits them."""
    if not serves(results):
        phases: list[Mapping[str, float]] = [result["breakdown_s"] for result in results]
        return phases, words.PHASES, dict(PHASES)
    palette = {f"bound_by_{limit}_s": colour for limit, colour in LIMITS.items()}
    parts: list[Mapping[str, float]] = [{key: result["metrics"].get(key, 0.0) for key in palette} for result in results]
    return parts, {key: words.of_limit(key) for key in palette}, palette


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate of a search: two values, and a name to show if it is on the front."""

    x: float
    y: float
    name: str = ""


LESS = (False, False)
"""Of neither axis is more better."""


def front(points: Sequence[Point], more: tuple[bool, bool] = LESS) -> list[Point]:
    """The points that no other is at least as good as in both and better in one, the best in x first. `more`: whether
    more of x, and of y, is better."""
    across, up = (-1.0 if one else 1.0 for one in more)
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (across * p.x, up * p.y)):
        if not best or up * point.y < up * best[-1].y:
            best.append(point)
    return best


def pareto_figure(points: Sequence[Point], x: str, y: str, more: tuple[bool, bool] = LESS) -> Figure:
    """All candidates, and the front in colour; `x` and `y` are labels with units, `more` is as of `front`."""
    figure = new_figure(3.2, 5.0)
    axes = figure.subplots()
    axes.scatter([p.x for p in points], [p.y for p in points], s=9, color="#b3b9c2", linewidths=0, label="candidates")
    best = front(points, more)
    axes.step([p.x for p in best], [p.y for p in best], where="post", color=SERIES[0], lw=1.0)
    axes.scatter([p.x for p in best], [p.y for p in best], s=20, color=SERIES[0], zorder=3, label="not bettered")
    for point in best:
        axes.annotate(
            point.name, (point.x, point.y), xytext=(4, 4), textcoords="offset points", fontsize=6, clip_on=False
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(0.12)
    axes.grid(True)
    axes.legend(loc="best" if any(more) else "upper right")
    return figure


def trade_figure(workload: WorkloadName, layouts: Sequence[Traded]) -> Figure:
    """Throughput on a GPU against the speed of a user, of serving steps."""
    trade = TRADES[workload]
    points = [Point(x=trade.x(one.latency), y=one.rate, name=one.name if one.front else "") for one in layouts]
    return pareto_figure(points, trade.label, trade.rate_label, (trade.more, True))
