"""The part of a schedule's grid around an error, with the offending steps marked."""

from collections.abc import Collection, Mapping

from simulator.schedule.action import Schedule

_ROWS = 16
_REACH = 3


def excerpt(schedule: Schedule, marks: Mapping[int, Collection[int]]) -> str:
    """The rows that hold a mark and their neighbours, each around its own first mark, as ``[step]``.

    ``marks`` holds places by rank. A rank without marks is shown around the first mark of all.
    """
    if not marks:
        return ""
    default = min(min(places) for places in marks.values() if places)
    shown = _rows_to_show(schedule.ranks, sorted(marks))
    lines = [_line(schedule, rank, marks.get(rank, ()), default) for rank in shown]
    width = max(len(label) for label, _, _ in lines)
    cell = max(len(text) for _, before, after in lines for text in before + after)
    before = max(len(texts) for _, texts, _ in lines)
    return "\n".join(
        f"{label:<{width}}  {' ' * cell * (before - len(left))}{_padded(left + right, cell)}".rstrip()
        for label, left, right in lines
    )


def _rows_to_show(ranks: int, marked: list[int]) -> list[int]:
    if ranks <= _ROWS:
        return list(range(ranks))
    wanted = {near for rank in marked[: _ROWS // 2] for near in (rank - 1, rank, rank + 1)}
    return sorted(rank for rank in wanted if 0 <= rank < ranks)


def _line(schedule: Schedule, rank: int, places: Collection[int], default: int) -> tuple[str, list[str], list[str]]:
    """Label, cells left of the centre and cells from it on."""
    row = schedule.rows[rank]
    centre = min(min(places, default=default), len(row))
    low = max(0, min(centre, len(row) - 1 - _REACH) - _REACH)
    high = min(len(row), low + 2 * _REACH + 1)
    cells = [f"[{row[place]}]" if place in places else f" {row[place]} " for place in range(low, high)]
    left, right = cells[: centre - low], cells[centre - low :]
    return (
        f"rank {rank}, step {centre}:",
        ["...", *left] if low else left,
        [*right, "..."] if high < len(row) else right,
    )


def _padded(cells: list[str], width: int) -> str:
    return "".join(f"{cell:<{width}}" for cell in cells)
