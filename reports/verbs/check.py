"""`foretrain check JOB`."""

from __future__ import annotations

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import job_argument, json_option, print_json, print_report, set_option

BROKEN, TOO_BIG = 2, 3


@click.command(epilog="Example: foretrain check deepseek-v3-pretrain --set layout.pp=12")
@job_argument
@set_option
@json_option
@click.option("--ramp-from", type=click.IntRange(min=1), metavar="N", help="First batch of a ramp [sequences].")
@click.pass_context
def check(ctx: click.Context, job: str, overrides: tuple[str, ...], as_json: bool, ramp_from: int | None) -> None:
    """Check whether the numbers of JOB fit together, and into memory.

    Names every broken rule with a value that would do, and exits with 2; or shows what does not fit into memory with
    the cheapest changes that make it fit, found by trying them, and exits with 3; or confirms that all is fine, and
    shows what follows: data parallelism, microbatches, layers on stages. With --ramp-from, also whether the layout can
    run the smaller batches of a ramp.
    """
    from reports.terminal import verdict
    from simulator.inputs import load_scenario
    from simulator.results.simulate import prepare
    from simulator.studies import feasibility as fit

    scenario = load_scenario(job, overrides)
    refuse_serving(scenario, __ramp_from=ramp_from)
    problems = fit.problems(scenario)
    errors = [problem for problem in problems if problem.severity == "error"]
    broken = any(problem.rule != "memory" for problem in errors)
    if ramp_from is not None and not broken:
        problems += fit.ramp(scenario, fit.ramp_sizes(ramp_from, scenario.job.batch.global_batch_size))
    held = [] if broken else prepare(scenario)[0].stages
    if as_json:
        print_json(verdict.as_dict(scenario, problems, held))
    else:
        print_report(*verdict.verdict(scenario, problems, held))
    if errors:
        ctx.exit(BROKEN if broken else TOO_BIG)
