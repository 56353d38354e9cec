"""Settings that change nothing, refused where `--set` names them, since a change is expected then.

Two kinds: what a stack sets for all jobs and some jobs have no use for, and what a hardware profile tells only.
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
        why = _overridden(change, scenario) or _WHY.get(change.path, _used)(scenario)
        if why:
            raise problem(OPTION, change.path, change.text, f"changes nothing: {why}")


def refuse_told(change: Override) -> None:
    """Raise InputError for a change of a hardware number that nothing is computed from."""
    if change.path in TOLD:
        raise problem(OPTION, change.path, change.text, f"changes nothing: {TOLD[change.path]}")


TOLD: Mapping[str, str] = {
    "hardware.gpu.boost_clock": "it tells at which clock the peaks hold; set hardware.gpu.peak.bf16 and fp8",
    "hardware.node.nic.peak": "it is told beside what can be attained; set hardware.node.nic.bandwidth",
    "hardware.fabric.network.kind": "messages take hardware.node.nic.latency, whatever switches they cross; set that",
    "hardware.fabric.network.base_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.fabric.network.hop_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.kernels.gap": "it was measured with the kernels; stack.kernel_gap stands behind them in a job",
}
"""Numbers of a hardware profile that describe it and enter no forecast of a job -> why, and what does."""


def _overridden(change: Override, scenario: Scenario) -> str:
    """Why a format of the stack's states changes nothing; empty where the job's `[optimizer]` leaves it alone."""
    table, _, key = change.rest.partition(".")
    if table != "optimizer" or getattr(scenario.job.optimizer, key, None) is None:
        return ""
    return f"the job says optimizer.{key} itself; set that"


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
        return ""  # told when the job is checked
    if any(isinstance(step, Pair) for row in made.rows for step in row):
        return ""
    return f"the schedule {layout.schedule} runs no forward beside a backward; dualpipe and dualpipev do"


def _without_shared_experts(scenario: Scenario) -> str:
    model = scenario.model
    return "" if model.is_moe and model.shared_width else f"{model.name} has no shared experts"


_WHY: Mapping[str, Callable[[Scenario], str]] = {
    "stack.overlapped_pair": _without_pairs,
    "stack.shared_expert_overlap": _without_shared_experts,
}
"""Why a setting changes nothing in a scenario; empty where it does something."""
