"""Published loads of experts and ranks, and what jobs take from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from reports.terminal.elements import columns, note, section
from simulator.routing.published_loads import DefaultLoads, PublishedLoad

_GATES = {
    "bias": "a bias for each expert",
    "loss": "an auxiliary loss",
    "drop": "tokens above the mean are dropped",
}
"""How a gate is balanced, in words."""


def loads(found: Sequence[PublishedLoad], taken: Sequence[DefaultLoads]) -> list[RenderableType]:
    """Both as tables."""
    table = columns("", ">max / mean", "of", "balanced by", "source")
    for one in found:
        of = f"{one.ranks} ranks" if one.per == "rank" and one.ranks else f"{one.experts} experts"
        table.add_row(
            Text(one.id, style="bold"), f"{one.max_over_mean:.2f}", of, _GATES[one.gate], Text(one.source, style="dim")
        )
    spreads = columns("balanced by", "topk_method", "cv", "", "", "microbatch_cv", "", "")
    for each in taken:
        numbers = [f"{value:g}" for value in (*each.cv, *each.microbatch_cv)]
        spreads.add_row(_GATES[each.gate], ", ".join(each.topk_methods), *numbers)
    return [
        *section("Published loads: the most loaded expert or rank over the mean", table),
        *section(
            "What training jobs take (routing.kind=published, --interval)",
            spreads,
            note("coefficients of variation of an expert's popularity: low end, as taken, high end"),
            *(note(f"{_GATES[each.gate]}: {each.why}") for each in taken),
        ),
    ]


def as_dict(found: Sequence[PublishedLoad], taken: Sequence[DefaultLoads]) -> dict[str, Any]:
    """For `--json`."""
    return {
        "schema": "foretrain.loads/1",
        "loads": [asdict(one) for one in found],
        "taken": [asdict(one) for one in taken],
    }
