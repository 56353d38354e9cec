"""What a replay of requests says on the terminal: latencies, rates, queue and cache, warnings."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, listed, note, section
from reports.views import replay_answer as answer
from simulator.serving.hot_expert import HotExpert
from simulator.serving.serve import Served
from simulator.serving.summary import QUANTILES, as_dict


def report(served: Served, hot: HotExpert | None = None) -> list[RenderableType]:
    """Everything that `serve` prints, part by part."""
    found = as_dict(served)
    return [
        heading(served),
        *section("What users see [ms]", latencies(found), note(answer.defined(found))),
        *section("Rates", rates(found)),
        *(section("With and without the hot expert", changes(hot), note(answer.holders(hot))) if hot else ()),
        *section("Queue and KV cache", inside(served, found)),
        *section("Assumptions and warnings", listed(answer.remarks(served))),
    ]


def heading(served: Served) -> Text:
    """What was asked of what."""
    text = Text(f"Requests to {served.deployment.scenario.name}", style="bold")
    return text.append("\n" + "\n".join(answer.setup(served)), style="not bold")


def latencies(found: dict[str, Any]) -> Table:
    """Mean and quantiles of every latency."""
    table = columns("", ">mean", *(f">{name}" for name in QUANTILES))
    for title, values in answer.latencies(found):
        table.add_row(title, *values)
    return table


def changes(hot: HotExpert) -> Table:
    """What the hot expert changes."""
    table = columns("", ">without", ">with", ">change")
    for row in answer.changes(hot):
        table.add_row(*row)
    return table


def rates(found: dict[str, Any]) -> Table:
    """Throughput, goodput and price."""
    table = columns("", ">", "")
    for name, value, remark in answer.rates(found):
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table


def inside(served: Served, found: dict[str, Any]) -> Table:
    """Queue lengths, blocks and preemptions."""
    table = columns("", ">mean", ">most", "")
    for name, mean, most, remark in answer.inside(served, found):
        table.add_row(name, mean, most, Text(remark, style="dim"))
    return table
