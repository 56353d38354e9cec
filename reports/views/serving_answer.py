"""The answer of a serving step in one sentence, its numbers, and what they rest on."""

from __future__ import annotations

from reports.views import words
from simulator.graph.serving.shapes import serving_of
from simulator.memory import needed
from simulator.results.metrics import price_of
from simulator.results.result import Result
from simulator.spec.scenario import Scenario


def bound_in_words(result: Result) -> str:
    """What limits most of the step: `memory bandwidth, 51.3 % of the step`."""
    times = {key: value for key, value in result.metrics.items() if key.startswith("bound_by_")}
    if not times:
        return ""
    first = max(times, key=lambda key: times[key])
    return f"{words.of_limit(first)}, {words.percent(times[first] / result.metrics['step_time_s'])} of the step"


def sentence(result: Result) -> str:
    """What came out, for someone who did not run it."""
    m, scenario = result.metrics, result.scenario
    model, gpu, job = scenario.model, scenario.cluster.gpu, scenario.job
    fits = "" if result.memory.fits else f"DOES NOT FIT into memory: {needed(result.memory.verdict())}. "
    if "tpot_s" in m:
        speed = (
            f"{words.seconds(m['tpot_s'])} per output token, {m['tokens_per_s_per_user']:,.1f} tokens/s for each user"
        )
    else:
        speed = f"{words.seconds(m['ttft_s'])} to the first token of prompts that need not wait"
    tokens, step = "output" if "tpot_s" in m else "input", words.seconds(m["step_time_s"])
    return (
        f"{fits}One {job.workload} step of {model.name} ({words.large(model.parameters())} parameters, "
        f"{job.precision.recipe.upper()}) on {job.gpus} {gpu.name} is forecast to take {step}: "
        f"{m['tokens_per_s_per_gpu']:,.0f} tokens/s on each GPU, {speed}, ${m['usd_per_million_tokens']:.3f} a million "
        f"{tokens} tokens. Most of the time is limited by {bound_in_words(result)}."
    )


def tiles(result: Result) -> list[tuple[str, str]]:
    """Headline numbers: (value, what it is)."""
    m, scenario = result.metrics, result.scenario
    serving = serving_of(scenario)
    found = [(words.seconds(m["step_time_s"]), f"a step of {words.large(m['tokens_per_step'])} tokens")]
    found.append(
        (f"{m['tokens_per_s_per_gpu']:,.0f}", f"tokens/s on each GPU, {m['tokens_per_s_per_node']:,.0f} a node")
    )
    if "tpot_s" in m:
        found.append((f"{m['tokens_per_s_per_user']:,.1f}", "tokens/s for each user"))
    else:
        found.append((words.seconds(m["ttft_s"]), "to the first token, without a queue"))
    price = (
        f"a million {'output' if 'tpot_s' in m else 'input'} tokens, {words.dollars(m['price_per_gpu_hour_usd'])}/GPU-h"
    )
    found.append((f"${m['usd_per_million_tokens']:.3f}", price))
    found.append((words.percent(m["mfu"]), "MFU, causal attention, BF16 peak"))
    found.append((words.percent(m["memory_bandwidth_used"]), "of the memory bandwidth of the data sheet used"))
    length = round(serving.mean_context) + serving.tokens
    found.append((f"{m['largest_batch']:,.0f}", f"sequences of {length:,} tokens fit on a data-parallel rank"))
    if "accepted_tokens_per_step" in m:
        found.append((f"{m['accepted_tokens_per_step']:.2f}", "tokens a step and sequence, accepted drafts included"))
    return found


def assumptions_of(scenario: Scenario) -> list[tuple[str, str]]:
    """What the forecast takes for granted: (what, how)."""
    job, layout, stack, serving = scenario.job, scenario.job.layout, scenario.stack, serving_of(scenario)
    degrees = {"tensor": layout.tp, "expert": layout.ep, "data": job.dp}
    shown = ", ".join(f"{name} {degree}" for name, degree in degrees.items() if degree > 1) or "none"
    issued = "replayed as a CUDA graph" if serving.cuda_graphs else "issued kernel by kernel by the host"
    halves = "two that overlap" if serving.two_batch_overlap else "one"
    price, whose = price_of(scenario)
    new = f"{words.counted(serving.tokens, 'new token')} each behind {serving.mean_context:,.0f} cached ones on average"
    return [
        ("what is simulated", _simulated(scenario)),
        ("parallelism", shown + (", with sequence parallelism" if layout.tp > 1 and layout.sp else "")),
        (
            "work",
            f"{words.counted(serving.sequences, 'sequence')} on each of {words.counted(job.dp, 'data-parallel rank')},"
            f" {new}",
        ),
        ("microbatches", halves),
        ("kernels", issued),
        ("precision", f"{job.precision.recipe.upper()}, KV cache in {serving.kv_dtype.upper()}"),
        ("routing", words.of_routing(job.routing) if scenario.model.n_routed_experts else "no routed experts"),
        ("software", f"{stack.name}: {scenario.kernel_gap * 1e6:.1f} µs behind each kernel"),
        ("price", f"{words.dollars(price)} per GPU-hour, {whose}"),
        ("not included", "queues, scheduling between steps, tokenising, the network to users, idle GPUs"),
    ]


def _simulated(scenario: Scenario) -> str:
    """Whose step is shown."""
    gpus = scenario.job.gpus
    if serving_of(scenario).ranks == "apart":
        return f"all {gpus} ranks, each with its own sequences and experts; shown is the one in the middle"
    return f"one mean rank; all {gpus} are assumed to be equal and in lock-step"
