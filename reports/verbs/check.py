"""`foretrain check JOB`."""

from __future__ import annotations

import click

from reports.verbs.options import job_argument, json_option, print_json, print_report, set_option

BROKEN = 2


@click.command(epilog="Example: foretrain check deepseek-v3-pretrain --set layout.pp=12")
@job_argument
@set_option
@json_option
@click.pass_context
def check(ctx: click.Context, job: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say whether the numbers of JOB fit together.

    Names every broken rule with what would do, and exits with 2; or says that all is fine, and what follows: data
    parallelism, microbatches, layers on stages.
    """
    from reports import verdict
    from simulator.check import check as problems_of
    from simulator.inputs import load_scenario
    from simulator.run import prepare

    scenario = load_scenario(job, overrides)
    problems = problems_of(scenario)
    broken = any(problem.severity == "error" for problem in problems)
    held = [] if broken else prepare(scenario)[0].stages
    if as_json:
        print_json(verdict.as_dict(scenario, problems, held))
    else:
        print_report(*verdict.verdict(scenario, problems, held))
    if broken:
        ctx.exit(BROKEN)
