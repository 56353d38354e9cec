"""What a search found as figures: every combination that can run, and those that nothing betters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from reports.figures.curves_figure import LESS, Point, front, pareto_figure
from reports.figures.style import save, styled
from reports.views.trade import TRADES
from simulator.studies.search import Candidate, Question
from simulator.units import GB

_GRID = 400
"""Points that fall together on a grid this fine are drawn once."""
_TIME = "time of a billion tokens [s]"


def write_search_figures(asked: Question, candidates: Iterable[Candidate], folder: Path) -> list[Path]:
    """Draw time against memory, and time against the price of the run where they are not in proportion; of a serving
    job throughput on a GPU against the speed of a user."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = [one for one in candidates if one.status == "ok"]
    if not ran:
        return []
    written: list[Path] = []
    if asked.serves:
        trade = TRADES[asked.workload]
        more = (trade.more, True)
        points = [Point(x=trade.x(one.by("latency")), y=one.rate or 0.0, name=str(one.number)) for one in ran]
        with styled():
            shown = _shown(asked, points, more)
            return save(pareto_figure(shown, trade.label, trade.rate_label, more), folder, "pareto")
    with styled():
        points = [Point(x=one.by("memory") / GB, y=1e9 * one.by("time"), name=str(one.number)) for one in ran]
        written += save(
            pareto_figure(_shown(asked, points), "peak memory of the most loaded rank [GB]", _TIME), folder, "pareto"
        )
        if _apart([one.by("cost") / one.by("time") for one in ran]):
            points = [Point(x=one.by("cost") / 1e6, y=1e9 * one.by("time"), name=str(one.number)) for one in ran]
            figure = pareto_figure(_shown(asked, points), "price of the run [million $]", _TIME)
            written += save(figure, folder, "pareto-price")
    return written


def _apart(ratios: Sequence[float]) -> bool:
    return max(ratios) > min(ratios) * (1 + 1e-9)


def _shown(asked: Question, points: Sequence[Point], more: tuple[bool, bool] = LESS) -> list[Point]:
    """Points to draw: the front with the values in which it differs as names, and of the others a thinned-out cloud."""
    best = front(points, more)
    values = [asked.values(int(point.name)) for point in best]
    differ = [at for at in range(len(asked.axes)) if len({line[at] for line in values}) > 1]
    paths = [asked.axes[at].path.rpartition(".")[2] for at in differ]
    named = [
        replace(point, name=", ".join(_shown_value(path, line[at]) for path, at in zip(paths, differ, strict=True)))
        for point, line in zip(best, values, strict=True)
    ]
    return [*_thinned(points, {point.name for point in best}), *named]


def _shown_value(path: str, value: str) -> str:
    """`ep 64`, but only `dualpipe`: a name needs no key, unless it says yes or no."""
    return value if value.isidentifier() and value not in ("true", "false") else f"{path} {value}"


def _thinned(points: Sequence[Point], without: set[str]) -> list[Point]:
    """One point a cell of the grid."""
    left, right = min(p.x for p in points), max(p.x for p in points)
    low, high = min(p.y for p in points), max(p.y for p in points)
    across, up = (right - left) / _GRID or 1.0, (high - low) / _GRID or 1.0
    cells = {
        (round((p.x - left) / across), round((p.y - low) / up)): Point(x=p.x, y=p.y)
        for p in points
        if p.name not in without
    }
    return list(cells.values())
