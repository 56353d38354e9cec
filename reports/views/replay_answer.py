"""What a replay says, in words and formatted numbers, for the terminal and for the page."""

from __future__ import annotations

from typing import Any

from reports.views import words
from simulator.results.metrics import price_of
from simulator.serving.hot_expert import HotExpert
from simulator.serving.serve import Served
from simulator.serving.summary import DEFINITIONS, LATENCIES, QUANTILES, TITLES
from simulator.spec.scenario import Scenario
from simulator.units import GB


def setup(served: Served) -> tuple[str, str, str]:
    """What was asked of what, in three lines."""
    deployment, load = served.deployment, served.load
    scenario, recorder = deployment.scenario, served.recorder
    lengths = f" of {load.input_tokens} + {load.output_tokens} tokens" if load.input_tokens else ""
    ranks = f", each of {deployment.ranks} ranks in lock-step" if deployment.ranks > 1 else ""
    if deployment.prompts is not None:
        ranks += f" behind {words.counted(deployment.prompts.engines, 'engine')} for prompts"
    routed = f"; router: {deployment.router}" if deployment.engines > 1 else ""
    return (
        f"{scenario.model.name} in {scenario.job.precision.recipe.upper()} on {deployment.gpus} x"
        f" {scenario.cluster.gpu.name}; scheduler: {scenario.stack.name}",
        f"{words.counted(deployment.engines, 'engine')}{ranks}{routed}{_transfer(served)}",
        f"load: {load.requests}, {words.counted(recorder.arrived, 'request')}{lengths}",
    )


PUSHED = {"layers": "pushed layer by layer", "chunks": "pushed chunk by chunk", "pull": "pulled when computed"}


def _transfer(served: Served) -> str:
    """How KV caches travel, where they do."""
    link = served.deployment.link
    if link is None:
        return ""
    each = 1e6 * max(link.sending, link.receiving)
    return f"; KV caches {PUSHED[link.handover]}, {each:.3g} ms for 1,000 tokens"


def sentence(served: Served, found: dict[str, Any]) -> str:
    """The answer in a sentence."""
    m = found["metrics"]
    rate = f"{m['output_tokens_per_s_per_gpu']:,.0f} output tokens/s on each GPU"
    if served.overload is not None:
        over = served.overload
        return f"Overload: {over.rate:g} requests/s come, {over.capacity:.4g} are answered, at {rate}."
    if m["ttft_s"]["p99"] is None:
        return "No request was answered."
    token = m["tpot_s"]["p99"]
    each = f" and {_ms(token)} ms for each further one" if token is not None else ""
    return (
        f"99 of 100 requests wait at most {_ms(m['ttft_s']['p99'])} ms for their first token{each};"
        f" {m['requests_per_s']:,.3g} requests/s, {rate}."
    )


def defined(found: dict[str, Any]) -> str:
    """What each latency means."""
    return "; ".join(f"{TITLES[name]}: {DEFINITIONS[name]}" for name in _shown(found) if name != "queue_s") + "."


def _shown(found: dict[str, Any]) -> list[str]:
    """Latencies to show: gaps between messages only where these bring several tokens."""
    same = found["metrics"]["message_gap_s"] == found["metrics"]["itl_s"]
    return [name for name in LATENCIES if not (same and name == "message_gap_s")]


def latencies(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Mean and quantiles of every latency [ms]."""
    metrics = found["metrics"]
    return [(TITLES[name], [_cell(metrics[name][key]) for key in ("mean", *QUANTILES)]) for name in _shown(found)]


def _cell(value: float | None) -> str:
    return "-" if value is None else _ms(value)


def _ms(value: float) -> str:
    return f"{value * 1e3:,.0f}" if value >= 1 else f"{value * 1e3:,.2f}"


def changes(hot: HotExpert) -> list[tuple[str, str, str, str]]:
    """What a hot expert changes: name, without, with, relative change; latencies in ms."""
    out = []
    for name, before, after in hot.rows:
        latency, _, key = name.partition(" ")
        title = f"{TITLES[latency]}, {key} [ms]" if key else "output tokens/s/GPU"
        known = before is not None and after is not None
        change = f"{100 * (after / before - 1):+.1f} %" if known and before else "-"  # type: ignore[operator]
        first, then = (_cell(one) if key else f"{one:,.1f}" for one in (before, after))
        out.append((title, first, then, change))
    return out


def holders(hot: HotExpert) -> str:
    """Which ranks hold a hot expert."""
    ranks = ", ".join(str(rank) for rank in hot.ranks)
    return (
        f"Expert 0 of every layer gets {hot.times:g} times the tokens of the mean one. It stands on"
        f" {words.counted(len(hot.ranks), 'rank')} of the expert-parallel group ({ranks}, first layer); the most loaded"
        f" rank gets {hot.load:.3g} times the mean, and every all-to-all waits for it."
    )


def rates(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Throughput, goodput and price: name, value, remark."""
    m = found["metrics"]
    limits = ", ".join(f"{name} {value:g} s" for name, value in found["slo_s"].items())
    good, price = m["goodput_per_s"], m["usd_per_million_output_tokens"]
    return [
        ("requests/s", f"{m['requests_per_s']:,.3g}", f"{found['requests']['answered']:,} answered"),
        ("goodput/s", "-" if good is None else f"{good:,.3g}", f"within {limits}" if limits else "no limits were set"),
        ("output tokens/s/GPU", f"{m['output_tokens_per_s_per_gpu']:,.1f}", ""),
        ("all tokens/s/GPU", f"{m['total_tokens_per_s_per_gpu']:,.1f}", "prompts too"),
        ("$ per 1e6 output tokens", "-" if price is None else f"{price:,.3f}", ""),
    ]


def inside(served: Served, found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Queue lengths, blocks and preemptions: name, mean, most, remark."""
    queue, kv = found["queue"], found["kv_cache"]
    waiting = ("-", "-", "more and more")
    if served.overload is None:
        waiting = (f"{queue['mean_waiting']:,.1f}", f"{queue['most_waiting']:,}", "")
    held = f"{kv['blocks']:,} blocks of {kv['block_tokens']} tokens, {served.deployment.room.bytes / GB:.1f} GB a GPU"
    return [
        ("requests waiting", *waiting),
        ("sequences running", f"{queue['mean_running']:,.1f}", f"{queue['most_running']:,}", ""),
        ("KV cache in use", f"{kv['mean_use']:.1%}", f"{kv['most_use']:.1%}", held),
        ("prompt tokens found cached", f"{kv['prefix_hit_rate']:.1%}", "", ""),
        *_tiers(kv),
        ("preemptions", "", f"{queue['preemptions']:,}", ""),
        ("engine busy", f"{found['busy']:.1%}", "", ""),
    ]


def _tiers(kv: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What tiers below HBM found and hold."""
    out = []
    for name, title in (("host", "in host memory"), ("disk", "on disk")):
        tier = kv["tiers"].get(name)
        if tier is not None and tier["blocks"]:
            held = f"{tier['blocks']:,} blocks, {tier['used_blocks'] / tier['blocks']:.0%} of them full at the end"
            out.append((f"  of them {title}", f"{tier['hit_rate']:.1%}", "", held))
    return out


def price_line(scenario: Scenario) -> str:
    """Which price of a GPU-hour was taken, and whose it is."""
    price, whose = price_of(scenario)
    return f"Price of a GPU-hour: {words.dollars(price)}, {whose}."


def remarks(served: Served) -> list[str]:
    """What a reader must know before believing the numbers."""
    errors, scenario = served.errors, served.deployment.scenario
    made = served.deployment.table.forecasts.made
    return [
        *served.warnings,
        f"Step times lie between {made:,} forecasts of steps; {words.counted(errors.checked, 'step')} that ran,"
        f" forecast directly: {errors.mean:.1%} off in the mean, {errors.most:.1%} at most.",
        price_line(scenario),
    ]
