"""Draw a schedule for the terminal: a line a rank, time from left to right.

    rank 0  F0 F1 F2 .  .  B0--- F3 B1--- .  B2--- .  B3---

A letter and a colour both show what a step is, in a palette that colour-blind people can distinguish
(Okabe and Ito 2008). Where a rank holds several stages for one microbatch, a letter behind the microbatch
says which: a for the first.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from simulator.errors import ScheduleError
from simulator.schedule.action import Action, Pair, Schedule, Step, stages_on
from simulator.schedule.analysis import UniformResult, uniform_times

if TYPE_CHECKING:
    from rich.text import Text

Detail: TypeAlias = Literal["auto", "label", "letter"]
Segment: TypeAlias = tuple[str, str]
"""Text, and the kind of step it belongs to ("" for none)."""

STYLES: Mapping[str, str] = {
    "F": "white on #0072b2",
    "B": "black on #e69f00",
    "I": "black on #f0e442",
    "W": "white on #009e73",
    "&": "white on #8f4a9e",
    ".": "dim",
    "": "",
}
_LEGEND: Mapping[str, str] = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
    "&": "F and B overlapped",
    ".": "idle",
}
_MIN_WIDTH = 40


class _Frame(NamedTuple):
    """How time becomes columns."""

    schedule: Schedule
    times: UniformResult
    slot: float
    """Time of a slot."""
    cell: int
    """Columns of a slot."""
    label: int
    """Columns of the rank's name."""
    chunks: tuple[Mapping[int, str], ...] | None
    """By rank, the letter of each stage, where the microbatch alone does not show it."""

    @property
    def slots(self) -> int:
        return max(1, ceil(self.times.makespan / self.slot - 1e-9))

    def column(self, time: float) -> int:
        return round(time / self.slot * self.cell)


def grid_text(
    schedule: Schedule,
    *,
    times: UniformResult | None = None,
    slot: float | None = None,
    width: int = 80,
    start: int = 0,
    detail: Detail = "auto",
    wrap: bool = False,
) -> str:
    """The schedule as plain text of at most ``width`` columns.

    Without ``times``, F, I and W take one slot each, B two and a pair three. With ``times``, ``slot`` is the
    time of a slot, by default that of the shortest step. ``detail`` is "label" (``F12``), "letter"
    (one column a slot) or "auto" (labels if everything fits). What does not fit right of slot ``start`` is
    left out, or with ``wrap`` drawn below.
    """
    lines = _lines(schedule, times, slot, width, start, detail, wrap)
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines) + "\n"


def grid_rich(
    schedule: Schedule,
    *,
    times: UniformResult | None = None,
    slot: float | None = None,
    width: int = 80,
    start: int = 0,
    detail: Detail = "auto",
    wrap: bool = False,
) -> "Text":
    """The same in colour, as a rich Text; arguments as for ``grid_text``."""
    from rich.text import Text

    drawn = Text(no_wrap=True)
    for line in _lines(schedule, times, slot, width, start, detail, wrap):
        for text, kind in line:
            drawn.append(text, style=STYLES[kind])
        drawn.append("\n")
    return drawn


def _lines(
    schedule: Schedule,
    times: UniformResult | None,
    slot: float | None,
    width: int,
    start: int,
    detail: Detail,
    wrap: bool,
) -> Iterator[list[Segment]]:
    frame = _frame(schedule, times, slot, width, detail)
    if not 0 <= start < frame.slots:
        raise ScheduleError(f"start {start}: the schedule has slots 0 to {frame.slots - 1}")
    room = (width - frame.label) // frame.cell
    yield [(_title(frame), "")]
    first = start
    while True:
        last = min(first + room, frame.slots)
        yield from _panel(frame, first, last)
        if last == frame.slots or not wrap:
            break
        first = last
        yield []
    yield from _legend(frame, width)
    if start > 0 or last < frame.slots:
        yield [(f"slots {start} to {last - 1} of {frame.slots}", "")]


def _frame(schedule: Schedule, times: UniformResult | None, slot: float | None, width: int, detail: Detail) -> _Frame:
    if width < _MIN_WIDTH:
        raise ScheduleError(f"width {width}: a schedule needs at least {_MIN_WIDTH} columns")
    if slot is not None and not slot > 0:
        raise ScheduleError(f"slot {slot}: the time a slot stands for is above zero")
    shown = uniform_times(schedule, f=1, i=1, w=1) if times is None else times
    unit = slot or (1.0 if times is None else _shortest(shown))
    chunks = _chunk_letters(schedule)
    cell = 2 + len(str(schedule.microbatches - 1)) + (chunks is not None)
    frame = _Frame(schedule, shown, unit, cell, len(f"rank {schedule.ranks - 1}") + 2, chunks)
    fits = frame.label + frame.slots * cell <= width
    return frame if detail == "label" or (detail == "auto" and fits) else frame._replace(cell=1)


def _shortest(times: UniformResult) -> float:
    lengths = (
        e - s for starts, ends in zip(times.starts, times.ends, strict=True) for s, e in zip(starts, ends, strict=True)
    )
    return min((length for length in lengths if length > 0), default=1.0)


def _chunk_letters(schedule: Schedule) -> tuple[Mapping[int, str], ...] | None:
    if schedule.stages <= schedule.ranks:
        return None
    return tuple({stage: chr(ord("a") + n % 26) for n, stage in enumerate(held)} for held in stages_on(schedule))


def _title(frame: _Frame) -> str:
    schedule, times = frame.schedule, frame.times
    size = f"{schedule.ranks} ranks, {schedule.stages} stages, {schedule.microbatches} microbatches"
    return f"{schedule.name}: {size}; {frame.slots} slots, {times.bubble_ratio:.1%} idle"


def _panel(frame: _Frame, first: int, last: int) -> Iterator[list[Segment]]:
    yield [(_ruler(frame, first, last), "")]
    for rank in range(frame.schedule.ranks):
        name = f"rank {rank}".ljust(frame.label)
        yield [(name, ""), *_row(frame, rank, first * frame.cell, last * frame.cell)]


def _ruler(frame: _Frame, first: int, last: int) -> str:
    """Slot numbers above the rows, on round slots."""
    wanted = ceil(8 / frame.cell)
    every = next(step for step in (1, 2, 5, 10) if step >= wanted)
    ruler = ""
    end = frame.label + (last - first) * frame.cell
    for slot in range(-(-first // every) * every, last, every):
        longer = ruler.ljust(frame.label + (slot - first) * frame.cell) + str(slot)
        ruler = longer if len(longer) <= end else ruler
    return ruler


def _row(frame: _Frame, rank: int, low: int, high: int) -> Iterator[Segment]:
    """What lies between two columns of a rank's line."""
    reached = low
    steps = zip(frame.schedule.rows[rank], frame.times.starts[rank], frame.times.ends[rank], strict=True)
    for step, start, end in steps:
        begin, finish = frame.column(start), frame.column(end)
        if finish <= low or begin >= high or begin == finish:
            continue
        if begin > reached:
            yield _idle(frame, reached, begin)
        cell = _cell(frame, rank, step, finish - begin)
        yield cell[max(low - begin, 0) : min(finish, high) - begin], _kind(step)
        reached = min(finish, high)
    if reached < high:
        yield _idle(frame, reached, high)


def _idle(frame: _Frame, begin: int, end: int) -> Segment:
    """A dot a slot."""
    return "".join("." if column % frame.cell == 0 else " " for column in range(begin, end)), "."


def _cell(frame: _Frame, rank: int, step: Step, width: int) -> str:
    if frame.cell == 1:
        return _kind(step) * width
    labels = [_label(frame, rank, part) for part in (step if isinstance(step, Pair) else (step,))]
    fill = "-" if width > frame.cell else " "
    return "&".join(labels)[: width - 1].ljust(width - 1, fill) + " "


def _label(frame: _Frame, rank: int, action: Action) -> str:
    chunk = "" if frame.chunks is None else frame.chunks[rank][action.stage]
    return f"{action.kind}{action.microbatch}{chunk}"


def _kind(step: Step) -> str:
    return "&" if isinstance(step, Pair) else step.kind


def _legend(frame: _Frame, width: int) -> Iterator[list[Segment]]:
    """The meanings of the kinds that occur, in as many lines as they need."""
    present = {_kind(step) for row in frame.schedule.rows for step in row} | {"."}
    line: list[Segment] = []
    for kind, meaning in _LEGEND.items():
        if kind not in present:
            continue
        if line and sum(len(text) for text, _ in line) + len(meaning) + 3 > width:
            yield line
            line = []
        line += [(kind, kind), (f" {meaning}  ", "")]
    yield line
