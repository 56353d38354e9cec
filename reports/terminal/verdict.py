"""Whether a job's numbers fit together, and what follows from them, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from reports.terminal.elements import columns, section
from reports.terminal.serving_tables import follows
from reports.terminal.step_tables import stages
from reports.views import words
from simulator.inputs.check import Problem
from simulator.results.result import plain
from simulator.spec.scenario import Scenario

SCHEMA = "foretrain.check/1"


def derived(scenario: Scenario) -> dict[str, int]:
    """Numbers that follow from the job's."""
    job = scenario.job
    if job.serving is not None:
        return {
            "gpus": job.gpus,
            "gpus_per_node": scenario.cluster.node.gpus,
            "data_parallel": job.dp,
            "expert_data_parallel": job.edp,
            "sequences": job.dp * job.serving.sequences,
            "tokens_per_step": job.dp * job.serving.sequences * job.serving.tokens,
        }
    return {
        "gpus": job.gpus,
        "gpus_per_node": scenario.cluster.node.gpus,
        "data_parallel": job.dp,
        "expert_data_parallel": job.edp,
        "microbatches": job.microbatches,
        "tokens_per_step": job.tokens_per_step,
    }


def as_dict(scenario: Scenario, problems: Sequence[Problem], held: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The object that `check --json` prints."""
    return {
        "schema": SCHEMA,
        "job": scenario.name,
        "fine": not any(problem.severity == "error" for problem in problems),
        "problems": [plain(problem) for problem in problems],
        "derived": derived(scenario),
        "stages": [list(blocks) for blocks in held],
    }


def verdict(scenario: Scenario, problems: Sequence[Problem], held: Sequence[Sequence[str]]) -> list[RenderableType]:
    """Everything that `check` prints: the rules that are broken, or that all is fine and what follows."""
    errors = [problem for problem in problems if problem.severity == "error"]
    warnings = [problem for problem in problems if problem.severity != "error"]
    many = "s are" if len(errors) > 1 else " is"
    title = f"{scenario.name}: {len(errors)} rule{many} broken" if errors else f"{scenario.name}: fine"
    parts: list[RenderableType] = [Text(title, style="bold red" if errors else "bold green")]
    if errors:
        parts.append(Padding(_problem_table(errors), (0, 0, 0, 2)))
    if warnings:
        parts += section("Warnings", _problem_table(warnings))
    if not errors:
        parts += [*section("What follows", _follows(scenario)), *section("Layers on stages", stages(held))]
    return parts


def _problem_table(problems: Sequence[Problem]) -> RenderableType:
    """A list of problems: key and value, what is wrong, what would do, and the rule."""
    table = columns("", "")
    for problem in problems:
        text = Text.assemble((f"{problem.key} = {problem.value}", "bold"), f": {problem.message}")
        if problem.suggestion:
            text.append(f"; {problem.suggestion}")
        table.add_row("-", text.append(f" [{problem.rule}]", style="dim"))
    return table


def _follows(scenario: Scenario) -> RenderableType:
    if scenario.workload.serves:
        return follows(scenario)
    job, layout = scenario.job, scenario.job.layout
    nodes = -(-job.gpus // scenario.cluster.node.gpus)
    table = columns("", ">", "")
    replica = f"pp {layout.pp} x tp {layout.tp} x cp {layout.cp}"
    rows = [
        ("GPUs", f"{job.gpus:,}", f"on {nodes:,} nodes of {scenario.cluster.node.gpus}"),
        ("data parallel (dp)", f"{job.dp:,}", f"{job.gpus:,} GPUs / ({replica})"),
        ("microbatches", f"{job.microbatches:,}", f"of {job.batch.microbatch_size} per pipeline and step"),
        ("tokens per step", words.large(job.tokens_per_step), ""),
    ]
    if scenario.model.n_routed_experts:
        experts = scenario.model.n_routed_experts // layout.ep
        row = ("expert data parallel", f"{job.edp:,}", f"copies of each expert; {experts} on each rank")
        rows.insert(2, row)
    for name, value, remark in rows:
        table.add_row(name, Text(value, style="bold"), Text(remark, style="dim"))
    return table
