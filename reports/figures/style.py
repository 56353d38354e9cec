"""What all figures have in common: type, lines, legends, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.export.files import replacing

WIDTH = 7.2
"""Inches across: two columns of a paper."""

DPI = 200
"""Dots per inch of PNG files."""

METADATA: Mapping[str, dict[str, Any]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What is left out of files of each kind, so that they do not change from day to day."""

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#d9dce1",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 1.1,
    "legend.handleheight": 0.9,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "foretrain",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
}


@contextmanager
def styled() -> Iterator[None]:
    """The look of the project's figures."""
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        mpl.rcParams.update(RC)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure [inches]."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.svg and NAME.png; the same figure gives the same bytes."""
    files = [folder / f"{name}.svg", folder / f"{name}.png"]
    for file in files:
        write(figure, file)
    return files


def write(figure: Figure, file: Path) -> None:
    """Write a figure in the form its name ends in, a key of `METADATA`; the same figure gives the same bytes."""
    with replacing(file) as target:
        figure.savefig(target, format=file.suffix[1:], dpi=DPI, metadata=METADATA[file.suffix])


def colour_legend(target: Axes | Figure, colours: Mapping[str, str], **where: Any) -> None:
    """A legend of filled squares."""
    handles = [Patch(facecolor=colour, edgecolor="none", label=label) for label, colour in colours.items()]
    target.legend(handles=handles, **where)
