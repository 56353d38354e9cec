"""The page of a search: the best, the front of what cannot be bettered, and what was turned down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.html.charts import Dot, scatter, traded
from reports.html.page import write
from reports.html.payload import embedded
from reports.views import words
from reports.views.trade import TRADES, Traded
from simulator.studies.search import Candidate, Confirmed, Found, Scenarios, in_confirmed_order
from simulator.units import GB


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
        "chart": chart_of(found),
        "serves": found.asked.serves,
        "latency_name": {"decode": "per output token", "prefill": "to the first token"}.get(found.asked.workload),
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
        "rate": engine.rate if engine else one.rate or 0.0,
        "latency": engine.latency if engine else one.latency or 0.0,
        "fast": one.step if engine else None,
        "difference": engine.difference if engine else None,
    }


def _answer(found: Found, best: Sequence[dict[str, Any]]) -> str:
    if not best:
        return f"None of the {found.asked.size:,} combinations can run."
    paths = [axis.path for axis in found.asked.axes]
    chosen = ", ".join(f"{path} = {value}" for path, value in zip(paths, best[0]["values"], strict=True))
    first = best[0]
    reached = f"{words.seconds(first['step'])} a step, {first['memory'] / GB:.1f} GB, {words.dollars(first['cost'])}"
    if found.asked.serves:
        what = {"decode": "per output token", "prefill": "to the first token"}[found.asked.workload]
        reached = (
            f"{first['rate']:,.0f} tokens/s on each GPU, {words.seconds(first['latency'])} {what},"
            f" ${first['cost']:.3f} a million tokens, {first['memory'] / GB:.1f} GB"
        )
    limit = f" within {words.seconds(found.limit)}" if found.limit is not None else ""
    return (
        f"Of {found.asked.size:,} combinations, {found.counts.get('ok', 0):,} can run; the best by {found.rank}{limit}"
        f" is {chosen}: {reached}."
    )


def chart_of(found: Found) -> dict[str, Any] | None:
    """Step time against memory of the best and the front, of a serving job throughput against speed; None where there
    is nothing to compare."""
    front = {one.number for one in found.front}
    shown = {one.number: one for one in [*found.best, *found.front] if one.step and one.memory}
    names = {number: ", ".join(str(value) for value in found.asked.values(number)) for number in shown}
    if found.asked.serves:
        points = [
            Traded(name=names[number], rate=one.rate or 0.0, latency=one.latency or 1.0, front=number in front)
            for number, one in shown.items()
        ]
        return traded(points, TRADES[found.asked.workload])
    dots = [
        Dot(x=one.step or 0.0, y=(one.memory or 0.0) / GB, name=names[number], front=number in front)
        for number, one in shown.items()
    ]
    unit = "s" if max((dot.x for dot in dots), default=0.0) >= 1 else "ms"
    aims = "time, cost and memory"
    return scatter(dots, "step time", "peak memory of the most loaded rank [GB]", aims, unit)
