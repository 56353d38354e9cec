"""What a replay of requests says on the terminal: latencies, rates, queue and cache, warnings."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, listed, note, section
from reports.views import words
from simulator.results.metrics import price_of
from simulator.serving.serve import Served
from simulator.serving.summary import DEFINITIONS, LATENCIES, QUANTILES, as_dict
from simulator.spec.scenario import Scenario
from simulator.units import GB

TITLES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "itl_s": "inter-token latency",
    "e2e_s": "end to end",
    "queue_s": "of it in the queue",
}


def report(served: Served) -> list[RenderableType]:
    """Everything that `serve` prints, part by part."""
    found = as_dict(served)
    return [
        heading(served),
        *section("What users see [ms]", latencies(found), note(_defined())),
        *section("Rates", rates(found)),
        *section("Queue and KV cache", inside(served, found)),
        *section("Assumptions and warnings", remarks(served)),
    ]


def heading(served: Served) -> Text:
    """What was asked of what, in three lines."""
    deployment, load = served.deployment, served.load
    scenario, recorder = deployment.scenario, served.recorder
    lengths = f" of {load.input_tokens} + {load.output_tokens} tokens" if load.input_tokens else ""
    ranks = f", each of {deployment.ranks} ranks in lock-step" if deployment.ranks > 1 else ""
    if deployment.prompts is not None:
        ranks += f" behind {words.counted(deployment.prompts.engines, 'engine')} for prompts"
    routed = f"; router: {deployment.router}" if deployment.engines > 1 else ""
    lines = (
        f"{scenario.model.name} in {scenario.job.precision.recipe.upper()} on {deployment.gpus} x"
        f" {scenario.cluster.gpu.name}; scheduler: {scenario.stack.name}",
        f"{words.counted(deployment.engines, 'engine')}{ranks}{routed}",
        f"load: {load.requests}, {words.counted(recorder.arrived, 'request')}{lengths}",
    )
    text = Text(f"Requests to {scenario.name}", style="bold")
    return text.append("\n" + "\n".join(lines), style="not bold")


def _defined() -> str:
    """What each latency means."""
    return "; ".join(f"{TITLES[name]}: {DEFINITIONS[name]}" for name in LATENCIES if name != "queue_s") + "."


def latencies(found: dict[str, Any]) -> Table:
    """Mean and quantiles of every latency."""
    table = columns("", ">mean", *(f">{name}" for name in QUANTILES))
    for name in LATENCIES:
        row = found["metrics"][name]
        cells = ("-" if row[key] is None else _ms(row[key]) for key in ("mean", *QUANTILES))
        table.add_row(TITLES[name], *cells)
    return table


def _ms(value: float) -> str:
    return f"{value * 1e3:,.0f}" if value >= 1 else f"{value * 1e3:,.2f}"


def rates(found: dict[str, Any]) -> Table:
    """Throughput, goodput and price."""
    m = found["metrics"]
    table = columns("", ">", "")
    limits = ", ".join(f"{name} {value:g} s" for name, value in found["slo_s"].items())
    good, price = m["goodput_per_s"], m["usd_per_million_output_tokens"]
    rows = [
        ("requests/s", f"{m['requests_per_s']:,.3g}", f"{found['requests']['answered']:,} answered"),
        ("goodput/s", "-" if good is None else f"{good:,.3g}", f"within {limits}" if limits else "no limits were set"),
        ("output tokens/s/GPU", f"{m['output_tokens_per_s_per_gpu']:,.1f}", ""),
        ("all tokens/s/GPU", f"{m['total_tokens_per_s_per_gpu']:,.1f}", "prompts too"),
        ("$ per 1e6 output tokens", "-" if price is None else f"{price:,.3f}", ""),
    ]
    for name, value, remark in rows:
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table


def inside(served: Served, found: dict[str, Any]) -> Table:
    """Queue lengths, blocks and preemptions."""
    queue, kv = found["queue"], found["kv_cache"]
    table = columns("", ">mean", ">most", "")
    if served.overload is None:
        table.add_row("requests waiting", f"{queue['mean_waiting']:,.1f}", f"{queue['most_waiting']:,}", "")
    else:
        table.add_row("requests waiting", "-", "-", "more and more")
    table.add_row("sequences running", f"{queue['mean_running']:,.1f}", f"{queue['most_running']:,}", "")
    held = f"{kv['blocks']:,} blocks of {kv['block_tokens']} tokens, {served.deployment.room.bytes / GB:.1f} GB a GPU"
    table.add_row("KV cache in use", f"{kv['mean_use']:.1%}", f"{kv['most_use']:.1%}", Text(held, style="dim"))
    table.add_row("prompt tokens found cached", f"{kv['prefix_hit_rate']:.1%}", "", "")
    table.add_row("preemptions", "", f"{queue['preemptions']:,}", "")
    table.add_row("engine busy", f"{found['busy']:.1%}", "", "")
    return table


def price_line(scenario: Scenario) -> str:
    """Which price of a GPU-hour was taken, and whose it is."""
    price, whose = price_of(scenario)
    return f"Price of a GPU-hour: {words.dollars(price)}, {whose}."


def remarks(served: Served) -> Table:
    """What a reader must know before believing the numbers."""
    errors, scenario = served.errors, served.deployment.scenario
    made = served.deployment.table.forecasts.made
    return listed(
        [
            *served.warnings,
            f"Step times lie between {made:,} forecasts of steps; {words.counted(errors.checked, 'step')} that ran,"
            f" forecast directly: {errors.mean:.1%} off in the mean, {errors.most:.1%} at most.",
            price_line(scenario),
        ]
    )
