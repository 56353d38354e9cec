"""What sizing says: the cheapest deployments with their margins, how the best does at other rates, what cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, listed, note, section
from reports.views import words
from reports.views.replay_answer import price_line
from simulator.serving.serve import assumed_of_scheduler
from simulator.spec.scenario import Scenario
from simulator.studies.sizing import Choice, Day, Sizing
from simulator.studies.sizing.targets import value_of

SCHEMA = "foretrain.size/2"
SHOWN = 10
_NOTE = (
    "Margin: how far below its limit the latency stays. Headroom: how much more the replicas would answer within the"
    " limits. 1 + 2 replicas: for prompts, and for all that follows. Replicas behind a least-load router, Poisson"
    " arrivals."
)


def as_dict(found: Sizing, day: Day | None = None) -> dict[str, Any]:
    """Everything, ready for JSON; the best is the first choice."""
    wanted, best = asdict(found.wanted), found.best
    return {
        "schema": SCHEMA,
        "wanted": wanted,
        "best": None if best is None else asdict(best),
        "choices": [asdict(one) for one in found.choices],
        "day": None if day is None else _day_dict(day),
        "sweep": [{"rate_per_s": rate, "metrics": metrics} for rate, metrics in found.sweep],
    }


def _day_dict(day: Day) -> dict[str, Any]:
    return {
        "peak_gpus": day.peak,
        "mean_gpus": day.mean,
        "moved_gpus": day.moved,
        "usd": day.mean * len(day.hours) * day.usd_per_gpu_hour,
        "usd_at_peak": day.peak * len(day.hours) * day.usd_per_gpu_hour,
        "hours": [asdict(one) for one in day.hours],
    }


def report(
    found: Sizing, scenario: Scenario, defaults: Sequence[str] = (), day: Day | None = None
) -> list[RenderableType]:
    """Everything that `size` prints, part by part; `scenario` is the job as it stands, `defaults` name options that
    nobody gave."""
    wanted = found.wanted
    limits = ", ".join(f"{name} {limit:g} s" for name, limit in wanted.targets.items())
    title = Text(f"What {wanted.job} needs for {wanted.rate:g} requests/s", style="bold")
    title.append(f"\n{what_of(scenario)}", style="not bold")
    asked = f"within {limits}; {wanted.count:,} requests of {wanted.input_tokens} + {wanted.output_tokens} tokens"
    title.append(f"\n{asked}", style="not bold")
    able = [one for one in found.choices if not one.why]
    parts: list[RenderableType] = [title]
    if able:
        parts += section("The cheapest that hold it", choices(able[:SHOWN], list(wanted.targets)), note(_NOTE))
        parts += section("The first at other rates", sweep(found))
        if day is not None:
            parts += section("The first over a day", hours(day), note(_over_day(day)))
    else:
        parts += section("The answer", Text("None of these deployments holds it."))
    unable = [f"{_named(one)}: {one.why}" for one in found.choices if one.why]
    if unable:
        more = [f"and {len(unable) - SHOWN:,} more"] if len(unable) > SHOWN else []
        parts += section("What does not do", listed([*unable[:SHOWN], *more]))
    parts += section("Assumptions and warnings", listed(_remarks(scenario, defaults, found)))
    return parts


def what_of(scenario: Scenario) -> str:
    """Model, precision, GPU and software of every deployment, unless the choice says otherwise."""
    job, gpu = scenario.job, scenario.cluster.gpu.name
    return f"{scenario.model.name} in {job.precision.recipe.upper()} on {gpu}; scheduler: {scenario.stack.name}"


def _remarks(scenario: Scenario, defaults: Sequence[str], found: Sizing) -> list[str]:
    lengths = [f"Not given, so taken by default: {', '.join(defaults)}."] if defaults else []
    apart = any(one.prefill_replicas for one in found.choices)
    return [*lengths, *assumed_of_scheduler(scenario, disaggregated=apart), price_line(scenario)]


def _named(one: Choice) -> str:
    if not one.prefill_settings and not one.prefill_replicas:
        return _settings(one.settings)
    return f"{_settings(one.prefill_settings)} for prompts, {_settings(one.settings)} for the rest"


def _settings(settings: Sequence[str]) -> str:
    return ", ".join(setting.removeprefix("stack.scheduler.") for setting in settings) or "as the job says"


def choices(able: list[Choice], targets: list[str]) -> Table:
    """One row a deployment."""
    table = columns("replica", ">replicas", ">GPUs", ">$/h", *(f">{name}" for name in targets), ">margin", ">headroom")
    for one in able:
        assert one.margins is not None
        assert one.metrics is not None
        values = [f"{value_of(one.metrics, name) * 1e3:,.1f} ms" for name in targets]
        margin = min(one.margins.values())
        table.add_row(
            _named(one),
            f"{one.prefill_replicas:,} + {one.replicas:,}" if one.prefill_replicas else f"{one.replicas:,}",
            f"{one.gpus:,}",
            f"{one.usd_per_hour:,.2f}",
            *values,
            words.percent(margin),
            words.percent(one.headroom),
        )
    return table


def hours(day: Day) -> Table:
    """One row an hour."""
    apart = day.gpus_prefill > 0
    table = columns(
        "hour", ">requests/s", *([">for prompts", ">for the rest"] if apart else [">replicas"]), ">GPUs", ">margin"
    )
    for one in day.hours:
        kinds = (f"{one.prefill:,}", f"{one.decode:,}") if apart else (f"{one.decode:,}",)
        table.add_row(one.hour, f"{one.rate:,.1f}", *kinds, f"{one.gpus:,}", words.percent(one.margin))
    return table


def _over_day(day: Day) -> str:
    """Fleet and price in a sentence."""
    count, price = len(day.hours), day.usd_per_gpu_hour
    moved = f" {words.counted(day.moved, 'GPU')} change from one kind to the other." if day.gpus_prefill else ""
    return (
        f"{day.peak:,} GPUs at the peak, {day.mean:,.1f} in the mean of {count} hours:"
        f" {words.dollars(day.mean * count * price)} where the others are free for something else,"
        f" {words.dollars(day.peak * count * price)} where they stay.{moved} What a change takes is not counted."
    )


def sweep(found: Sizing) -> Table:
    """Latencies and goodput of the best over rates, up to and beyond its capacity."""
    targets = list(found.wanted.targets)
    table = columns(">requests/s", *(f">{name}" for name in targets), ">output tokens/s/GPU", "")
    for rate, metrics in found.sweep:
        over = metrics["ttft_s"]["mean"] is None
        values = ["-" if over else f"{value_of(metrics, name) * 1e3:,.1f} ms" for name in targets]
        held = all(value_of(metrics, name) <= limit for name, limit in found.wanted.targets.items())
        remark = "overload: the queue grows without bound" if over else "" if held else "does not hold"
        table.add_row(f"{rate:,.2f}", *values, f"{metrics['output_tokens_per_s_per_gpu']:,.0f}", remark)
    return table
