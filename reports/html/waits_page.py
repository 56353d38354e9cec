"""Of uneven ranks, on the page of a step: heat maps of rank by layer, the slowest ranks, and why others wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.views import words
from simulator.results.rank_waits import RankWaits

Array = NDArray[np.float64]

SHADES = 12
"""Steps of a map's colour, from the least value to the most."""
MOST_RANKS = 10
"""Slowest ranks in the table."""
_CELL = 10  # of the drawing's units; a map is as wide as its layers


def waits_context(waits: RankWaits | None, unit: words.Unit) -> dict[str, Any] | None:
    """What the template `step/waits.html` shows; None where all ranks are alike."""
    if waits is None:
        return None
    order = sorted(range(len(waits.layers)), key=lambda at: (waits.layers[at] < 0, waits.layers[at]))
    layers = [words.layer_name(waits.layers[at]) for at in order]
    lines = [_line(waits, at, unit) for at in range(len(waits.ranks))]
    total = sum(waits.by_cause.values())
    caused, waited = waits.caused[:, order], waits.waited[:, order]
    return {
        "maps": [
            _map("load: tokens over the mean", waits.load[:, order], lines, "{:.2f}".format),
            _map(f"others wait for it [{unit.name}]", caused, lines, unit.of),
            _map(f"waits for others [{unit.name}]", waited, lines, unit.of),
        ],
        "first_rank": waits.ranks[0],
        "last_rank": waits.ranks[-1],
        "first_layer": layers[0],
        "last_layer": layers[-1],
        "slowest": [_row(waits, at, unit) for at in waits.slowest()[:MOST_RANKS]],
        "count": len(waits.ranks),
        "causes": [
            {"name": words.WAITS[cause], "seconds": seconds, "share": seconds / total}
            for cause, seconds in waits.by_cause.items()
            if total
        ],
    }


def _row(waits: RankWaits, at: int, unit: words.Unit) -> dict[str, str]:
    """A rank in the table."""
    return {
        "rank": str(waits.ranks[at]),
        "load": f"{waits.mean_load[at]:.3f}",
        "caused": unit.of(float(waits.caused[at].sum())),
        "waited": unit.of(float(waits.waited[at].sum())),
        "layer": words.layer_name(waits.layers[int(waits.caused[at].argmax())]),
    }


def _line(waits: RankWaits, at: int, unit: words.Unit) -> str:
    row = _row(waits, at, unit)
    return (
        f"rank {row['rank']}: load {row['load']}, others wait {row['caused']} {unit.name} for it (most in layer"
        f" {row['layer']}), it waits {row['waited']} {unit.name}"
    )


def _map(title: str, values: Array, lines: list[str], text: Callable[[float], str]) -> dict[str, Any]:
    """One map. Cells of one shade are one path with its opacity, so that thousands of cells stay small; of each rank a
    line for who points at its row; the ends of the scale as text."""
    least, most = float(values.min()), float(values.max())
    span = most - least or 1.0
    paths: dict[int, list[str]] = defaultdict(list)
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            shade = min(SHADES - 1, int(SHADES * (value - least) / span))
            if shade:
                paths[shade].append(f"M{_CELL * column},{_CELL * row}h{_CELL}v{_CELL}h-{_CELL}z")
    return {
        "title": title,
        "columns": values.shape[1],
        "rows": values.shape[0],
        "cell": _CELL,
        "shades": [(shade / (SHADES - 1), "".join(found)) for shade, found in sorted(paths.items())],
        "lines": lines,
        "least": text(least),
        "most": text(most),
    }
