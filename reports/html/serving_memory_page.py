"""The page of the memory of a serving step: what fills a GPU, and how many sequences fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.html.page import write
from reports.html.payload import embedded
from reports.views import words
from reports.views.palette import SERVED_MEMORY
from simulator.graph.serving.shapes import serving_of
from simulator.memory import MemoryReport
from simulator.memory.serving import kv_bytes_per_token, memory_with
from simulator.results.serving_metrics import largest_batch
from simulator.spec.scenario import Scenario
from simulator.units import GB


def rank_memory_context(report: MemoryReport) -> dict[str, Any]:
    """What fills the memory of the rank with the highest peak, for `step/rank_memory.html`."""
    items = [
        {
            "name": item.name,
            "group": item.group.replace("_", " "),
            "bytes": item.bytes,
            "colour": SERVED_MEMORY[item.group],
        }
        for item in report.worst.items
        if item.bytes > 0.0
    ]
    return {"report": report, "items": items, "left": max(0.0, report.capacity - report.peak)}


def write_serving_memory(scenario: Scenario, report: MemoryReport, file: Path) -> None:
    """Write the page of the memory of a serving job."""
    write("serving_memory.html", serving_memory_context(scenario, report), file)


def serving_memory_context(scenario: Scenario, report: MemoryReport) -> dict[str, Any]:
    """Everything the template shows."""
    serving, most = serving_of(scenario), largest_batch(scenario)
    return {
        "title": f"foretrain: memory of {scenario.name}",
        "name": scenario.name,
        "setup": words.setup(scenario.model.name, scenario.job.gpus, scenario.cluster.gpu.name),
        "workload": scenario.job.workload,
        "memory": rank_memory_context(report),
        "assumed": "Assumed: " + "; ".join(report.assumptions.serving_lines()) + ".",
        "length": f"{round(serving.mean_context) + serving.tokens:,}",
        "per_token": kv_bytes_per_token(scenario),
        "rows": [_row(scenario, count, most) for count in _counts(serving.sequences, most)],
        "GB": GB,
        "data": embedded({"steps": [], "pair": None}),
    }


def _counts(own: int, most: int) -> list[int]:
    """The job's own number of sequences, the most that fit, and powers of two up to there."""
    doubled = [1 << power for power in range(3, most.bit_length())]
    return sorted({own, *doubled, *([most] if most else [])})


def _row(scenario: Scenario, sequences: int, most: int) -> dict[str, Any]:
    worst = memory_with(scenario, sequences).worst
    remarks = ["this job"] if sequences == serving_of(scenario).sequences else []
    remarks += ["the most that fit"] if sequences == most else ["does not fit"] if sequences > most else []
    return {
        "sequences": sequences,
        "cache": worst.group("kv_cache"),
        "peak": worst.peak,
        "remark": ", ".join(remarks),
    }
