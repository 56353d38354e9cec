"""The page of several results next to each other, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.html.charts import traded as trade_chart
from reports.html.page import write
from reports.html.payload import embedded, steps_payload
from reports.views import words
from reports.views.actions import ActionSpan
from reports.views.palette import LIMITS, PHASES
from reports.views.sidebyside import (
    class_changes,
    input_differences,
    marked,
    prices,
    sentence,
    serves,
    setups,
    table,
    traded,
)
from reports.views.trade import TRADES

MOST_CLASSES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A result under a title, and its actions if its timeline is to be drawn (saved results have none)."""

    title: str
    result: dict[str, Any]
    actions: Sequence[ActionSpan] = ()


def write_comparison(shown: Sequence[Shown], file: Path, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page; `failed` are (title, reason) of variants without a result."""
    write("comparison.html", comparison_context(shown, failed), file)


def comparison_context(shown: Sequence[Shown], failed: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Everything the template shows."""
    shown = [replace(one, title=marked(one.title, one.result)) for one in shown]
    titles, results = [one.title for one in shown], [one.result for one in shown]
    steps = [
        steps_payload(f"steps-{at}", one.actions, one.result["metrics"]["step_time_s"], one.result["stages"])
        for at, one in enumerate(shown)
        if one.actions and not serves([one.result])  # a serving step is one action
    ]
    pitch = max(4, min(22, 420 // max((len(payload["rows"]) for payload in steps), default=1)))
    for payload in steps:
        payload["pitch"] = pitch
    longest = max((result["metrics"]["step_time_s"] for result in results), default=1.0)
    if serves(results):
        shown = [replace(one, result=one.result | {"breakdown_s": limits_of(one.result)}) for one in shown]
    used = [phase for phase in PHASES if any(result["breakdown_s"].get(phase, 0.0) > 1e-9 for result in results)]
    return {
        "title": "foretrain: " + (", ".join(titles) if len(titles) <= 3 else f"{len(titles)} results compared"),
        "serves": False,
        "shown": shown,
        "titles": titles,
        "setups": setups(results),
        "answer": sentence(titles, results) if results else "None of the variants can run.",
        "metrics": table(results),
        "differences": input_differences(results),
        "classes": class_changes(results)[:MOST_CLASSES],
        "longest": longest,
        "unit": words.unit_for(longest),
        "phases": used,
        "legend": [(words.PHASES[phase], PHASES[phase]) for phase in used if phase != "bubble"],
        "prices": prices(results),
        "trade": _trade(titles, results),
        **_limits(results),
        "failed": failed,
        "data": embedded({"steps": steps, "pair": None}),
    }


def _trade(titles: Sequence[str], results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Throughput against speed of serving steps; None of others."""
    found = traded(titles, results)
    return None if found is None else trade_chart(found[1], TRADES[found[0]])


def limits_of(result: dict[str, Any]) -> dict[str, float]:
    """What limits a serving step -> its time [s]."""
    return {key: value for key, value in result["metrics"].items() if key.startswith("bound_by_")}


def _limits(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the template shows of serving steps in place of phases; nothing of others."""
    if not serves(results):
        return {}
    used = dict.fromkeys(key for result in results for key in limits_of(result))
    colours = {key: LIMITS.get(key.removeprefix("bound_by_").removesuffix("_s"), "var(--bar)") for key in used}
    names = {key: words.of_limit(key) for key in used}
    legend = [(names[key], colours[key]) for key in used]
    return {"phases": list(used), "PHASES": names, "COLOURS": colours, "legend": legend, "serves": True}
