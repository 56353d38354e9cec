"""The page of a replay of requests: what users see, how it went over time, what to know before believing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.html.charts import lines
from reports.html.page import write
from reports.html.payload import embedded
from reports.views import replay_answer as answer
from reports.views.replay_curves import distributions, over_time
from simulator.serving.serve import Served
from simulator.serving.summary import QUANTILES, as_dict


def write_replay(served: Served, file: Path) -> None:
    """Write the page of a replay."""
    write("replay.html", replay_context(served), file)


def replay_context(served: Served) -> dict[str, Any]:
    """Everything the template shows."""
    found, drawn = as_dict(served), distributions(served)
    return {
        "title": f"foretrain: requests to {served.deployment.scenario.name}",
        "name": served.deployment.scenario.name,
        "setup": answer.setup(served),
        "answer": answer.sentence(served, found),
        "columns": ("mean", *QUANTILES),
        "latencies": answer.latencies(found) if drawn is not None else [],
        "distributions": lines(drawn) if drawn is not None else None,
        "defined": answer.defined(found),
        "rates": answer.rates(found),
        "over_time": [lines(panel) for panel in over_time(served)],
        "inside": answer.inside(served, found),
        "remarks": answer.remarks(served),
        "data": embedded({"steps": [], "pair": None}),
    }
