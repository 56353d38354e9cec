"""One look for all figures; matplotlib is imported only here and only when drawing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Okabe and Ito's palette, distinguishable without colour vision; markers and dashes distinguish lines in grey, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
ROW = 60  # letters that a legend of one row holds
DASHES = ("-", "--", "-.", ":", "-", "--")


def line(
    ax: Axes, index: int, x: ArrayLike, y: ArrayLike, label: str, *, marker: bool = True, width: float = 1.8
) -> None:
    """Add the index-th line of a figure in its colour, marker and dash."""
    (drawn,) = ax.plot(np.asarray(x), np.asarray(y), linewidth=width, markersize=5, label=label)
    drawn.set(color=COLOURS[index], linestyle=DASHES[index], marker=MARKERS[index] if marker else "none")


def logarithmic(ax: Axes, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """A logarithmic y axis with numbers as people write them: 0.5, 20, not 5 x 10^-1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=30))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw(path: Path, panels: list[Callable[[Axes], None]]) -> str:
    """Draw panels side by side into a PNG; returns the file's name. Same numbers, same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(ax)
        ax.grid(visible=True, alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    _legends(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # renamed once it is whole
    try:
        figure.savefig(part, format=path.suffix[1:], dpi=110, metadata={"Software": None})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.name


def _legends(figure: Figure) -> None:
    """Below each panel, or once below all where they show the same."""
    found = [ax.get_legend_handles_labels() for ax in figure.axes]
    if len(found) > 1 and all(names == found[0][1] for _, names in found):
        figure.legend(*found[0], loc="outside lower center", ncols=len(found[0][1]), frameon=False, fontsize=9)
        return
    for ax, (handles, names) in zip(figure.axes, found, strict=True):
        if handles:
            columns = len(names) if sum(map(len, names)) < ROW else 2
            ax.legend(
                handles,
                names,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.16),
                ncols=columns,
                frameon=False,
                fontsize=9,
            )


def labels(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
