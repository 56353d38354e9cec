"""A whole run for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from simulator.studies.campaign import Forecast, RunInterval
from simulator.units import DAY, GB


def report(found: Forecast, interval: RunInterval | None = None) -> list[RenderableType]:
    """Everything `plan` prints."""
    head = Text(f"The whole run of {found.campaign.name} on {found.gpus:,} GPUs", style="bold")
    parts: list[RenderableType] = [head, *section("Phases", phases(found))]
    remarks = [(phase.name, phase.batch, remark) for phase in found.phases for remark in phase.remarks]
    if remarks:
        table = columns("", "", "")
        for name, batch, remark in remarks:
            table.add_row("-", name, f"at {batch} sequences: {remark}")
        parts += section("What had to differ, or does not fit", table)
    published = [note("Published figures are only for comparison; nothing is fitted to them.")]
    parts += section("Parts", totals(found), *(published if found.campaign.published else []))
    if interval is not None:
        parts += section("How sure that is", between(interval), note(_BETWEEN))
    if found.goodput is not None:
        parts += section("Failures", failures(found))
    parts += section("Energy", energy(found))
    return [*parts, *section("Assumptions", assumptions(found))]


def phases(found: Forecast) -> Table:
    """A line per phase or plateau."""
    table = columns("", ">batch", ">tokens", "schedule", ">steps", ">step", ">GPU-hours", ">days", ">memory", gap=1)
    for phase in found.phases:
        table.add_row(
            phase.name,
            f"{phase.batch:,}",
            f"{phase.sequence:,}",
            phase.schedule,
            f"{phase.steps:,.0f}",
            words.seconds(phase.step),
            f"{phase.gpu_hours:,.0f}",
            f"{phase.seconds / DAY:.1f}",
            f"{phase.memory / GB:.1f} GB",
        )
    return table


def totals(found: Forecast) -> Table:
    """GPU-hours and dollars by part, next to what was published."""
    published = found.campaign.published
    headers = ["", ">GPU-hours", ">price"] + ([">published", ">difference"] if published else [])
    table = columns(*headers)
    lines = [(name, *found.part(name), published.get(name)) for name in found.parts]
    known = [figure for *_, figure in lines if figure is not None]
    whole = sum(known) if known and len(known) == len(lines) else None
    lines.append(("sum", sum(line[1] for line in lines), sum(line[2] for line in lines), whole))
    for name, hours, dollars, figure in lines:
        row = [name, f"{hours:,.0f}", words.dollars(dollars)]
        if published:
            row += [f"{figure:,.0f}", f"{100 * (hours / figure - 1):+.1f}%"] if figure else ["", ""]
        table.add_row(*row, style="bold" if name == "sum" else "")
    return table


_BETWEEN = (
    "In 8 of 10 draws, without failures. All phases share the errors; plateaus of a ramp the relative interval of one."
    " mostly: what contributes most to the variance."
)


def between(found: RunInterval) -> Table:
    """Ends of the run's time, GPU-hours and price, and what contributes most to each distinct phase."""
    table = columns("", ">from", ">median", ">to", "")
    table.add_row("days", *(f"{value / DAY:.1f}" for value in found.seconds))
    table.add_row("GPU-hours", *(f"{value:,.0f}" for value in found.gpu_hours))
    table.add_row("price", *(words.dollars(value) for value in found.dollars))
    for phase in {one.name: one for one in found.phases}.values():
        around = phase.interval
        most = next((f"mostly {one.source}, {words.percent(one.share)}" for one in around.contributions), "")
        ends = (words.seconds(value) for value in (around.p10_s, around.p50_s, around.p90_s))
        table.add_row(f"step of {phase.name}", *ends, Text(most, style="dim"))
    return table


def failures(found: Forecast) -> Table:
    """What failures take."""
    good, spec = found.goodput, found.campaign.failures
    assert good is not None
    assert spec is not None
    hours = sum(phase.gpu_hours for phase in found.phases)
    table = columns("", ">", "")
    table.add_row("failures", f"{good.failures:.0f}", f"one in {spec.mtbf_gpu_hours:,.0f} GPU-hours")
    table.add_row("checkpoints", f"every {_interval(good.interval)}", f"{spec.checkpoint_s:g} s each")
    table.add_row("goodput, expected", words.percent(good.expected), "share of the time that trains")
    span = f"90% of {spec.runs} runs: {100 * good.low:.1f} to {100 * good.high:.1f}%; seed {spec.seed}"
    table.add_row("goodput, sampled", words.percent(good.mean), span)
    table.add_row(
        "GPU-hours with failures", f"{hours / good.expected:,.0f}", f"{found.seconds / good.expected / DAY:.1f} days"
    )
    return table


def _interval(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else words.seconds(seconds)


def energy(found: Forecast) -> Text:
    """Energy of all phases, and the highest power of one."""
    kwh = sum(phase.energy.kwh for phase in found.phases)
    most = max((phase.energy for phase in found.phases), key=lambda one: one.watts)
    return Text(f"{kwh / 1e6:.2f} GWh: {most.gpu_watts:,.0f} W a GPU, {most.watts:,.0f} W with everything around it.")


def assumptions(found: Forecast) -> Table:
    """What the forecast takes for granted, a line each."""
    table = columns("", "")
    for line in found.assumptions:
        table.add_row("-", line)
    return table
