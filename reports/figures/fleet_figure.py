"""A fleet over a day: GPUs of each kind, and the rate of requests that they answer."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from reports.figures.style import colour_legend, new_figure, save, styled
from reports.views.palette import SERIES
from simulator.studies.sizing import Day


def write_fleet_figure(day: Day, folder: Path) -> list[Path]:
    """Draw `day.svg` and `day.png` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        return save(_figure(day), folder, "day")


def _figure(day: Day) -> Figure:
    figure = new_figure(3.2)
    rates, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    at = range(len(day.hours))
    rates.bar(at, [one.rate for one in day.hours], width=0.9, color=SERIES[2])
    rates.set_ylabel("requests/s")
    rates.set_title("Load and fleet over a day")
    prefill = [one.prefill * day.gpus_prefill for one in day.hours]
    decode = [one.decode * day.gpus_decode for one in day.hours]
    axes.bar(at, prefill, width=0.9, color=SERIES[1])
    axes.bar(at, decode, width=0.9, bottom=prefill, color=SERIES[0])
    axes.axhline(day.peak, color="black", lw=0.8, ls="--")
    axes.set_ylabel("GPUs; dashed: the most")
    axes.set_xlabel("hour")
    axes.set_xticks(at[:: max(1, len(at) // 24)], [one.hour for one in day.hours[:: max(1, len(at) // 24)]])
    for one in (rates, axes):
        one.grid(True, axis="y")
        one.tick_params(bottom=False)
    kinds = {"prefill": SERIES[1], "decode": SERIES[0]} if day.gpus_prefill else {"replicas": SERIES[0]}
    colour_legend(figure, kinds, loc="outside lower center", ncols=2)
    return figure
