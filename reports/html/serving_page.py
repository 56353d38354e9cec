"""The page of one simulated step of prefill or decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.html.page import write
from reports.html.payload import embedded
from reports.html.serving_memory_page import rank_memory_context
from reports.html.step_page import op_rows, shown_of_every_step
from reports.views import words
from reports.views.ops import OpSpan, ops_of_task
from reports.views.palette import LIMITS, STAGES
from reports.views.serving_answer import assumptions_of, sentence, tiles
from reports.views.stages import NAMES, StageSpan, middle_layer, ops_by_lane, place_of, stage_spans, waits
from reports.views.trust import trust_of
from simulator.results.result import Result
from simulator.studies.sensitivity import Tornado
from simulator.studies.uncertainty import Interval
from simulator.units import GB


def write_serving(result: Result, file: Path, tornado: Tornado | None = None, interval: Interval | None = None) -> None:
    """Write the page of a serving step; `tornado` and `interval` as in `step_page.write_simulation`."""
    write("serving.html", serving_context(result, tornado, interval), file)


def serving_context(result: Result, tornado: Tornado | None = None, interval: Interval | None = None) -> dict[str, Any]:
    """Everything the template shows."""
    scenario = result.scenario
    spans, trust = stage_spans(result), trust_of(result)
    ops = [op for span in spans for op in ops_of_task(result.timeline, span.task)]
    block, start, end = middle_layer(result, spans)
    used = {span.stage for span in spans}
    return shown_of_every_step(result, trust, tornado, interval) | {
        "answer": sentence(result),
        "tiles": tiles(result),
        "assumptions": assumptions_of(scenario),
        "two": any(span.microbatch for span in spans),
        "layer": {"number": block, "seconds": end - start},
        "stage_legend": [(NAMES.get(stage, "others"), STAGES[stage]) for stage in STAGES if stage in used],
        "waits": waits(result, spans),
        "limits": _limits(result),
        "ops": op_rows(ops),
        "ops_title": "Ops of the step",
        "memory": rank_memory_context(result.memory),
        "GB": GB,
        "data": embedded({"steps": [], "pair": timeline_payload(result, spans, (start, end))}),
    }


def _limits(result: Result) -> list[dict[str, Any]]:
    """What limits the step, longest first; the times add up to the step."""
    step, price = result.metrics["step_time_s"], result.metrics["usd_per_million_tokens"]
    rows = []
    for key, seconds in result.metrics.items():
        if key.startswith("bound_by_"):
            bound = key.removeprefix("bound_by_").removesuffix("_s")
            colour = LIMITS.get(bound, "var(--bar)")
            share = seconds / step
            rows.append(
                {
                    "name": words.of_limit(key),
                    "colour": colour,
                    "seconds": seconds,
                    "share": share,
                    "usd": share * price,
                }
            )
    return rows


def timeline_payload(result: Result, spans: Sequence[StageSpan], window: tuple[float, float]) -> dict[str, Any]:
    """All ops of the step, a lane for each stream of each microbatch, coloured by stage; the view opens at `window`."""
    colours, described, segments, places = list(STAGES), dict[Any, int](), dict[str, int](), dict[str, int]()
    lanes = []
    for label, compute, ops in ops_by_lane(result, spans):
        lanes.append(
            {
                "label": label,
                "name": "compute" if compute else "communication",
                "start": [round(op.start, 9) for op, _ in ops],
                "end": [round(op.end, 9) for op, _ in ops],
                "kind": [colours.index(span.stage) for _, span in ops],
                "op": [described.setdefault(_described(op), len(described)) for op, _ in ops],
                "segment": [segments.setdefault(op.segment, len(segments)) for op, _ in ops],
                "place": [places.setdefault(place_of(result, span), len(places)) for _, span in ops],
            }
        )
    keys = ("name", "what", "bound", "alone", "calibrated")
    return {
        "end": result.metrics["step_time_s"],
        "window": {"start": window[0], "end": window[1]},
        "colours": list(STAGES.values()),
        "lanes": lanes,
        "ops": [dict(zip(keys, values, strict=True)) for values in described],
        "segments": list(segments),
        "places": list(places),
    }


def _described(op: OpSpan) -> tuple[Any, ...]:
    return op.name, words.of_class(op.cls), words.of_bound(op.bound_by), op.alone, op.calibrated
