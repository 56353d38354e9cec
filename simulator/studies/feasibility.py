"""Whether a valid job also fits and is well shaped: memory with the cheapest ways to mend it, balance, batch ramp.

`check` looks at numbers alone; here blocks are built and timed. Ways to mend are found by trying them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs.check import Problem, check, divisors, expert_degrees
from simulator.memory import MemoryReport, memory_of_rows, memory_of_serving, needed
from simulator.memory.budget import beyond_budget
from simulator.results.serving_metrics import largest_batch
from simulator.results.simulate import prepare
from simulator.schedule import SCHEDULES, Schedule, stages_on
from simulator.spec.job import Job, Layout, Recompute
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario
from simulator.studies.search.candidate import Candidate, judge
from simulator.units import GB

UNBALANCED = 0.20
"""Share by which the slowest rank may exceed the mean before it is worth a warning."""
SHOWN_ITEMS = 3
SHOWN_FIXES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A changed value (`layout.recompute=full`) under which the job runs and fits, with what it then costs."""

    change: str
    candidate: Candidate


def problems(scenario: Scenario) -> list[Problem]:
    """Everything wrong with a scenario: broken rules; if there are none, memory, balance and what is not timed."""
    found = check(scenario)
    if any(problem.severity == "error" for problem in found):
        return found
    if scenario.workload.serves:
        return sorted([*found, *_serving_memory(scenario)], key=lambda problem: problem.severity)
    built, schedule = prepare(scenario)
    memory = memory_of_rows(built, schedule)
    more = [
        *_memory(scenario, memory),
        *_balance(scenario, built.stages, built.block_seconds, schedule),
    ]
    return sorted([*found, *more], key=lambda problem: problem.severity)


def _serving_memory(scenario: Scenario) -> Iterator[Problem]:
    """A serving step that does not fit, and how many sequences would."""
    memory, most = memory_of_serving(scenario), largest_batch(scenario)
    beyond = beyond_budget(scenario, memory.worst)
    tight = memory.answer == "tight" and not beyond
    if (memory.answer != "fits" or beyond) and scenario.job.serving is not None:
        yield Problem(
            rule="memory",
            key="serving.sequences",
            value=scenario.job.serving.sequences,
            message=_tight(memory) if tight else beyond or needed(memory.verdict()),
            suggestion=f"use at most {most}" if most else "the weights alone leave no room: use more GPUs for a copy",
            severity="warning" if tight else "error",
        )


def _tight(memory: MemoryReport) -> str:
    return f"tight: {needed(memory.verdict())}, and {memory.most / GB:.1f} GB with the most reserve"


def _memory(scenario: Scenario, memory: MemoryReport) -> Iterator[Problem]:
    if memory.answer == "fits":
        return
    if memory.answer == "tight":
        yield Problem(
            rule="memory",
            key="memory.reserve",
            value=list(memory.reserve),
            message=_tight(memory),
            suggestion="let the allocator use expandable segments, or recompute more",
            severity="warning",
        )
        return
    worst = memory.worst
    items = sorted(worst.items, key=lambda item: -item.bytes)[:SHOWN_ITEMS]
    largest = ", ".join(f"{item.name} {item.bytes / GB:.1f} GB" for item in items)
    yield Problem(
        rule="memory",
        key="hardware.gpu.hbm_bytes",
        value=f"{memory.capacity / GB:g}e9",
        message=f"{needed(memory.verdict())}; largest: {largest}",
        suggestion=fixes_in_words(fixes(scenario)[:SHOWN_FIXES]) or "no single change tried makes it fit",
    )


def fixes_in_words(found: Sequence[Fix]) -> str:
    """The cheapest fixes in words: "layout.recompute=full fits in 61.2 GB at 25.3 s a step; ..."."""
    each = [
        f"{fix.change} fits in {(fix.candidate.memory or 0.0) / GB:.1f} GB at {fix.candidate.step or 0.0:.3g} s a step"
        for fix in found
    ]
    return "; ".join(each)


def fixes(scenario: Scenario) -> list[Fix]:
    """Single changes under which the scenario runs and fits, the least time per token first."""
    memo = SharedPricesMemo(keep=2)
    found = []
    for change, job in _changes(scenario):
        candidate = judge(0, replace(scenario, job=job), memo)
        if candidate.status == "ok":
            found.append(Fix(change=change, candidate=candidate))
    return sorted(found, key=lambda fix: (fix.candidate.by("time"), fix.change))


def _changes(scenario: Scenario) -> Iterator[tuple[str, Job]]:
    """What is tried: recomputation, sharding, every other degree of expert parallelism, deeper and wider pipeline and
    tensor parallelism, another schedule, smaller microbatches."""
    job = scenario.job
    layout = job.layout
    policies: tuple[Recompute, ...] = ("deepseek", "full")
    tried: list[tuple[str, Layout]] = [
        *((f"layout.recompute={how}", replace(layout, recompute=how)) for how in policies if how != layout.recompute),
        *((f"layout.zero={zero}", replace(layout, zero=zero)) for zero in range(layout.zero + 1, 4)),
        *((f"layout.ep={ep}", replace(layout, ep=ep)) for ep in expert_degrees(scenario) if ep != layout.ep),
        *((f"layout.pp={pp}", replace(layout, pp=pp)) for pp in _deeper(scenario)),
        *((f"layout.tp={tp}", replace(layout, tp=tp)) for tp in divisors(scenario.cluster.node.gpus) if tp > layout.tp),
        *((f"layout.schedule={name}", replace(layout, schedule=name)) for name in SCHEDULES if name != layout.schedule),
    ]
    yield from ((change, replace(job, layout=other)) for change, other in tried)
    for size in divisors(job.batch.microbatch_size)[:-1]:
        yield f"batch.microbatch_size={size}", replace(job, batch=replace(job.batch, microbatch_size=size))


def _deeper(scenario: Scenario) -> list[int]:
    """Deeper pipelines that the GPUs and the layers allow."""
    layout, layers = scenario.job.layout, scenario.model.num_hidden_layers
    ranks = scenario.job.gpus // (layout.tp * layout.cp)
    return [pp for pp in divisors(ranks) if layout.pp < pp <= layers + 2]  # embedding and head may stand alone


def _balance(
    scenario: Scenario, stages: Sequence[Sequence[BlockKind]], seconds: dict[BlockKind, float], schedule: Schedule
) -> Iterator[Problem]:
    """The slowest rank sets the pace of a pipeline."""
    on = stages_on(schedule)
    loads = [sum(seconds[kind] for stage in held for kind in stages[stage]) for held in on]
    mean = sum(loads) / len(loads)
    worst = max(range(len(loads)), key=lambda rank: loads[rank])
    excess = loads[worst] / mean - 1.0 if mean else 0.0
    if excess <= UNBALANCED:
        return
    how = scenario.job.layout.stages
    yield Problem(
        rule="stage balance",
        key="layout.stages",
        value=list(how) if isinstance(how, tuple) else how,
        message=f"rank {worst} (stages {', '.join(map(str, on[worst]))}) works {excess:.0%} longer than the mean rank,"
        " and the others wait for it",
        suggestion="use layout.stages=balanced" if how != "balanced" else "use fewer stages: layers cannot be cut",
        severity="warning",
    )


def ramp_sizes(first: int, last: int) -> list[int]:
    """The first batch of a ramp, its doublings, and its last [sequences]."""
    sizes = [first]
    while 2 * sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return [*sizes, last] if last > sizes[-1] else sizes


def ramp(scenario: Scenario, sizes: Sequence[int]) -> Iterator[Problem]:
    """Batch sizes [sequences] of a ramp that the scenario's layout cannot run, each with what can."""
    for size in sizes:
        job = replace(scenario.job, batch=replace(scenario.job.batch, global_batch_size=size))
        smaller = replace(scenario, job=job)
        broken = [problem for problem in check(smaller) if problem.severity == "error"]
        if broken:
            yield Problem(
                rule="batch ramp",
                key="batch.global_batch_size",
                value=size,
                message=f"leaves {job.microbatches} microbatches to a pipeline: {broken[0].message}",
                suggestion=substitutes_in_words(substitutes(smaller)) or "use fewer GPUs while the batch is small",
                severity="warning",
            )


def substitutes(scenario: Scenario) -> list[Fix]:
    """Schedules, and numbers of GPUs, that run a batch which the scenario's own schedule cannot, the cheapest first."""
    job, memo, found = scenario.job, SharedPricesMemo(keep=2), []
    tried = [
        (f"layout.schedule={name}", replace(job, layout=replace(job.layout, schedule=name)))
        for name in SCHEDULES
        if name != job.layout.schedule
    ]
    tried += [(f"gpus={job.gpus * part // 4}", replace(job, gpus=job.gpus * part // 4)) for part in (3, 2, 1)]
    for change, other in tried:
        candidate = judge(0, replace(scenario, job=other), memo)
        if candidate.status == "ok":
            found.append(Fix(change=change, candidate=candidate))
    return sorted(found, key=lambda fix: (fix.candidate.by("cost"), fix.change))


def substitutes_in_words(found: Sequence[Fix]) -> str:
    """The cheapest substitutes in words."""
    each = [f"{fix.change} runs it at {fix.candidate.step or 0.0:.3g} s a step" for fix in found[:SHOWN_FIXES]]
    return "; ".join(each)


__all__ = ["Fix", "fixes", "problems", "ramp", "ramp_sizes", "substitutes"]
