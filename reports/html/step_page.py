"""The page of one simulated step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.html.memory_page import memory_context
from reports.html.page import write
from reports.html.payload import embedded, pair_payload, pair_window, steps_payload
from reports.html.waits_page import waits_context
from reports.views import words
from reports.views.actions import action_list, named, representative
from reports.views.answer import answer_of, assumptions_of, doubt_in_words
from reports.views.idle import CAUSES, idle_by_cause
from reports.views.ops import OpSpan, ops_of
from reports.views.palette import BOUNDS, COMMUNICATION, DIRECTIONS, PHASES, WAIT
from reports.views.trust import ClassTrust, doubt_of, trust_of
from simulator.memory import curve_of, memory_of
from simulator.results.result import Result, plain
from simulator.studies.sensitivity import Tornado
from simulator.studies.uncertainty import Interval


def write_simulation(
    result: Result,
    file: Path,
    tornado: Tornado | None = None,
    interval: Interval | None = None,
    action: str | None = None,
) -> None:
    """Write the page of `result`; with a section of what the step depends on if `tornado` says so, and one of how sure
    it is with an `interval`. `action` is the one to look into, as schedules spell it."""
    write("simulation.html", simulation_context(result, tornado, interval, action), file)


def simulation_context(
    result: Result, tornado: Tornado | None = None, interval: Interval | None = None, action: str | None = None
) -> dict[str, Any]:
    """Everything the template shows."""
    timeline, scenario = result.timeline, result.scenario
    actions = action_list(timeline)
    chosen = representative(actions) if action is None else named(actions, action)
    ops = ops_of(timeline, chosen)
    trust = trust_of(result)
    step = result.metrics["step_time_s"]
    steps = steps_payload("step-timeline", actions, step, result.stages, timeline)
    steps["pair"] = pair_window(chosen)
    memory = memory_of(result.built, result.schedule, timeline)
    return shown_of_every_step(result, trust, tornado, interval) | {
        "answer": answer_of(result),
        "assumptions": assumptions_of(scenario),
        "timeline_legend": _timeline_legend(actions_phases=[a.phase for a in actions], runs="runs" in steps),
        "has_runs": "runs" in steps,
        "chosen": chosen,
        "wanted": action is not None,
        "pair_legend": _PAIR_LEGEND,
        "waits": waits_context(result.waits, words.unit_for(step)),
        "phases": [phase for phase in PHASES if any(rank.phases[phase] > 1e-9 for rank in result.ranks)],
        "idle": _idle_rows(idle_by_cause(result, actions).causes, step),
        "ops": op_rows(ops),
        "ops_title": f"Ops of {chosen.text}",
        "memory": memory_context(memory, curve_of(result.built, result.schedule, timeline, memory.worst.rank)),
        "costs": _costs(result),
        "data": embedded({"steps": [steps], "pair": pair_payload(ops, chosen)}),
    }


def shown_of_every_step(
    result: Result, trust: Sequence[ClassTrust], tornado: Tornado | None, interval: Interval | None
) -> dict[str, Any]:
    """What the pages of steps of training and of serving show alike."""
    scenario, step = result.scenario, result.metrics["step_time_s"]
    return {
        "title": f"foretrain: {scenario.name}",
        "scenario": scenario,
        "setup": words.setup(scenario.model.name, scenario.job.gpus, scenario.cluster.gpu.name),
        "result": result,
        "m": result.metrics,
        "step": step,
        "unit": words.unit_for(step),
        "doubt": doubt_in_words(doubt_of(trust), scenario.cluster.name),
        "classes": result.classes,
        "bounds": BOUNDS,
        "sensitivity": swings_of(tornado),
        "interval": interval,
        "contributions": interval.contributions[:MOST_CONTRIBUTIONS] if interval else (),
        "trust": trust,
        "sources": sorted(scenario.cluster.sources.items()),
        "stages": [words.of_blocks(blocks) for blocks in result.built.stages],
        "resolved": json.dumps(plain(scenario.job), indent=2),
    }


MOST_SWINGS, MOST_CONTRIBUTIONS = 15, 15
_PAIR_LEGEND = [
    ("forward", DIRECTIONS["F"]),
    ("backward for input", DIRECTIONS["B"]),
    ("backward for weights", DIRECTIONS["W"]),
    ("barriers, counts, waits", DIRECTIONS["N"]),
]


def _timeline_legend(actions_phases: Sequence[str], runs: bool) -> list[tuple[str, str]]:
    used = set(actions_phases)
    legend = [(words.PHASES[phase], PHASES[phase]) for phase in PHASES if phase in used]
    return legend + ([("sends and collectives", COMMUNICATION), ("barriers", WAIT)] if runs else [])


def _idle_rows(causes: Mapping[str, float], step: float) -> list[dict[str, Any]]:
    return [
        {"name": CAUSES[cause][0], "why": CAUSES[cause][1], "seconds": seconds, "share": seconds / step}
        for cause, seconds in causes.items()
        if seconds > 1e-9 * step or cause in ("ramp", "imbalance", "all_to_all", "slowest")
    ]


def _costs(result: Result) -> list[dict[str, Any]]:
    """Dollars and GPU-hours of the whole run by what the GPUs do in that time."""
    m, step = result.metrics, result.metrics["step_time_s"]
    return [
        {
            "phase": phase,
            "share": seconds / step,
            "hours": m["run_gpu_hours"] * seconds / step,
            "dollars": m["run_cost_usd"] * seconds / step,
        }
        for phase, seconds in result.breakdown_s.items()
        if seconds > 1e-9 * step
    ]


def swings_of(tornado: Tornado | None) -> list[dict[str, Any]]:
    """Numbers by how far they move the step, each with both ends of its range."""
    if tornado is None or not tornado.swings:
        return []
    widest = max(max(abs(s.at_low - tornado.base), abs(s.at_high - tornado.base)) for s in tornado.swings)
    return [
        {
            "path": s.knob.path,
            "kind": s.knob.kind,
            "low": s.knob.low,
            "high": s.knob.high,
            "at_low": s.at_low / tornado.base - 1,
            "at_high": s.at_high / tornado.base - 1,
            "faster": max(0.0, tornado.base - min(s.at_low, s.at_high)) / widest,
            "slower": max(0.0, max(s.at_low, s.at_high) - tornado.base) / widest,
        }
        for s in tornado.swings[:MOST_SWINGS]
    ]


def op_rows(ops: Sequence[OpSpan]) -> list[dict[str, Any]]:
    """The ops of one action, equal ones of its layers summed, most expensive first."""
    groups: dict[tuple[str, str], list[OpSpan]] = defaultdict(list)
    for op in ops:
        groups[op.name, op.segment].append(op)
    rows = []
    for (name, segment), mine in groups.items():
        seconds = sum(op.seconds for op in mine)
        alone = sum(op.alone for op in mine)
        rows.append(
            {
                "name": name,
                "segment": segment,
                "stream": mine[0].stream,
                "cls": mine[0].cls,
                "kernels": sum(op.kernels for op in mine),
                "seconds": seconds,
                "slowdown": seconds / alone if alone else 1.0,
                "flops": sum(op.flops for op in mine) / alone if alone else 0.0,
                "bytes": sum(op.bytes for op in mine) / alone if alone else 0.0,
                "bound": mine[0].bound_by,
                "calibrated": mine[0].calibrated,
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])
