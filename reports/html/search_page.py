"""The page of a search: the best, the front of what cannot be bettered, and what was turned down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.html.charts import ticks
from reports.html.page import write
from reports.html.payload import embedded
from reports.views import words
from simulator.studies.search import Candidate, Confirmed, Found, Scenarios, in_confirmed_order
from simulator.units import GB

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720.0, 300.0, 48.0, 40.0, 22.0


def write_search(found: Found, confirmed: Sequence[Confirmed], file: Path) -> None:
    """Write the page of what a search found."""
    write("search.html", search_context(found, confirmed), file)


def search_context(found: Found, confirmed: Sequence[Confirmed]) -> dict[str, Any]:
    """Everything the template shows."""
    sure = {one.candidate.number: one for one in confirmed}
    best = [_row(found, one, sure) for one in in_confirmed_order(found.best, confirmed) if one.step is not None]
    return {
        "title": f"foretrain: search from {found.asked.job}",
        "job": found.asked.job,
        "overrides": list(found.asked.overrides),
        "size": found.asked.size,
        "counts": found.counts,
        "complete": found.complete,
        "rank": found.rank,
        "setup": _setup(found),
        "axes": [(axis.path, list(axis.values)) for axis in found.asked.axes],
        "best": best,
        "front": [_row(found, one, sure) for one in found.front if one.step is not None],
        "confirmed": bool(sure),
        "prices": found.prices,
        "chart": scatter(found),
        "GB": GB,
        "answer": _answer(found, best),
        "data": embedded({"steps": [], "pair": None}),
    }


def _setup(found: Found) -> str:
    """Model and GPUs of the best combination; nothing where none can run."""
    if not found.best:
        return ""
    best = Scenarios(found.asked).of(found.best[0].number)
    return words.setup(best.model.name, best.job.gpus, best.cluster.gpu.name)


def _row(found: Found, one: Candidate, sure: dict[int, Confirmed]) -> dict[str, Any]:
    engine = sure.get(one.number)
    return {
        "values": [str(value) for value in found.asked.values(one.number)],
        "step": engine.step if engine else one.step,
        "mfu": engine.mfu if engine else one.mfu or 0.0,
        "memory": one.memory or 0.0,
        "cost": engine.cost if engine else one.cost or 0.0,
        "fast": one.step if engine else None,
        "difference": engine.difference if engine else None,
    }


def _answer(found: Found, best: Sequence[dict[str, Any]]) -> str:
    if not best:
        return f"None of the {found.asked.size:,} combinations can run."
    paths = [axis.path for axis in found.asked.axes]
    chosen = ", ".join(f"{path} = {value}" for path, value in zip(paths, best[0]["values"], strict=True))
    step = best[0]["step"]
    return (
        f"Of {found.asked.size:,} combinations, {found.counts.get('ok', 0):,} can run; the best by {found.rank} is "
        f"{chosen}: {words.seconds(step)} a step, {best[0]['memory'] / GB:.1f} GB, {words.dollars(best[0]['cost'])}."
    )


def scatter(found: Found) -> dict[str, Any] | None:
    """Step time against memory of the best and the front; None where there is nothing to compare."""
    front = {one.number for one in found.front}
    shown = {one.number: one for one in [*found.best, *found.front] if one.step and one.memory}
    if len(shown) < 2:
        return None
    left, right = _around([one.step or 0.0 for one in shown.values()])
    low, top = _around([(one.memory or 0.0) / GB for one in shown.values()])

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * (step - left) / (right - left)

    def y(size: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (size - low) / (top - low))

    unit = "s" if right >= 1 else "ms"
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "base": y(low),
        "points": [
            {
                "x": x(one.step or 0.0),
                "y": y((one.memory or 0.0) / GB),
                "front": number in front,
                "name": ", ".join(str(value) for value in found.asked.values(number)),
            }
            for number, one in shown.items()
        ],
        "x": [(x(t), label) for t, label in ticks(right, 7, unit, left)],
        "y": [(y(v), label) for v, label in ticks(top, 5, start=low)],
    }


def _around(values: Sequence[float]) -> tuple[float, float]:
    """An axis that the values fill but for a margin; from zero where they lie near it."""
    least, most = min(values), max(values)
    margin = max(0.08 * (most - least), 0.02 * most)
    return (0.0 if least < 0.2 * most else least - margin), most + margin
