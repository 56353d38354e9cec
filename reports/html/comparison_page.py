"""The page of several results next to each other, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.html.page import write
from reports.html.payload import embedded, steps_payload
from reports.views import words
from reports.views.actions import ActionSpan
from reports.views.palette import PHASES
from reports.views.sidebyside import class_changes, input_differences, marked, prices, sentence, setups, table

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
        if one.actions
    ]
    pitch = max(4, min(22, 420 // max((len(payload["rows"]) for payload in steps), default=1)))
    for payload in steps:
        payload["pitch"] = pitch
    longest = max((result["metrics"]["step_time_s"] for result in results), default=1.0)
    used = [phase for phase in PHASES if any(result["breakdown_s"].get(phase, 0.0) > 1e-9 for result in results)]
    return {
        "title": "foretrain: " + (", ".join(titles) if len(titles) <= 3 else f"{len(titles)} results compared"),
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
        "failed": failed,
        "data": embedded({"steps": steps, "pair": None}),
    }
