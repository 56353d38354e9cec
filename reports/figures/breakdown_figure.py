"""Where the step goes: phases per rank, idle compute by cause, kernel classes, and what the run costs by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.style import colour_legend, new_figure
from reports.views import words
from reports.views.palette import BOUNDS, PHASES, SERIES
from simulator.results.metrics import ClassTime, RankTimes

TOP = 16


def breakdown_figure(ranks: Sequence[RankTimes], mean: Mapping[str, float]) -> Figure:
    """Stacked phases of every rank and of the mean rank."""
    figure = new_figure(min(7.0, 1.1 + 0.17 * (len(ranks) + 1)))
    axes = figure.subplots()
    labels = [*(str(rank.rank) for rank in ranks), "mean"]
    places = [*(float(at) for at in range(len(ranks))), len(ranks) + 0.5]
    left = [0.0] * len(places)
    shown = [phase for phase in PHASES if any(rank.phases[phase] > 1e-9 for rank in ranks)]
    for phase in shown:
        values = [*(rank.phases[phase] for rank in ranks), mean[phase]]
        axes.barh(places, values, left=left, color=PHASES[phase], height=0.82, edgecolor="white", linewidth=0.3)
        left = [a + b for a, b in zip(left, values, strict=True)]
    every = max(1, len(ranks) // 16)
    ticks = [*range(0, len(ranks), every), len(places) - 1]
    axes.set_yticks([places[at] for at in ticks], [labels[at] for at in ticks])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(0, max(left))
    axes.set_ylabel("pipeline rank")
    axes.set_xlabel("time [s]")
    axes.tick_params(left=False)
    axes.set_title("Where each rank's step goes")
    colours = {words.PHASES[phase]: PHASES[phase] for phase in shown}
    colour_legend(figure, colours, loc="outside lower center", ncols=len(colours))
    return figure


def idle_figure(causes: Mapping[str, float], names: Mapping[str, tuple[str, str]], step: float) -> Figure:
    """Compute-idle time of a mean rank by cause."""
    figure = new_figure(1.9)
    axes = figure.subplots()
    shown = [cause for cause in causes if causes[cause] > 1e-6 * step]
    values = [causes[cause] for cause in shown]
    axes.barh(range(len(shown)), values, color=SERIES[0], height=0.7)
    unit = words.unit_for(step)
    _annotate(axes, values, [f"{unit.of(v)} {unit.name}  ({words.percent(v / step)})" for v in values])
    axes.set_yticks(range(len(shown)), [names[cause][0] for cause in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("time on a mean rank [s]")
    axes.set_title(f"Why compute idles: {words.percent(sum(values) / step)} of the step")
    axes.tick_params(left=False)
    return figure


def classes_figure(classes: Sequence[ClassTime], step: float) -> Figure:
    """The most expensive kernel classes; colour shows what limits them, hatching that they are not calibrated."""
    shown = classes[:TOP]
    figure = new_figure(1.0 + 0.18 * len(shown))
    axes = figure.subplots()
    values = [item.seconds for item in shown]
    bars = axes.barh(range(len(shown)), values, color=[BOUNDS[item.bound_by] for item in shown], height=0.74)
    for bar, item in zip(bars, shown, strict=True):
        if not item.calibrated:
            bar.set_hatch("////")
            bar.set_edgecolor("white")
    _annotate(axes, values, [words.percent(value / step) for value in values])
    axes.set_yticks(range(len(shown)), [words.of_class(item.cls) for item in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("time on a mean rank [s]; compute and communication overlap")
    axes.set_title("Kernel classes by time (hatched: not calibrated on this GPU)")
    axes.tick_params(left=False)
    used = dict.fromkeys(item.bound_by for item in shown)
    colours = {words.of_bound(bound): BOUNDS[bound] for bound in used}
    colour_legend(axes, colours, loc="lower right", title="limited by", title_fontsize=7)
    return figure


def cost_figure(mean: Mapping[str, float], dollars: float) -> Figure:
    """The price of the whole run, by what the GPUs do in that time."""
    figure = new_figure(1.9)
    axes = figure.subplots()
    step = sum(mean.values())
    shown = [phase for phase in PHASES if mean[phase] > 1e-6 * step]
    values = [dollars * mean[phase] / step / 1e6 for phase in shown]
    axes.barh(range(len(shown)), values, color=[PHASES[phase] for phase in shown], height=0.7)
    _annotate(axes, values, [words.dollars(1e6 * value) for value in values])
    axes.set_yticks(range(len(shown)), [words.PHASES[phase] for phase in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("million US dollars")
    axes.set_title(f"What the run pays for: {words.dollars(dollars)}")
    axes.tick_params(left=False)
    return figure


def _annotate(axes: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """A text behind every bar, and room for it."""
    top = max(values, default=1.0)
    axes.set_xlim(0, top * 1.18)
    for at, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.text(value + 0.008 * top, at, text, va="center", fontsize=7)
