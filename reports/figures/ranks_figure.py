"""Ranks by layers as heat maps: load, waits caused, waits suffered."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures.style import new_figure
from reports.views.words import layer_name
from simulator.results.rank_waits import RankWaits


def ranks_figure(waits: RankWaits) -> Figure:
    """Three maps, ranks downwards and layers to the right, the sync of gradients behind them."""
    figure = new_figure(2.8)
    order = sorted(range(len(waits.layers)), key=lambda at: (waits.layers[at] < 0, waits.layers[at]))
    layers = [layer_name(waits.layers[at]) for at in order]
    panels = (
        ("load [tokens over mean]", waits.load[:, order]),
        ("others wait for it [ms]", 1e3 * waits.caused[:, order]),
        ("waits for others [ms]", 1e3 * waits.waited[:, order]),
    )
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, pad=0.02)
        axes.set_title(title, fontsize=8)
        step = max(1, len(layers) // 8)
        axes.set_xticks(range(0, len(layers), step), layers[::step], fontsize=6)
        axes.set_xlabel("layer", fontsize=7)
        rows = max(1, len(waits.ranks) // 8)
        axes.set_yticks(range(0, len(waits.ranks), rows), [str(rank) for rank in waits.ranks[::rows]], fontsize=6)
    figure.axes[0].set_ylabel("rank of the group", fontsize=7)
    return figure
