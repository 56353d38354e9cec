"""The report of one simulated step for the terminal: the answer first, then where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, listed, note, section
from reports.views import words
from reports.views.palette import PHASES as COLOURS
from simulator.memory import MemoryReport, needed
from simulator.results.metrics import ClassTime, RankTimes, price_of
from simulator.results.result import Result
from simulator.schedule import Action, stages_on
from simulator.spec.scenario import Scenario

if TYPE_CHECKING:
    from simulator.results.rank_waits import RankWaits
    from simulator.studies.uncertainty import Interval

TOP = 5
"""Kernel classes shown unless all are asked for."""


_LEAST_SHARE = 0.01
"""Of the variance: sources with less are shown only on demand."""


_BAR = 20
"""Columns of a full bar."""


_MANY_RANKS = 32


_COLOURS = {**COLOURS, "bubble": "dim", "other": "dim"}


def report(result: Result, *, verbose: bool = False, interval: Interval | None = None) -> list[RenderableType]:
    """Everything `simulate` prints, part by part."""
    unit = words.unit_for(result.metrics["step_time_s"])
    return [
        heading(result.scenario, result.memory),
        *section("The answer", answer(result), note(_MFU_NOTE)),
        *(section("How sure the step time is", *sureness(interval, verbose)) if interval is not None else ()),
        *section("Where the time goes", phases(result, unit), note(_PHASES_NOTE), exposed(result, unit)),
        *section(f"Per rank [{unit.name}]", ranks(result, unit, verbose), note(_RANKS_NOTE)),
        *(slowest_ranks(result.waits, unit, verbose) if result.waits is not None else ()),
        *section("Layers on stages", stages(result.built.stages)),
        *section(classes_title(result, verbose), classes(result, unit, verbose), note(classes_note(result, verbose))),
        *section("Assumptions and warnings", remarks(result)),
    ]


def heading(scenario: Scenario, memory: MemoryReport) -> Text:
    """Which step this is, and whether it fits, in three lines."""
    job, layout, model = scenario.job, scenario.job.layout, scenario.model
    degrees = [f"{layout.pp} pipeline ({layout.schedule})"]
    degrees += [f"{n} {word}" for n, word in ((layout.tp, "tensor"), (layout.cp, "context")) if n > 1]
    degrees += [f"{layout.ep} expert"] if model.n_routed_experts else []
    copies = f" ({layout.replicas} replicas of what is sharded)" if layout.replicas > 1 else ""
    lines = (
        f"{model.name}, {words.large(model.parameters())} parameters, in {words.of_precision(job.precision)}"
        f" on {job.gpus} x {scenario.cluster.gpu.name}",
        f"parallel: {', '.join([*degrees, f'{job.dp} data'])}{copies}; software: {scenario.stack.name}",
        f"{job.batch.global_batch_size} sequences of {job.batch.sequence_length} tokens,"
        f" {words.counted(job.microbatches, 'microbatch')} of {job.batch.microbatch_size} in each pipeline",
    )
    text = Text(f"One training step of {scenario.name}", style="bold")
    if not memory.fits:
        text.append(f": DOES NOT FIT, {needed(memory.verdict())}", style="red")
    return text.append("\n" + "\n".join(lines), style="not bold")


def answer(result: Result) -> Table:
    """Step time, throughput, utilisation and price."""
    m, scenario = result.metrics, result.scenario
    peak = scenario.cluster.gpu.peak.bf16 / 1e12
    table = columns("", ">", "")
    rows = (
        ("step time", words.seconds(m["step_time_s"]), f"{words.large(m['tokens_per_step'])} tokens"),
        (
            "tokens per day",
            words.large(m["tokens_per_day"]),
            f"{m['tokens_per_s_per_gpu']:,.0f} tokens/s on each GPU",
        ),
        (
            "MFU, causal attention",
            words.percent(m["mfu_causal"]),
            f"{m['tflops_per_gpu_causal']:.0f} of {peak:.0f} TFLOP/s (BF16 peak)",
        ),
        (
            "MFU, full attention",
            words.percent(m["mfu_full"]),
            f"{m['tflops_per_gpu_full']:.0f} of {peak:.0f} TFLOP/s (BF16 peak)",
        ),
        (
            "bubble",
            words.percent(m["bubble_ratio"]),
            f"mean over ranks; {words.percent(m['bubble_ratio_worst'])} on the worst",
        ),
        ("GPU-hours", f"{m['gpu_hours_per_trillion_tokens']:,.0f}", "per 1e12 tokens"),
        ("whole run", _run_time(m), f"{words.large(scenario.job.run.tokens)} tokens without interruption"),
        (
            "price",
            words.dollars(m["run_cost_usd"]),
            f"{words.large(m['run_gpu_hours'])} GPU-hours at {words.dollars(m['price_per_gpu_hour_usd'])}",
        ),
    )
    for name, value, remark in rows:
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table


def sureness(found: Interval, verbose: bool = False) -> list[RenderableType]:
    """The interval, and the sources of its width, those of a percent and more unless all are asked for."""
    unit = words.unit_for(found.p90_s)
    said = Text(f"{unit.of(found.p10_s)} to {unit.of(found.p90_s)} {unit.name}", style="bold")
    said.append(f" in 8 of 10 cases, median {unit.of(found.p50_s)} {unit.name}", style="not bold")
    table = columns("what contributes", ">share", "how far it may be off")
    for one in found.contributions:
        if verbose or one.share >= _LEAST_SHARE:
            table.add_row(one.source, words.percent(one.share), Text(one.text, style="dim"))
    left = f"Not varied, though assumed: {', '.join(found.left_out)}." if found.left_out else ""
    drawn = f"{found.draws} draws, seed {found.seed}. Shares are of the variance."
    return [
        said,
        *([table] if found.contributions else []),
        note(" ".join(part for part in (drawn, found.remark, left) if part)),
    ]


def _run_time(metrics: dict[str, float]) -> str:
    days = metrics["run_days"]
    return f"{days:.1f} days" if days >= 1 else f"{24 * days:.2g} hours"


_MFU_NOTE = (
    "MFU, model FLOP utilisation: FLOP of the model's forward and backward, without recomputation and MTP,"
    " over time and the dense BF16 peak."
)


_PHASES_NOTE = (
    "forward, backward, weight gradients: running alone. overlapped: a forward and a backward together."
    " bubble: nothing to run. sync and optimizer: what nothing hides."
)


def phases(result: Result, unit: words.Unit) -> Table:
    """Mean over ranks of every phase, and how little and how much single ranks spend on it."""
    step = result.metrics["step_time_s"]
    table = columns("", *(f">{title} [{unit.name}]" if title else "" for title in ("mean", "", "", "least", "most")))
    for phase in result.breakdown_s:
        own = [rank.phases[phase] for rank in result.ranks]
        mean = result.breakdown_s[phase]
        if phase == "other" and not any(round(value, 6) for value in own):
            continue
        bar = Text("█" * round(_BAR * mean / step), style=_COLOURS[phase])
        table.add_row(
            words.PHASES[phase],
            unit.of(mean),
            Text(words.percent(mean / step), justify="right"),
            bar,
            unit.of(min(own)),
            unit.of(max(own)),
        )
    table.add_row("step", unit.of(step), Text(words.percent(1.0), justify="right"), style="bold")
    return table


def exposed(result: Result, unit: words.Unit) -> Text:
    """How much communication nothing hides."""
    worst = max(result.ranks, key=lambda rank: rank.exposed_comm)
    mean = result.metrics["exposed_comm_s"]
    share = words.percent(mean / result.metrics["step_time_s"])
    return Text(
        f"Exposed communication, not overlapped with compute: {unit.of(mean)} {unit.name} ({share}) on a mean rank,"
        f" {unit.of(worst.exposed_comm)} {unit.name} on rank {worst.rank}; it is part of the phases above."
    )


_RANKS_NOTE = (
    "weight, sync: weight gradients, gradient sync and optimizer. exposed: communication not overlapped with compute."
    " compute: a kernel runs on the compute stream. The last two overlap with the phases left of them."
)


def ranks(result: Result, unit: words.Unit, verbose: bool = False) -> Table:
    """A line per rank."""
    step = result.metrics["step_time_s"]
    names = ("forward", "backward", "weight", "overlap", "bubble", "%", "sync", "exposed", "compute")
    table = columns(">rank", "stages", *(f">{name}" for name in names), gap=1)
    held = stages_on(result.schedule)
    for rank in _shown(result.ranks, verbose):
        if rank is None:
            table.add_row("...")
            continue
        p = rank.phases
        table.add_row(
            str(rank.rank),
            words.ranges(held[rank.rank]),
            *(unit.of(p[phase]) for phase in ("forward", "backward", "weight", "overlapped", "bubble")),
            f"{100 * p['bubble'] / step:.0f}",
            *(unit.of(value) for value in (p["optimizer"], rank.exposed_comm, rank.compute_busy)),
        )
    return table


def _shown(ranks: Sequence[RankTimes], verbose: bool) -> Iterator[RankTimes | None]:
    """All ranks, or of very many the first and last, with a gap between."""
    if verbose or len(ranks) <= _MANY_RANKS:
        yield from ranks
        return
    yield from ranks[: _MANY_RANKS // 2]
    yield None
    yield from ranks[-_MANY_RANKS // 2 :]


def stages(held: Sequence[Sequence[str]]) -> Table:
    """The blocks of each stage; equal consecutive stages share a line."""
    table = columns("", "")
    first = 0
    for at, blocks in enumerate(held):
        if at + 1 < len(held) and held[at + 1] == blocks:
            continue
        name = f"stage {first}" if first == at else f"stages {first} to {at}"
        table.add_row(name, words.of_blocks(blocks) + ("" if first == at else " each"))
        first = at + 1
    return table


def _listed(result: Result, verbose: bool) -> list[ClassTime]:
    """The kernel classes that the table has."""
    return list(result.classes if verbose else result.classes[:TOP])


def classes_note(result: Result, verbose: bool) -> str:
    """What the shares mean, and the mark of what is not calibrated."""
    shares = "Shares of the step on a mean rank; compute and communication overlap."
    loose = any(not item.calibrated for item in _listed(result, verbose))
    return shares + (f" *: not calibrated on {result.scenario.cluster.name}." if loose else "")


def classes_title(result: Result, verbose: bool) -> str:
    """The title of the table of kernel classes."""
    return "Kernel classes" if verbose or len(result.classes) <= TOP else "The five most expensive kernel classes"


def classes(result: Result, unit: words.Unit, verbose: bool = False) -> Table:
    """Time, number and limit of the most expensive kernel classes on a mean rank."""
    step = result.metrics["step_time_s"]
    table = columns("", f">time [{unit.name}]", ">share", ">kernels", "limited by")
    for item in _listed(result, verbose):
        table.add_row(
            words.of_class(item.cls) + ("" if item.calibrated else " *"),
            unit.of(item.seconds),
            words.percent(item.seconds / step),
            f"{item.launches:,.0f}",
            words.of_bound(item.bound_by),
        )
    return table


def slowest_ranks(waits: RankWaits, unit: words.Unit, verbose: bool) -> Iterator[RenderableType]:
    """A table of ranks, the one for which others wait longest first, and what the waits are due to."""
    table = columns(">rank", ">load", ">others wait", ">waits itself", ">worst layer")
    for at in waits.slowest()[: None if verbose else TOP]:
        layer = waits.layers[int(waits.caused[at].argmax())]
        table.add_row(
            str(waits.ranks[at]),
            f"{waits.mean_load[at]:.3f}",
            unit.of(float(waits.caused[at].sum())),
            unit.of(float(waits.waited[at].sum())),
            words.layer_name(layer),
        )
    total = sum(waits.by_cause.values())
    parts = ", ".join(
        f"{words.WAITS[cause]} {words.percent(seconds / total)}" for cause, seconds in waits.by_cause.items() if total
    )
    text = (
        "load: tokens over the mean. others wait: how long a rank with the mean load waits where this one comes last,"
        " summed over the stages, whose GPUs wait at the same time: so it can be more than the step."
        f" Waits of that rank by cause: {parts or 'none'}."
    )
    yield from section(f"Ranks that others wait for [{unit.name}]", table, note(text))


def _simulated(result: Result) -> str:
    """Which ranks the numbers are of."""
    job = result.scenario.job
    if result.waits is None:
        return (
            f"One pipeline of {words.counted(job.layout.pp, 'rank')} is simulated; "
            f"all {job.dp} are assumed to be equal."
        )
    return (
        f"{words.counted(len(result.waits.ranks), 'rank')} of one group that differ are simulated on each stage, with"
        " one that has the mean load, whose times these are; other groups are assumed to be no slower."
    )


def remarks(result: Result) -> Table:
    """What a reader must know before believing the numbers."""
    scenario = result.scenario
    said = [
        _simulated(result),
        f"Recomputed in backward: {words.of_recompute(scenario.job.layout, scenario.stack)}.",
        *_lone_gradients(result),
        f"Price of a GPU-hour: {words.dollars(price_of(scenario)[0])}, {price_of(scenario)[1]}.",
        *([f"Routing: {words.of_training_loads(scenario)}."] if scenario.model.n_routed_experts else []),
        *map(words.of_warning, result.warnings),
    ]
    return listed(said)


def _lone_gradients(result: Result) -> list[str]:
    """Where a schedule splits backwards of a model with experts: what its weight gradients do meanwhile."""
    steps = [step for row in result.schedule.rows for step in row if isinstance(step, Action) and step.kind == "I"]
    if not steps or not result.scenario.model.is_moe:
        return []
    if any(step.filled for step in steps):
        return ["Waiting weight gradients run while all-to-alls of lone input gradients are on their way."]
    return ["Weight gradients are actions of their own: all-to-alls of lone input gradients are exposed."]
