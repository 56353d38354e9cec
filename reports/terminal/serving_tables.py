"""What a serving step says on the terminal: the answer, where the time goes, memory, kernel classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal import step_tables
from reports.terminal.elements import columns, listed, note, section
from reports.terminal.memory_tables import filled
from reports.views import words
from simulator.graph.serving.shapes import serving_of
from simulator.memory import MemoryReport
from simulator.results.metrics import price_of
from simulator.results.result import Result
from simulator.spec.scenario import Scenario
from simulator.spec.serving import Serving, expert_slots
from simulator.studies.uncertainty import Interval
from simulator.units import GB


def report(result: Result, *, verbose: bool = False, interval: Interval | None = None) -> list[RenderableType]:
    """Everything `simulate` prints of a serving job, part by part."""
    unit = words.unit_for(result.metrics["step_time_s"])
    title, remark = step_tables.classes_title(result, verbose), step_tables.classes_note(result, verbose)
    return [
        heading(result.scenario),
        *section("The answer", answer(result), note(_NOTE)),
        *(section("How sure the step time is", *step_tables.sureness(interval, verbose)) if interval else ()),
        *section("What limits the step", limits(result, unit)),
        *section("Memory of a GPU [GB]", memory(result.memory), held(result)),
        *section(title, step_tables.classes(result, unit, verbose), note(remark), exposed(result, unit)),
        *section("Assumptions and warnings", remarks(result)),
    ]


def cached(serving: Serving) -> str:
    """How many tokens are cached of each sequence, in words."""
    mean, longest = serving.mean_context, serving.longest_context
    return f"{mean:,.0f}" if longest == mean else f"{mean:,.0f} on average (up to {longest:,})"


def _more(scenario: Scenario, serving: Serving) -> list[str]:
    """Lines on what few jobs have: drafted tokens, a chunk of a prompt, copies of experts."""
    lines = []
    if serving.mtp_depth and scenario.job.workload == "decode":
        lines.append(
            f"MTP drafts {words.counted(serving.mtp_depth, 'token')}, verified in the same step:"
            f" {serving.accepted:.2f} tokens a step and sequence"
        )
    if serving.prefill_tokens:
        lines.append(
            f"with {serving.prefill_tokens:,} tokens of a prompt behind {serving.prefill_context:,} computed before"
        )
    if serving.redundant_experts or serving.shared_slots:
        total, ep = expert_slots(scenario.model, serving), scenario.job.layout.ep
        kinds = [f"{serving.redundant_experts} of routed experts"] if serving.redundant_experts else []
        kinds += [f"{serving.shared_slots} of the shared expert"] if serving.shared_slots else []
        lines.append(f"{total} slots of experts in a layer, {total // ep} a rank; copies: {' and '.join(kinds)}")
    return lines


def heading(scenario: Scenario) -> Text:
    """Which step this is, in four lines or a few more."""
    job, layout, model, serving = scenario.job, scenario.job.layout, scenario.model, scenario.job.serving
    assert serving is not None
    degrees = [f"{layout.tp} tensor" + (" with sequence" if layout.tp > 1 and layout.sp else "")]
    degrees += [f"{layout.ep} expert"] if model.n_routed_experts else []
    halves = ", as two microbatches that overlap" if serving.two_batch_overlap else ""
    lines = (
        f"{model.name}, {words.large(model.parameters())} parameters, in {job.precision.recipe.upper()}"
        f" on {job.gpus} x {scenario.cluster.gpu.name}",
        f"parallel: {', '.join([*degrees, f'{job.dp} data'])}; software: {scenario.stack.name}",
        f"{words.counted(serving.sequences, 'sequence')} on each of {words.counted(job.dp, 'data-parallel rank')}:"
        f" {words.counted(serving.tokens, 'new token')} each, {cached(serving)} cached before{halves}",
        *_more(scenario, serving),
    )
    text = Text(f"One {job.workload} step of {scenario.name}", style="bold")
    return text.append("\n" + "\n".join(lines), style="not bold")


_NOTE = (
    "A step of all data-parallel ranks in lock-step, without queues. MFU: FLOP of the model's forward, causal"
    " attention, over time and the dense BF16 peak."
)


def answer(result: Result) -> Table:
    """Step time, throughput, latency and price."""
    m = result.metrics
    table = columns("", ">", "")
    rows = [("step time", words.seconds(m["step_time_s"]), f"{words.large(m['tokens_per_step'])} tokens")]
    rows.append(
        (
            "throughput",
            f"{m['tokens_per_s_per_gpu']:,.0f}",
            f"tokens/s on each GPU, {m['tokens_per_s_per_node']:,.0f} on a node",
        )
    )
    if "tpot_s" in m:
        speed = f"{m['tokens_per_s_per_user']:,.1f} tokens/s for each user"
        rows.append(("time per output token", words.seconds(m["tpot_s"]), speed))
        if "prefill_tokens_per_s_per_gpu" in m:
            rate = f"{m['prefill_tokens_per_s_per_gpu']:,.0f}"
            rows.append(("of the prompt", rate, "tokens/s on each GPU, which the throughput above does not count"))
    else:
        rows.append(("time to first token", words.seconds(m["ttft_s"]), "of prompts that need not wait"))
    price = f"per 1e6 tokens at {words.dollars(m['price_per_gpu_hour_usd'])} per GPU-hour"
    rows.append(("price", f"${m['usd_per_million_tokens']:.3f}", price))
    rows.append(("MFU", words.percent(m["mfu"]), "of the BF16 peak"))
    used = f"of the data sheet's; kernels move {words.compact(m['memory_bytes_moved'])}B"
    rows.append(("memory bandwidth", words.percent(m["memory_bandwidth_used"]), used))
    for name, value, remark in rows:
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table


def memory(found: MemoryReport) -> Table:
    """What fills the memory of a rank."""
    table = columns("", "", ">GB")
    for item in found.worst.items:
        if item.bytes:
            table.add_row(item.group.replace("_", " "), item.name, f"{item.bytes / GB:.2f}")
    table.add_row("sum", f"of {found.capacity / GB:.2f} GB", f"{found.peak / GB:.2f}", style="bold")
    return table


def held(result: Result) -> Text:
    """How far memory reaches."""
    m, serving = result.metrics, serving_of(result.scenario)
    length = round(serving.mean_context) + serving.tokens
    return Text(
        f"KV cache: {m['kv_bytes_per_token']:,.0f} B a token over all layers. Most sequences of {length:,} tokens"
        f" that fit: {m['largest_batch']:,.0f}; room for {m['kv_cache_tokens']:,.0f} tokens{_by_rule(result.scenario)}."
    )


def limits(result: Result, unit: words.Unit) -> Table:
    """What limits the step, longest first; the times add up to it."""
    step = result.metrics["step_time_s"]
    table = columns("", f">{unit.name}", ">")
    for key, seconds in result.metrics.items():
        if key.startswith("bound_by_"):
            table.add_row(words.of_limit(key), unit.of(seconds), words.percent(seconds / step))
    return table


def _by_rule(scenario: Scenario) -> str:
    """Whose rule sets the size of the cache."""
    software = scenario.stack.serving
    if software is None or software.kv_budget == "none":
        return ""
    return f" ({scenario.stack.name}: {software.kv_budget} {software.kv_share:g})"


def exposed(result: Result, unit: words.Unit) -> Text:
    """How much communication nothing hides."""
    value, step = result.metrics["exposed_comm_s"], result.metrics["step_time_s"]
    share = words.percent(value / step)
    return Text(f"Exposed communication, not overlapped with compute: {unit.of(value)} {unit.name} ({share}).")


def whose(result: Result) -> str:
    """Whose step the times are."""
    found, gpus = result.timeline.tasks.apart, result.scenario.job.gpus
    if found is None:
        return f"One mean rank is simulated; all {gpus} are assumed to be equal."
    wait, most = words.seconds(found.waited[1]), words.seconds(found.waited[2])
    return (
        f"All {gpus} ranks are simulated; times are those of rank {found.rank}, in the middle by what it computes."
        f" Ranks wait {wait} for others on average, {most} at most; rank {found.busiest} computes longest."
        f" The most loaded rank of a layer gets {found.imbalance:.2f} times the mean tokens."
    )


def remarks(result: Result) -> Table:
    """What a reader must know before believing the numbers."""
    scenario, serving = result.scenario, result.scenario.job.serving
    assert serving is not None
    issued = "replayed as a CUDA graph" if serving.cuda_graphs else "issued kernel by kernel"
    said = [
        whose(result),
        f"The step is {issued}; scheduling between steps, tokenising and the network to users take no time.",
        f"Price of a GPU-hour: {words.dollars(price_of(scenario)[0])}, {price_of(scenario)[1]}.",
        *([f"Routing: {words.of_routing(scenario.job.routing)}."] if scenario.model.n_routed_experts else []),
        *map(words.of_warning, result.warnings),
    ]
    return listed(said)


COMPARED = (
    ("tokens/s/GPU", "tokens_per_s_per_gpu", "{:,.0f}"),
    ("user", "tokens_per_s_per_user", "{:,.1f}"),
    ("$/1e6", "usd_per_million_tokens", "{:.3f}"),
    ("MFU", "mfu", "{:.1%}"),
    ("GB", "peak_memory_bytes", "{:.1f}"),
    ("most", "largest_batch", "{:,.0f}"),
)
"""Columns of `compare`: title, key, form; those that no variant has are left out."""


def compared_titles(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the columns of these results."""
    return [title for title, key, _ in COMPARED if any(key in result["metrics"] for result in results)]


def compared(metrics: Mapping[str, Any], titles: Sequence[str]) -> list[str]:
    """A variant's cells under these titles."""
    return [
        form.format(metrics[key] / (GB if key.endswith("bytes") else 1)) if key in metrics else ""
        for title, key, form in COMPARED
        if title in titles
    ]


def follows(scenario: Scenario) -> Table:
    """What follows from a job's numbers, for `check`."""
    job, layout, serving = scenario.job, scenario.job.layout, scenario.job.serving
    assert serving is not None
    nodes = -(-job.gpus // scenario.cluster.node.gpus)
    rows = [
        ("GPUs", f"{job.gpus:,}", f"on {nodes:,} nodes of {scenario.cluster.node.gpus}"),
        ("data parallel (dp)", f"{job.dp:,}", f"{job.gpus:,} GPUs / tp {layout.tp}"),
        ("sequences", f"{job.dp * serving.sequences:,}", f"{serving.sequences:,} on each data-parallel rank"),
        ("tokens per step", words.large(job.dp * serving.sequences * serving.tokens), "new ones, before any draft"),
    ]
    if scenario.model.n_routed_experts:
        total = expert_slots(scenario.model, serving)
        rows.insert(2, ("experts on a rank", f"{total // layout.ep:,}", f"of {total}; each stands {job.edp}x"))
    table = columns("", ">", "")
    for name, value, remark in rows:
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table


def memory_report(title: str, workload: str, found: MemoryReport, lines: Sequence[str]) -> list[RenderableType]:
    """Everything `memory` prints of a serving job."""
    return [
        Text(f"Memory of one {workload} step of {title}", style="bold"),
        *section("The answer", Text(filled(found))),
        *section("A GPU [GB]", memory(found)),
        *section("Assumed", Text("; ".join(lines) + ".")),
    ]
