"""`foretrain plan CAMPAIGN`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import (
    Input,
    engine_option,
    interval_and_draws,
    interval_asked,
    json_option,
    print_json,
    print_report,
    progress,
    quiet_option,
    set_option,
)

if TYPE_CHECKING:
    from simulator.studies.campaign import Campaign


@click.command(epilog="Example: foretrain plan deepseek-v3")
@click.argument("campaign", type=Input("campaign"), metavar="CAMPAIGN")
@set_option
@engine_option
@interval_and_draws
@json_option
@click.option("--mtbf", type=float, metavar="HOURS", help="GPU-hours between two failures, in place of the campaign's.")
@click.option("--seed", type=int, metavar="N", help="Seed of the sampled failures, and of --interval.")
@quiet_option
@click.pass_context
def plan(
    ctx: click.Context,
    campaign: str,
    overrides: tuple[str, ...],
    engine: Literal["events", "longest-path"],
    interval: bool,
    draws: int | None,
    as_json: bool,
    mtbf: float | None,
    seed: int | None,
    quiet: bool,
) -> None:
    """Forecast a whole run: every phase of CAMPAIGN, failures, GPU-hours, price and energy.

    CAMPAIGN is the name of a shipped campaign, the path of a TOML file, or a job, which is then one phase. Exit code 3
    if a phase does not fit into memory.
    """
    spread = interval_asked(interval, draws, seed if interval else None)
    from reports.terminal import campaign_tables as words
    from simulator.studies.campaign import forecast

    asked = _with_failures(_campaign(campaign, overrides), mtbf, seed)
    with progress("simulating phases", quiet=quiet) as done:
        found = forecast(asked, overrides, engine=engine, progress=done)
    around = None
    if spread is not None:
        from simulator.studies.campaign import run_interval

        with progress("drawing", quiet=quiet) as done:
            around = run_interval(asked, overrides, found, draws=spread[0], seed=spread[1], progress=done)
    if as_json:
        print_json(found.as_dict() | ({"interval": around.as_dict()} if around else {}))
    else:
        print_report(*words.report(found, around))
    if any("does not fit" in remark for phase in found.phases for remark in phase.remarks):
        ctx.exit(3)


def _campaign(name: str, overrides: tuple[str, ...]) -> Campaign:
    """The campaign of that name or file, or the job of that name or file as a campaign of one phase."""
    from simulator.inputs import list_names, load_scenario
    from simulator.studies.campaign import campaign_of_job, is_job_file, load_campaign

    jobs = {known.lower() for known in list_names("job")} - set(list_names("campaign"))
    if name.lower() in jobs or is_job_file(name):
        scenario = load_scenario(name, overrides)
        refuse_serving(scenario, plan=True)
        return campaign_of_job(scenario, name)
    return load_campaign(name)


def _with_failures(asked: Campaign, mtbf: float | None, seed: int | None) -> Campaign:
    from dataclasses import replace

    from simulator.inputs.limits import check_ranges
    from simulator.studies.campaign import FAILURES, Failures

    failures = asked.failures
    if mtbf is not None:
        failures = replace(failures or Failures(mtbf_gpu_hours=mtbf), mtbf_gpu_hours=mtbf)
        check_ranges({"mtbf": mtbf}, {"mtbf": FAILURES["mtbf_gpu_hours"]}, "plan", "--")
    if seed is not None:
        if failures is None:
            raise click.UsageError("--seed: there are no failures to sample; give --mtbf", click.get_current_context())
        failures = replace(failures, seed=seed)
        check_ranges({"seed": seed}, {"seed": FAILURES["seed"]}, "plan", "--")
    return replace(asked, failures=failures)
