"""Memory of a step for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from simulator.memory import GROUPS, Measure, MemoryReport, RankMemory
from simulator.units import GB

if TYPE_CHECKING:  # its module takes a third of a second to load
    from simulator.studies.feasibility import Fix


def report(
    title: str, memory: MemoryReport, measures: Sequence[Measure] = (), advice: Sequence[Fix] = ()
) -> list[RenderableType]:
    """Everything `memory` prints, part by part."""
    worst = memory.worst
    parts: list[RenderableType] = [
        Text(f"Memory of one training step of {title}", style="bold"),
        *section("The answer", answer(memory)),
        *([] if memory.fits else section("What would make it fit", fixes(advice))),
        *section(f"Rank {worst.rank} at its peak [GB]", items(worst)),
        *section("Peak of each rank [GB]", ranks(memory), note("Equal consecutive ranks share a line.")),
    ]
    if measures:
        parts += section("What each measure saves on the worst rank [GB]", saved(measures))
    return [*parts, *section("Assumed", Text("; ".join(memory.assumptions.lines()) + "."))]


def gigabytes(value: float) -> str:
    """`74.17`."""
    return f"{value / GB:,.2f}"


def answer(memory: MemoryReport) -> Text:
    """Whether it fits, by how much, what is left free, and when the peak is."""
    worst = memory.worst
    when = f" {worst.at:.3f} s into the step," if worst.at is not None else ""
    return Text(f"{filled(memory)}\nPeak:{when} on rank {worst.rank}, during {worst.during}.")


def filled(memory: MemoryReport) -> str:
    """Whether it fits, by how much, what is left free, and how much the allocator's reserve matters."""
    low, high = memory.reserve
    kept = f", {gigabytes(memory.headroom)} GB of it left free" if memory.headroom else ""
    return (
        f"{gigabytes(memory.peak)} GB of {gigabytes(memory.capacity)} GB{kept}: {_margin(memory)}.\n"
        f"{gigabytes(memory.least)} to {gigabytes(memory.most)} GB with {low:.0%} to {high:.0%} of activations and"
        " temporary memory reserved by the allocator."
    ) + _on_host(memory)


def _on_host(memory: MemoryReport) -> str:
    """What is kept in the memory of the host, where something is."""
    if not memory.host:
        return ""
    return (
        f"\n{gigabytes(memory.host)} GB of {gigabytes(memory.host_capacity)} GB of a GPU's part of its host's memory."
    )


def fixes(advice: Sequence[Fix]) -> RenderableType:
    """Single changes that make it fit, the quickest first."""
    if not advice:
        return Text("No single change that was tried makes it fit.")
    table = columns("", ">GB", ">step")
    for fix in advice:
        table.add_row(fix.change, gigabytes(fix.candidate.memory or 0.0), words.seconds(fix.candidate.step or 0.0))
    return table


def _margin(memory: MemoryReport) -> str:
    """The verdict with its margin to what may be filled."""
    least, most = memory.usable - memory.least, memory.usable - memory.most
    if memory.answer == "fits":
        return f"fits, {gigabytes(most)} GB to spare"
    if memory.answer == "tight":
        return f"tight, from {gigabytes(least)} GB to spare to {gigabytes(-most)} GB too much"
    return f"does NOT fit, {gigabytes(-least)} GB too much"


def items(rank: RankMemory) -> Table:
    """What a rank holds at its peak."""
    table = columns("", "", ">GB", ">share")
    group = ""
    for item in rank.items:
        if item.bytes:
            shown = item.group if item.group != group else ""
            group = item.group
            table.add_row(shown, item.name, gigabytes(item.bytes), f"{item.bytes / rank.peak:.1%}")
    table.add_row("sum", "", gigabytes(rank.peak), "100.0%", style="bold")
    return table


def ranks(memory: MemoryReport) -> Table:
    """Peak of every rank by group."""
    table = columns("ranks", "stages", *(f">{name}" for name in GROUPS[:-2]), ">peak", gap=1)
    for first, last, rank in _alike(memory.ranks):
        name = f"{first}" if first == last else f"{first}-{last}"
        stages = ", ".join(map(str, rank.stages)) if first == last else "..."
        table.add_row(name, stages, *(gigabytes(rank.group(g)) for g in GROUPS[:-2]), gigabytes(rank.peak))
    return table


def _alike(ranks: Sequence[RankMemory]) -> list[tuple[int, int, RankMemory]]:
    """Consecutive ranks with the same peak to three digits."""
    out: list[tuple[int, int, RankMemory]] = []
    for rank in ranks:
        if out and gigabytes(out[-1][2].peak) == gigabytes(rank.peak):
            out[-1] = (out[-1][0], rank.rank, out[-1][2])
        else:
            out.append((rank.rank, rank.rank, rank))
    return out


def saved(measures: Sequence[Measure]) -> Table:
    """Peak without each measure; sections are of the DeepSeek-V3 report."""
    table = columns("", ">saves", ">without", "source")
    for measure in measures:
        table.add_row(
            measure.name, gigabytes(measure.saves), gigabytes(measure.peak_without), measure.source.rpartition(", ")[2]
        )
    return table
