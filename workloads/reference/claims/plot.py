"""One look for all figures; matplotlib is imported only here and only when drawing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

# Okabe and Ito's palette, distinguishable without colour vision; markers and dashes tell lines apart in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", "-", "--")


def line(ax: "Axes", index: int, x: "ArrayLike", y: "ArrayLike", label: str, *, marker: bool = True) -> None:
    """Add the index-th line of a figure in its colour, marker and dash."""
    (drawn,) = ax.plot(np.asarray(x), np.asarray(y), linewidth=1.8, markersize=5, label=label)
    drawn.set(color=COLOURS[index], linestyle=DASHES[index], marker=MARKERS[index] if marker else "none")


def draw(path: Path, panels: list[Callable[["Axes"], None]]) -> str:
    """Draw panels side by side into a PNG; returns the file's name. Same numbers, same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(ax)
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path.name


def labels(ax: "Axes", title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=11, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
