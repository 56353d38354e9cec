"""Settings that change nothing, refused where `--set` names them, since a change is expected then.

Two kinds: settings of a stack that some jobs do not use, and numbers of a hardware profile that are only shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from simulator.errors import ScheduleError
from simulator.inputs.overrides import OPTION, Override
from simulator.inputs.problems import problem
from simulator.spec.scenario import Scenario


def refuse_idle(scenario: Scenario, changes: Iterable[Override]) -> None:
    """Raise InputError for the first change of a setting that changes nothing in this scenario."""
    for change in changes:
        why = _WHY.get(change.path, _used)(scenario)
        if why:
            raise problem(OPTION, change.path, change.text, f"changes nothing: {why}")


def refuse_shown_only(change: Override) -> None:
    """Raise InputError for a change of a hardware number that nothing is computed from."""
    if change.path in SHOWN_ONLY:
        raise problem(OPTION, change.path, change.text, f"changes nothing: {SHOWN_ONLY[change.path]}")


SHOWN_ONLY: Mapping[str, str] = {
    "hardware.gpu.boost_clock": "the peaks are quoted at this clock; set hardware.gpu.peak.bf16 and fp8",
    "hardware.node.nic.peak": "it is only shown next to the attainable bandwidth; set hardware.node.nic.bandwidth",
    "hardware.fabric.network.kind": "messages take hardware.node.nic.latency, whatever switches they cross; set that",
    "hardware.fabric.network.base_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.fabric.network.hop_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.kernels.gap": "it was measured with the kernels; stack.kernel_gap stands behind them in a job",
}
"""Numbers of a hardware profile that describe it and enter no forecast of a job -> why, and what does."""


def _used(scenario: Scenario) -> str:
    return ""


def _without_pairs(scenario: Scenario) -> str:
    """Why nothing overlaps a forward with a backward; empty where the schedule pairs them, or breaks its rules."""
    from simulator.schedule import SCHEDULES, Pair, build, parse_schedule

    layout, job = scenario.job.layout, scenario.job
    try:
        if layout.schedule in SCHEDULES:
            made = build(layout.schedule, pp=layout.pp, microbatches=job.microbatches if job.dp else 0, vpp=layout.vpp)
        else:
            made = parse_schedule(Path(layout.schedule).read_text(encoding="utf-8"), source=layout.schedule)
    except (ScheduleError, OSError, UnicodeDecodeError):
        return ""  # reported when the job is checked
    if any(isinstance(step, Pair) for row in made.rows for step in row):
        return ""
    return f"the schedule {layout.schedule} overlaps no forward with a backward; dualpipe and dualpipev do"


def _without_shared_experts(scenario: Scenario) -> str:
    model = scenario.model
    return "" if model.is_moe and model.shared_width else f"{model.name} has no shared experts"


_WHY: Mapping[str, Callable[[Scenario], str]] = {
    "stack.overlapped_pair": _without_pairs,
    "stack.shared_expert_overlap": _without_shared_experts,
}
"""Why a setting changes nothing in a scenario; empty where it does something."""
