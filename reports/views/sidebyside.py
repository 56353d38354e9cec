"""Results next to each other: their metrics, what their inputs differ in, and the changes against the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.views import words


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of a comparison: key in `metrics`, name, how to write a value, and whether less is better (None:
    neither is)."""

    key: str
    name: str
    write: Callable[[float], str]
    less: bool | None


METRICS = (
    Metric(key="step_time_s", name="step time", write=words.seconds, less=True),
    Metric(key="tokens_per_day", name="tokens a day", write=words.large, less=False),
    Metric(key="mfu_causal", name="MFU, causal attention", write=words.percent, less=False),
    Metric(key="bubble_ratio", name="bubble, mean rank", write=words.percent, less=True),
    Metric(key="bubble_ratio_worst", name="bubble, worst rank", write=words.percent, less=True),
    Metric(key="exposed_comm_s", name="exposed communication", write=words.seconds, less=True),
    Metric(key="gpu_hours_per_trillion_tokens", name="GPU-hours per 10¹² tokens", write="{:,.0f}".format, less=True),
    Metric(key="run_days", name="days of the run", write="{:,.1f}".format, less=True),
    Metric(key="run_cost_usd", name="price of the run", write=words.dollars, less=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value as text, its relative change against the first result (None for the first), and a verdict: `better`,
    `worse` or nothing."""

    text: str
    change: float | None
    verdict: str


def table(results: Sequence[Mapping[str, Any]]) -> list[tuple[Metric, list[Cell]]]:
    """A line per metric that all results have."""
    rows = []
    for metric in METRICS:
        values = [result["metrics"].get(metric.key) for result in results]
        if all(isinstance(value, (int, float)) for value in values):
            rows.append((metric, [_cell(metric, value, values[0], at) for at, value in enumerate(values)]))
    return rows


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
    """Which is fastest, and by how much."""
    steps = [result["metrics"]["step_time_s"] for result in results]
    best = min(range(len(steps)), key=steps.__getitem__)
    said = f"{titles[best]} is the fastest of {len(steps)}, with {words.seconds(steps[best])} a step"
    if best:
        return f"{said}: {words.percent(1 - steps[best] / steps[0])} less than {titles[0]} ({words.seconds(steps[0])})."
    if len(steps) > 1:
        second = min(range(1, len(steps)), key=steps.__getitem__)
        return f"{said}; {titles[second]} comes next with {words.percent(steps[second] / steps[0] - 1)} more."
    return said + "."
