"""`foretrain explain JOB`: why each op takes its time, what decides the step time, and which numbers it depends on."""

from __future__ import annotations

from typing import Literal

import click

from reports.verbs.options import (
    job_argument,
    json_option,
    print_json,
    print_report,
    progress,
    set_option,
    verbosity,
)


@click.command(epilog="Example: foretrain explain deepseek-v3-pretrain --op 'attn.core.*' --no-sensitivity")
@job_argument
@set_option
@click.option("--op", "pattern", default="*", metavar="GLOB", help="Ops by name, kernel class or segment, as in mlp.W.")
@click.option("--sensitivity/--no-sensitivity", default=True, help="Move each number and simulate again. [default: on]")
@click.option(
    "--engine",
    type=click.Choice(["longest-path", "events"]),
    default="longest-path",
    show_default=True,
    help="What simulates the step; events sees contention and takes longer.",
)
@json_option
@verbosity
def explain(
    job: str,
    overrides: tuple[str, ...],
    pattern: str,
    sensitivity: bool,
    engine: Literal["longest-path", "events"],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Explain the time of every op of JOB: work, formula with its numbers, limit, source.

    Then the blocks summed up; the critical path of the step by kernel class: what must get faster for the step to get
    faster; and how far the step moves with each hardware number and each assumed constant.
    """
    from simulator.errors import InputError, meant
    from simulator.inputs import load_scenario
    from simulator.studies.explain import explain as explained
    from simulator.studies.explain import pattern_names
    from simulator.studies.sensitivity import tornado

    scenario = load_scenario(job, overrides)
    found = explained(scenario, pattern)
    if not found.ops:
        hint = meant(pattern, pattern_names(scenario), otherwise="try attn.* or gemm.*")
        raise InputError(f"--op: {pattern}: no op, kernel class or segment of {job} fits; {hint}")
    path = found.critical_path(engine)
    swings = None
    if sensitivity:
        with progress("moving numbers", quiet=quiet) as done:
            swings = tornado(job, overrides, engine=engine, progress=done)
    if as_json:
        from dataclasses import asdict

        print_json(
            {
                "schema": "foretrain.explain/2",
                "job": found.scenario.name,
                "hardware": found.scenario.cluster.name,
                "ops": [one.as_dict() for one in found.ops],
                "blocks": [{**asdict(block), "total": block.total} for block in found.blocks],
                "uncalibrated": list(found.uncalibrated),
                "critical_path": {"engine": engine, **path.as_dict()},
                "sensitivity": None if swings is None else swings.as_dict(),
            }
        )
        return
    from reports.terminal.explain_tables import report

    print_report(*report(found, path, swings, engine=engine, verbose=verbose))
