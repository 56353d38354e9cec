"""The op graph of a block for the terminal: a line a kernel sequence or op, in a column for its stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from reports.views.graph_ops import GraphOp, graph_ops, path_by_class, sentence, title_of
from reports.views.palette import DIRECTIONS
from simulator.studies.block_graph import BlockGraph

MARK = "●"
TOP = 5
"""Kernel classes of the critical path shown unless all are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One op, or the ops of one segment that follow each other on a stream and are all critical or all not."""

    name: str
    ops: tuple[GraphOp, ...]

    @property
    def seconds(self) -> float:
        """From the start of the first to the end of the last [s]."""
        return self.ops[-1].span.end - self.ops[0].span.start


def lines_of(ops: Sequence[GraphOp]) -> list[Line]:
    """Ops joined to lines, in the order of their start."""
    found: list[list[GraphOp]] = []
    open_: dict[str, list[GraphOp]] = {}
    for one in ops:
        last = open_.get(one.span.stream)
        if last is not None and _joins(last[-1], one):
            last.append(one)
        else:
            open_[one.span.stream] = [one]
            found.append(open_[one.span.stream])
    return [Line(name=mine[0].span.segment if mine[1:] else mine[0].node, ops=tuple(mine)) for mine in found]


def _joins(last: GraphOp, one: GraphOp) -> bool:
    same = (last.span.segment, last.critical) == (one.span.segment, one.critical)
    return same and not one.waits and one.span.start - last.span.end < 1e-9


def report(graphs: Sequence[BlockGraph], name: str, *, verbose: bool = False) -> list[RenderableType]:
    """Each action's lanes, and what its critical path is made of."""
    parts: list[RenderableType] = [Text(f"Op graph of a block of {name}", style="bold")]
    for shown in graphs:
        ops = graph_ops(shown)
        lines = [Line(name=one.node, ops=(one,)) for one in ops] if verbose else lines_of(ops)
        parts += section(f"{title_of(shown)} [ms]", _lanes(lines, verbose), note(sentence(shown)))
        parts += section("On its critical path [ms]", _classes(shown, verbose))
    parts.append(note("\n" + _NOTE))
    return parts


_NOTE = (
    f"{MARK}: on the critical path, the chain of ops that decides the time. slack: how much longer the others can last,"
    " all else unchanged. -v shows every op; --html draws them."
)


def _lanes(lines: Sequence[Line], verbose: bool) -> Table:
    table = columns(">start", "compute", ">time", "communication", ">time", ">slack", gap=1)
    for line in lines:
        first = line.ops[0]
        name, time = _name(line, verbose), f"{1e3 * line.seconds:.3f}"
        cells = (name, time, "", "") if first.span.stream == "compute" else ("", "", name, time)
        slack = "" if first.critical else f"{1e3 * min(one.slack for one in line.ops):.3f}"
        table.add_row(f"{1e3 * first.span.start:.3f}", *cells, slack)
    return table


def _name(line: Line, verbose: bool) -> Text:
    first = line.ops[0]
    count = "" if verbose or len(line.ops) == 1 else f" ({len(line.ops)} ops)"
    text = Text(f"{MARK if first.critical else ' '} ")
    return text.append(f"{line.name}{count}", style=DIRECTIONS[first.span.direction] if count or not verbose else "")


def _classes(shown: BlockGraph, verbose: bool) -> Table:
    table = columns("", ">time", ">share", ">kernels", gap=1)
    rows = path_by_class(shown)
    for cls, seconds, kernels in rows if verbose else rows[:TOP]:
        table.add_row(words.of_class(cls), f"{1e3 * seconds:.3f}", words.percent(seconds / shown.seconds), str(kernels))
    rest = [] if verbose else rows[TOP:]
    if rest:
        seconds = sum(row[1] for row in rest)
        count = str(sum(row[2] for row in rest))
        table.add_row(
            f"{len(rest)} other classes", f"{1e3 * seconds:.3f}", words.percent(seconds / shown.seconds), count
        )
    return table
