"""Results next to each other: their metrics, what their inputs differ in, and the changes against the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.views import words
from reports.views.trade import LATENCIES, Traded, with_front
from simulator.spec.workload import WorkloadName
from simulator.units import GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of a comparison: key in `metrics`, name, how to write a value, and whether less is better (None:
    neither is)."""

    key: str
    name: str
    write: Callable[[float], str]
    less: bool | None


PRICE_OF_TOKENS = "cost_per_trillion_tokens_usd"

METRICS = (
    Metric(key="step_time_s", name="step time", write=words.seconds, less=True),
    Metric(key="tokens_per_day", name="tokens a day", write=words.large, less=False),
    Metric(key="mfu_causal", name="MFU, causal attention", write=words.percent, less=False),
    Metric(key="bubble_ratio", name="bubble, mean rank", write=words.percent, less=True),
    Metric(key="bubble_ratio_worst", name="bubble, worst rank", write=words.percent, less=True),
    Metric(key="exposed_comm_s", name="exposed communication", write=words.seconds, less=True),
    Metric(key="gpu_hours_per_trillion_tokens", name="GPU-hours per 10¹² tokens", write="{:,.0f}".format, less=True),
    Metric(key=PRICE_OF_TOKENS, name="price per 10¹² tokens", write=words.dollars, less=True),
    Metric(key="run_days", name="days of the run", write="{:,.1f}".format, less=True),
    Metric(key="run_cost_usd", name="price of the run", write=words.dollars, less=True),
)


SERVED = (
    Metric(key="step_time_s", name="step time", write=words.seconds, less=True),
    Metric(key="tokens_per_s_per_gpu", name="tokens/s on each GPU", write="{:,.0f}".format, less=False),
    Metric(key="tokens_per_s_per_user", name="tokens/s of each user", write="{:,.1f}".format, less=False),
    Metric(key="tpot_s", name="time per output token", write=words.seconds, less=True),
    Metric(key="ttft_s", name="time to the first token", write=words.seconds, less=True),
    Metric(key="usd_per_million_tokens", name="price per 10⁶ tokens", write="${:.3f}".format, less=True),
    Metric(key="mfu", name="MFU, causal attention", write=words.percent, less=False),
    Metric(key="memory_bandwidth_used", name="memory bandwidth used", write=words.percent, less=None),
    Metric(key="exposed_comm_s", name="exposed communication", write=words.seconds, less=True),
    Metric(key="peak_memory_bytes", name="memory of a GPU", write=lambda size: f"{size / GB:.1f} GB", less=True),
    Metric(key="largest_batch", name="sequences that fit", write="{:,.0f}".format, less=False),
)
"""Lines of a comparison of serving steps."""


def serves(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all of these are serving steps."""
    return bool(results) and all("usd_per_million_tokens" in result["metrics"] for result in results)


def metrics_of(results: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """The metrics to compare."""
    return SERVED if serves(results) else METRICS


def traded(titles: Sequence[str], results: Sequence[Mapping[str, Any]]) -> tuple[WorkloadName, list[Traded]] | None:
    """Serving steps of one workload that fit, as throughput against speed; None of fewer than two."""
    able = [(title, result["metrics"]) for title, result in zip(titles, results, strict=True) if fits(result)]
    for workload, key in LATENCIES.items():
        if len(able) > 1 and all(key in metrics for _, metrics in able):
            points = [Traded(name=name, rate=m["tokens_per_s_per_gpu"], latency=m[key]) for name, m in able]
            return workload, with_front(points)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value as text, its relative change against the first result (None for the first), and a verdict: `better`,
    `worse` or nothing."""

    text: str
    change: float | None
    verdict: str


def table(results: Sequence[Mapping[str, Any]]) -> list[tuple[Metric, list[Cell]]]:
    """A line per metric that all results have."""
    rows, differs = [], bool(work_differs(results))
    for metric in metrics_of(results):
        values = [value_of(result, metric.key) for result in results]
        aside = differs and metric.key in _PER_STEP  # neither is better: the steps do different work
        judged = replace(metric, less=None) if aside else metric
        if all(isinstance(value, (int, float)) for value in values):
            rows.append((metric, [_cell(judged, value, values[0], at) for at, value in enumerate(values)]))
    return rows


_PER_STEP = ("step_time_s", "exposed_comm_s")


def value_of(result: Mapping[str, Any], key: str) -> Any:
    """A metric of a result; None where it has none."""
    metrics = result["metrics"]
    if key == PRICE_OF_TOKENS:
        hours, price = metrics.get("gpu_hours_per_trillion_tokens"), metrics.get("price_per_gpu_hour_usd")
        return hours * price if isinstance(hours, (int, float)) and isinstance(price, (int, float)) else None
    return metrics.get(key)


def fits(result: Mapping[str, Any]) -> bool:
    """Whether a result fits into memory, as far as it says."""
    memory = result.get("memory")
    return not isinstance(memory, Mapping) or memory.get("fits") is not False


def marked(title: str, result: Mapping[str, Any]) -> str:
    """The title of a result, marked where it cannot run."""
    return title if fits(result) else f"{title} (DOES NOT FIT)"


def setups(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which model on how many of which GPU the results are of, each once."""
    return list(dict.fromkeys(setup(result["scenario"]) for result in results))


def setup(scenario: Mapping[str, Any]) -> str:
    """A job's model, GPU count and GPU, as far as a saved scenario names them."""
    model = (scenario.get("model") or {}).get("name") or "?"
    gpu = ((scenario.get("cluster") or {}).get("gpu") or {}).get("name") or "?"
    gpus = (scenario.get("job") or {}).get("gpus")
    return words.setup(model, gpus if isinstance(gpus, int) else None, gpu)


def work_differs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the work of a step is not the same in all results, in words."""
    seen = [_work(result) for result in results]
    return [name for name in seen[0] if len({str(one[name]) for one in seen}) > 1] if seen else []


def _work(result: Mapping[str, Any]) -> dict[str, Any]:
    scenario = result["scenario"]
    batch = (scenario.get("job") or {}).get("batch") or {}
    return {
        "model": (scenario.get("model") or {}).get("name"),
        "tokens per step": result["metrics"].get("tokens_per_step"),
        "sequence length": batch.get("sequence_length"),
    }


def tokens_per_second(result: Mapping[str, Any]) -> float:
    """Tokens a second of all GPUs; of a result that says no tokens, steps a second."""
    metrics = result["metrics"]
    return float(metrics.get("tokens_per_step", 1.0) / metrics["step_time_s"])


def prices(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which prices of a GPU-hour the results take, each once, with whose it is and its source."""
    told = []
    for result in results:
        price = result["metrics"].get("price_per_gpu_hour_usd")
        whose = result.get("provenance", {}).get("price_per_gpu_hour")
        if isinstance(price, (int, float)):
            told.append(f"{words.dollars(price)} a GPU-hour" + (f", the price {whose}" if whose else ""))
    return list(dict.fromkeys(told))


def _cell(metric: Metric, value: float, base: float, at: int) -> Cell:
    change = None if at == 0 or not base else value / base - 1
    verdict = ""
    if change is not None and metric.less is not None and abs(change) >= 5e-4:
        verdict = "better" if (change < 0) == metric.less else "worse"
    return Cell(text=metric.write(value), change=change, verdict=verdict)


def input_differences(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Inputs that are not the same in all results: (path, values). Long lists are shortened."""
    flat = [dict(_leaves(_inputs(result))) for result in results]
    paths = dict.fromkeys(path for leaves in flat for path in leaves)
    rows = [(path, [_short(leaves.get(path)) for leaves in flat]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _inputs(result: Mapping[str, Any]) -> dict[str, Any]:
    scenario = result["scenario"]
    return {key: scenario[key] for key in ("job", "model", "cluster", "stack") if key in scenario}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key != "sources":
                yield from _leaves(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def class_changes(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """Kernel classes by how much their time on a mean rank differs [s]; both streams of a class together."""
    seconds: list[dict[str, float]] = []
    for result in results:
        own: dict[str, float] = {}
        for item in result["classes"]:
            own[item["cls"]] = own.get(item["cls"], 0.0) + item["seconds"]
        seconds.append(own)
    names = dict.fromkeys(name for own in seconds for name in own)
    rows = [(name, [own.get(name, 0.0) for own in seconds]) for name in names]
    return sorted(rows, key=lambda row: (-(max(row[1]) - min(row[1])), row[0]))


def sentence(titles: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Which of those that fit is fastest, and by how much: by step time, or by tokens/s where their work differs."""
    able = [at for at, result in enumerate(results) if fits(result)]
    left_out = len(results) - len(able)
    aside = f" {left_out} of {len(results)} do not fit into memory and are left out." if left_out else ""
    if not able:
        return f"None of the {len(results)} fits into memory."
    names, chosen = [titles[at] for at in able], [results[at] for at in able]
    differs = work_differs(chosen)
    if differs:
        return f"The work differs ({', '.join(differs)}): {_by_rate(names, chosen)}{aside}"
    return _by_step(names, [result["metrics"]["step_time_s"] for result in chosen]) + aside


def _by_rate(titles: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    rates = [tokens_per_second(result) for result in results]
    best = max(range(len(rates)), key=rates.__getitem__)
    said = f"{titles[best]} has the most tokens a second of {len(rates)}, {words.large(rates[best])}"
    if best:
        said += f", {words.percent(rates[best] / rates[0] - 1)} more than {titles[0]} ({words.large(rates[0])})"
    if serves(results):
        prices_of = [result["metrics"]["usd_per_million_tokens"] for result in results]
        least = min(range(len(prices_of)), key=prices_of.__getitem__)
        return f"{said}; {titles[least]} the lowest price, ${prices_of[least]:.3f} per 10⁶ tokens."
    costs = [value_of(result, PRICE_OF_TOKENS) for result in results]
    if all(isinstance(cost, (int, float)) for cost in costs):
        least = min(range(len(costs)), key=costs.__getitem__)
        said += f"; {titles[least]} the lowest price, {words.dollars(costs[least])} per 10¹² tokens"
    return f"{said}."


def _by_step(titles: Sequence[str], steps: Sequence[float]) -> str:
    best = min(range(len(steps)), key=steps.__getitem__)
    said = f"{titles[best]} is the fastest of {len(steps)}, with {words.seconds(steps[best])} a step"
    if best:
        return f"{said}: {words.percent(1 - steps[best] / steps[0])} less than {titles[0]} ({words.seconds(steps[0])})."
    if len(steps) > 1:
        second = min(range(1, len(steps)), key=steps.__getitem__)
        return f"{said}; {titles[second]} comes next with {words.percent(steps[second] / steps[0] - 1)} more."
    return said + "."
