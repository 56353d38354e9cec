"""A profile next to the simulation, for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from simulator.profile import Comparison

WAIT = "comm.notify"
TENFOLD = 10.0
"""Predicted over measured from which on a report says how many times it is."""


def report(found: Comparison, *, verbose: bool = False) -> list[RenderableType]:
    """The pair, its phases, the kernel classes, and what did not match."""
    return [
        _heading(found),
        *section("Overlapped pair", _pair(found), note(_PAIR_NOTE)),
        *section("Phases [ms]", _phases(found), note(_PHASES_NOTE)),
        *section("Kernel classes [ms]", _classes(found), note(_classes_note(found))),
        *section("Streams", _streams(found)),
        *([] if not verbose else section("Every op [µs]", _ops(found))),
        *section("Not matched", _unmatched(found)),
    ]


def _heading(found: Comparison) -> Text:
    recording, scenario = found.recording, found.scenario
    text = Text(f"{recording.path} against {scenario.name}", style="bold")
    matched = sum(len(one.kernels) for one in found.matched)
    return text.append(
        f"\n{len(recording.kernels):,} kernels of device {recording.device} in {words.seconds(recording.span)};"
        f" {matched:,} matched with ops on {scenario.cluster.gpu.name}",
        style="not bold",
    )


_PAIR_NOTE = (
    "Forward and backward layers against each other, from the start of the first compute kernel to the end of the last,"
    " simulated with the tokens that the profile's own gate sent to this rank."
)
_PHASES_NOTE = (
    "Kernels: time in which kernels of the phase run, predicted for what ran at the same time in the profile (of an"
    " all-to-all: without the barrier before it). Span: from first start to last end, waits included. Late: the part of"
    " it in which the CPU had not launched the next kernel yet, as at the start of a profile; it is taken out of the"
    " error."
)


def signed(error: float) -> str:
    """A relative error as a percentage with its sign; from ten times on how many times it is."""
    return f"{100 * error:+.1f} %" if error < TENFOLD - 1 else f"{1 + error:,.0f} times"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _pair(found: Comparison) -> Table:
    pair = found.pair
    table = columns("", ">measured [ms]", ">predicted [ms]", ">error")
    spans = f"span of {len(pair.periods)} layer pairs" + (f", less {_ms(pair.late)} late" if pair.late else "")
    for name, measured, predicted in (
        (spans, pair.measured - pair.late, pair.predicted),
        ("compute streams busy", pair.compute_busy, pair.predicted_compute_busy),
        ("communication busy, waits included", pair.comm_busy, pair.predicted_comm_busy),
    ):
        table.add_row(name, _ms(measured), _ms(predicted), signed(predicted / measured - 1.0) if measured else "")
    for number, layers in enumerate(pair.periods):
        if layers.forward.rows or layers.backward.rows:
            table.add_row(f"routed tokens, pair {number}", f"{layers.forward.rows} F", f"{layers.backward.rows} B", "")
    return table


def _phases(found: Comparison) -> Table:
    table = columns("", ">n", ">kernels", ">predicted", ">error", ">span", ">late", ">predicted", ">error")
    for p in found.phases:
        table.add_row(
            p.phase,
            str(p.periods),
            _ms(p.busy),
            _ms(p.predicted_busy),
            signed(p.error),
            _ms(p.span),
            _ms(p.late),
            _ms(p.predicted_span),
            signed(p.span_error),
        )
    return table


def _classes(found: Comparison) -> Table:
    coarse = found.recording.clock > 0.0
    table = columns("", ">ops", ">measured", ">predicted", ">error", ">mean |e|", *[">past clock"] * coarse)
    for c in found.classes:
        mark = " (wait)" if c.cls == WAIT else "" if c.calibrated else " *"
        row = (c.cls + mark, str(c.ops), _ms(c.measured), _ms(c.predicted), signed(c.error), words.percent(c.mape))
        table.add_row(*row, *[words.percent(c.past_clock)] * coarse)
    return table


def _classes_note(found: Comparison) -> str:
    text = "error: of the sum. mean |e|: of the errors of all ops, without signs."
    if found.recording.clock:
        text += " past clock: what half a µs a kernel does not explain: this profile has whole µs only."
    text += " Kernels side by side on two compute streams share their time."
    if any(c.cls == WAIT for c in found.classes):
        text += " comm.notify is mostly a wait for the slowest rank, which the profile of one rank cannot show."
    if any(not c.calibrated for c in found.classes):
        text += f" *: not calibrated on {found.scenario.cluster.name}."
    return text


def _streams(found: Comparison) -> Table:
    table = columns(">stream", "mostly", ">kernels", ">busy [ms]", ">of the time")
    for s in found.streams:
        table.add_row(
            str(s.stream), s.kind, f"{s.kernels:,}", _ms(s.busy), words.percent(s.busy / found.recording.span)
        )
    return table


def _ops(found: Comparison) -> Table:
    table = columns("", "phase", ">measured", ">predicted", ">error", gap=1)
    for one in found.matched:
        error = signed(one.predicted / one.measured - 1.0) if one.measured else ""
        table.add_row(
            one.span.priced.op.name,
            f"{one.span.phase} {one.span.period}",
            f"{one.measured * 1e6:.0f}",
            f"{one.predicted * 1e6:.1f}",
            error,
        )
    return table


def _unmatched(found: Comparison) -> Text:
    left = sum(k.seconds for k in found.unmatched)
    missing = [one for one in found.matched if not one.complete]
    text = f"{len(found.unmatched)} kernels of the phases, {_ms(left)} ms together, are no op of the simulation."
    if missing:
        names = ", ".join(sorted({one.span.priced.op.name for one in missing})[:6])
        text += f" Found in part: {names}."
    return Text(text)
