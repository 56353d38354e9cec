"""Ops explained, blocks summed up, and the tornado, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.terminal.kernel_tables import limit, shape, term
from reports.views import words
from simulator.results.critical_path import HOST, CriticalPath
from simulator.results.simulate import Engine
from simulator.studies.explain import BlockTime, ExplainedOp, Explanation
from simulator.studies.sensitivity import Tornado

FEW = 12
"""Up to this many ops are explained with formula and source; more are listed."""
LEAST = 5e-5
"""Change of the step below which a swing is not shown unless all are asked for."""
_BAR = 12


def report(
    found: Explanation, path: CriticalPath, tornado: Tornado | None, *, engine: Engine, verbose: bool = False
) -> list[RenderableType]:
    """Ops, blocks, critical path and sensitivity; `engine` is what simulated the step."""
    parts: list[RenderableType] = [Text(f"Ops of {found.scenario.name}", style="bold")]
    detailed = verbose or len(found.ops) <= FEW
    for kind in dict.fromkeys(one.block for one in found.ops):
        mine = [one for one in found.ops if one.block == kind]
        title = words.of_block(kind)
        parts += section(
            f"{title[0].upper()}{title[1:]} [µs]", _listed(mine, _meets_all_to_alls(found)), note(_listed_note(found))
        )
    if detailed:
        for one, blocks in _distinct(found.ops):
            parts += section(f"{one.priced.op.name} ({', '.join(blocks)})", *_detailed(one))
    parts += section("Blocks, every op alone [ms]", _blocks(found.blocks), note(_BLOCKS_NOTE))
    unit = words.unit_for(path.step_time)
    title = f"Critical path of the step [{unit.name}]"
    parts += section(title, _on_path(path, unit, verbose), note(_path_note(path, engine)))
    if tornado is not None:
        parts += section("Sensitivity of the step", _tornado(tornado, verbose), note(_tornado_note(tornado)))
    return parts


_BLOCKS_NOTE = "Of one microbatch, gaps between kernels included. n: how often the model has the block."


def _listed_note(found: Explanation) -> str:
    concurrent = "a collective of a whole node runs at the same time (gathers parameters, sums gradients)"
    if _meets_all_to_alls(found):
        concurrent = "an all-to-all runs at the same time (for an all-to-all: compute)"
    text = f"alone: nothing else runs. overlapped: {concurrent}."
    return text + (f" *: not calibrated on {found.scenario.cluster.name}." if found.uncalibrated else "")


def _meets_all_to_alls(found: Explanation) -> bool:
    """Whether the job has all-to-all kernels that compute overlaps with."""
    return found.scenario.job.layout.ep > 1


def _listed(ops: Sequence[ExplainedOp], all_to_alls: bool) -> Table:
    table = columns("", "work", ">alone", ">overlapped", "limit", gap=1)
    for one in ops:
        op, cost = one.priced.op, one.priced.cost
        count = f"{op.count} x " if op.count > 1 else ""
        table.add_row(
            op.name + ("" if cost.calibrated else " *"),
            count + short(one),
            f"{one.alone * 1e6:.1f}",
            f"{(one.concurrent if all_to_alls else one.concurrent_collective) * 1e6:.1f}",
            cost.bound_by,
        )
    return table


def short(one: ExplainedOp) -> str:
    """The work without words that the column says already."""
    text = shape(one.priced.op)
    for long, brief in ((" read and written", ""), (" fp8_block", " fp8"), (", dense", "")):
        text = text.replace(long, brief)
    return text if text != one.priced.op.name else one.priced.op.cls


def _distinct(ops: Sequence[ExplainedOp]) -> list[tuple[ExplainedOp, list[str]]]:
    """Equal ops of several blocks once, with the blocks."""
    found: dict[tuple[object, ...], tuple[ExplainedOp, list[str]]] = {}
    for one in ops:
        op = one.priced.op
        found.setdefault((op.name, op.cls, op.work, op.count), (one, []))[1].append(one.block)
    return list(found.values())


def _detailed(one: ExplainedOp) -> list[RenderableType]:
    op, cost = one.priced.op, one.priced.cost
    table = columns("", "")
    table.add_row("class", op.cls)
    table.add_row("work", shape(op))
    table.add_row("time", f"{words.seconds(cost.duration)} a kernel, limited by {limit(cost)}")
    table.add_row("formula", cost.formula)
    for name, value in cost.terms:
        table.add_row(f"  {name.removesuffix('_s')}", term(name, value))
    table.add_row("source", cost.source)
    table.add_row("calibrated", "yes" if cost.calibrated else "no")
    return [table]


def _blocks(blocks: Sequence[BlockTime]) -> Table:
    table = columns("", ">n", ">forward", ">again", ">input grad", ">weight grad", ">all-to-all", ">all", gap=1)
    for b in blocks:
        times = (b.forward, b.recomputed, b.input_gradient, b.weight_gradient, b.communication, b.total)
        table.add_row(b.kind, str(b.count), *(f"{1e3 * value:.3f}" for value in times))
    return table


_PATH_CLASSES = 10
"""Kernel classes of the critical path that are shown unless all are asked for; the others are added up."""


def _on_path(path: CriticalPath, unit: words.Unit, verbose: bool) -> Table:
    """What must get faster for the step to get faster."""
    table = columns("", ">time", ">share", ">kernels", "limited by", gap=1)
    shown = path.classes if verbose else path.classes[:_PATH_CLASSES]
    for one in shown:
        row = (unit.of(one.seconds), words.percent(one.seconds / path.step_time), f"{one.kernels:,}")
        host = one.cls == HOST
        table.add_row(words.of_class(one.cls), *(row if not host else (*row[:2], "")), words.of_bound(one.bound_by))
    rest = path.classes[len(shown) :]
    if rest:
        seconds, kernels = sum(one.seconds for one in rest), sum(one.kernels for one in rest)
        table.add_row(
            f"{len(rest)} other classes", unit.of(seconds), words.percent(seconds / path.step_time), f"{kernels:,}", ""
        )
    kernels = sum(one.kernels for one in path.classes)
    table.add_row("all: the step time", unit.of(path.step_time), words.percent(1.0), f"{kernels:,}", "", style="bold")
    return table


def _path_note(path: CriticalPath, engine: Engine) -> str:
    streams = ", ".join(f"{name} {words.percent(s / path.step_time)}" for name, s in path.by_stream().items())
    text = (
        "The chain of kernels that decides when the step ends. A class that gets faster by x % shortens the step by at"
        " most x % of its time here; a class that is not here, by nothing"
    )
    if engine == "events":
        return f"{text} but what it then leaves to others of SMs and links. By stream: {streams}."
    return f"{text}. By stream: {streams}. Without contention: --engine events sees it."


def _tornado_note(tornado: Tornado) -> str:
    how = "by events" if tornado.engine == "events" else "by the longest path, without contention: --engine events"
    how += "; ranks loaded equally" if tornado.even else ""
    return (
        f"Step time {words.seconds(tornado.base)} ({how}). Each number alone at the low and at the high end:"
        " 10 % off; a: assumed, nobody measured it, over the range that its source states. Layers stay on their stages."
        " --set takes these names."
    )


def _tornado(tornado: Tornado, verbose: bool) -> Table:
    table = columns("", "", ">low", ">high", "", gap=1)
    swings = [s for s in tornado.swings if verbose or s.width() >= LEAST * tornado.base]
    widest = max((swing.width() for swing in swings), default=0.0)
    for swing in swings:
        bar = "█" * round(_BAR * swing.width() / widest) if widest else ""
        table.add_row(
            swing.knob.path,
            "a" if swing.knob.kind == "assumed" else "",
            f"{100 * (swing.at_low / tornado.base - 1):+.2f} %",
            f"{100 * (swing.at_high / tornado.base - 1):+.2f} %",
            bar,
        )
    return table
