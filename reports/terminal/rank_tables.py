"""The ranks for which others wait, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from reports.terminal.elements import columns, note, section
from reports.views import words

if TYPE_CHECKING:
    from simulator.results.rank_waits import RankWaits

TOP = 5
"""Ranks shown unless all are asked for."""


def slowest_ranks(waits: RankWaits, unit: words.Unit, verbose: bool) -> Iterator[RenderableType]:
    """A table of ranks, the one for which others wait longest first, and what the waits are due to."""
    table = columns(">rank", ">load", ">others wait", ">waits itself", ">worst layer")
    for at in waits.slowest()[: None if verbose else TOP]:
        layer = waits.layers[int(waits.caused[at].argmax())]
        table.add_row(
            str(waits.ranks[at]),
            f"{waits.mean_load[at]:.3f}",
            unit.of(float(waits.caused[at].sum())),
            unit.of(float(waits.waited[at].sum())),
            str(layer) if layer >= 0 else "gradients",
        )
    total = sum(waits.by_cause.values())
    parts = ", ".join(
        f"{words.WAITS[cause]} {words.percent(seconds / total)}" for cause, seconds in waits.by_cause.items() if total
    )
    text = (
        "load: tokens over the mean. others wait: how long a rank with the mean load waits where this one comes last,"
        f" summed over the stages. Waits of that rank by cause: {parts or 'none'}."
    )
    yield from section(f"Ranks that others wait for [{unit.name}]", table, note(text))
