"""A profile without marks of layers next to the forecast of a step, for the terminal."""

from __future__ import annotations

import re

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.terminal.profiling.pair_tables import signed
from reports.views import words
from simulator.profile import StepComparison
from simulator.profile.phases import NAMES
from simulator.profile.scopes import BACKWARD
from simulator.profile.step import MARKS

FEW = 0.5
"""Part of the kernel time without a match above which a report asks whether it is the right job."""
LISTED = 8
"""Kernels without a match that are listed."""

_PHASES_NOTE = (
    "Kernel time by phase, communication apart. A phase is where a kernel was launched; recomputation counts as"
    " backward. Concurrent kernels count each with its own time, communication with its waiting for other ranks."
)


def report(found: StepComparison, *, verbose: bool = False) -> list[RenderableType]:
    """Step, phases, families, and what did not match."""
    return [
        _heading(found),
        *section("Step [ms]", _step(found), *(note(text) for text in _remarks(found))),
        *section("Phases [ms]", _phases(found), note(_PHASES_NOTE)),
        *section("Kernel families [ms]", _families(found), note("Calls: kernels of a step, or of the part of it.")),
        *section("Not matched [ms]", _strangers(found, len(found.strangers) if verbose else LISTED)),
    ]


def _heading(found: StepComparison) -> Text:
    recording, scenario = found.recording, found.scenario
    text = Text(f"{recording.path} against {scenario.name}", style="bold")
    gpu = f" ({recording.gpu})" if recording.gpu else ""
    ranks = "the mean pipeline rank" if len(found.ranks) > 1 else f"pipeline rank {found.ranks[0]}"
    return text.append(
        f"\n{len(recording.kernels):,} kernels of device {recording.device}{gpu} in {words.seconds(recording.span)},"
        f" next to {ranks} on {scenario.cluster.gpu.name}; {words.percent(found.matched)} of their time has a match",
        style="not bold",
    )


def _remarks(found: StepComparison) -> list[str]:
    """What a reader must know of how it was compared."""
    out = [f"Phases come from {found.phases_from}."]
    if found.steps:
        out[0] += f" Mean of {found.steps} whole steps."
    else:
        why = f"{words.percent(found.part)} of the forecast's step, as many as its calls of {found.by} are of all"
        out.append(f"The profile holds no whole step (a backward and an optimizer); it is compared with {why}.")
    measured = {row.phase for row in found.rows if row.measured.calls}
    if BACKWARD not in measured:
        out.append("There is no backward in it: the profile of an inference, or of a forward alone.")
    if found.phases_from == NAMES:
        out.append(f"Phases found by names are rough; to have them exact {MARKS}.")
    other = found.other_calls
    if other is not None:
        out.append(
            f"{other.measured.calls:,.0f} calls of {other.family} in a forward, and {other.predicted.calls:,.0f} in the"
            " job's: another model, number of microbatches or layout. Times are then not to be compared."
        )
    if found.unfused_attention:
        out.append(
            "Attention is not one kernel in it, but GEMMs and a softmax: compare with --set"
            " stack.attention_fused=false."
        )
    if found.matched < FEW:
        out.append("Most of its kernel time has no match: is it the profile of another model or job?")
    if found.layers is not None and not found.same_layers:
        out.append(
            f"A forward repeats {found.layers.count} times what may be a layer; the model of the job has"
            f" {found.scenario.model.num_hidden_layers}."
        )
    kind = found.scenario.cluster.gpu.name.partition(" ")[0]
    if found.recording.gpu and kind not in found.recording.gpu:
        out.append(f"It was recorded on {found.recording.gpu}; the job runs on {found.scenario.cluster.gpu.name}.")
    return out


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _pair(measured: float, predicted: float) -> tuple[str, str, str]:
    return (
        _ms(measured),
        _ms(predicted) if predicted else "",
        signed(predicted / measured - 1.0) if measured and predicted else "",
    )


def _step(found: StepComparison) -> Table:
    table = columns("", ">measured", ">predicted", ">error")
    if found.steps:
        table.add_row("step, from start to start", *_pair(*found.step))
    table.add_row("a kernel runs", _ms(found.busy), "", "")
    table.add_row("communication alone", *_pair(found.exposed, found.predicted_exposed))
    if found.layers is not None:
        often = f"{found.layers.count} times" + (
            f" in each of {found.layers.within}" if found.layers.within > 1 else ""
        )
        name = f"forward of a repeated sequence of {found.layers.kernels} kernels ({often})"
        table.add_row(name, *_pair(found.layers.seconds, found.predicted_layer if found.same_layers else 0.0))
    return table


def _phases(found: StepComparison) -> Table:
    table = columns("", ">measured", ">predicted", ">error")
    for phase in dict.fromkeys(row.phase for row in found.rows):
        table.add_row(phase, *_pair(*found.total(phase)))
    return table


def _families(found: StepComparison) -> Table:
    table = columns("", "phase", ">measured", ">calls", ">predicted", ">calls", ">error")
    for row in found.rows:
        error = row.error
        table.add_row(
            row.family,
            row.phase,
            _ms(row.measured.seconds),
            f"{row.measured.calls:,.0f}",
            _ms(row.predicted.seconds),
            f"{row.predicted.calls:,.0f}",
            signed(error) if error is not None and row.predicted.calls else "",
        )
    return table


def _strangers(found: StepComparison, most: int) -> RenderableType:
    if not found.strangers:
        return Text("Nothing: every kernel is of a family that the job runs.")
    table = columns("kernel", "", ">measured", ">calls")
    for one in found.strangers[:most]:
        why = "not in the job" if one.family else one.cls.replace("_", " ") or "not known"
        table.add_row(_short(one.name), why, _ms(one.spent.seconds), f"{one.spent.calls:,.0f}")
    rest = found.strangers[most:]
    if rest:
        left = sum(one.spent.seconds for one in rest)
        table.add_row(f"{len(rest)} others (-v lists them)", "", _ms(left), f"{sum(o.spent.calls for o in rest):,.0f}")
    return table


def _short(name: str) -> str:
    """A kernel's name without its arguments and without the namespaces that many share, at most 40 characters."""
    bare = re.sub(r"^void |\(anonymous namespace\)::|<unnamed>::|\bat::native::", "", name).partition("(")[0] or name
    return bare if len(bare) <= 40 else bare[:39] + "…"
