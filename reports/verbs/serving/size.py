"""`foretrain size JOB`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.options import (
    Complete,
    check_executor,
    executor_options,
    job_argument,
    json_option,
    output_file,
    output_folder,
    print_json,
    print_report,
    progress,
    quiet_option,
    say,
    set_option,
)

if TYPE_CHECKING:
    from simulator.studies.sizing import Day, Sizing, Wanted
    from simulator.studies.sizing.day import Load

NONE_DOES = 3


@click.command(
    cls=Complete,
    epilog="Example: foretrain size llama-3-8b-decode --set stack=vllm --slo ttft.p99=2,tpot.p99=0.05 --rate 20",
)
@job_argument
@click.option(
    "--slo",
    required=True,
    metavar="LIMITS",
    help="Limits over all requests [s], as in ttft.p99=2,tpot.p99=0.05: ttft, tpot, itl, e2e; mean, p50, p90, p99.",
)
@click.option("--rate", required=True, type=click.FloatRange(min=1e-6, max=1e6), metavar="R", help="Requests/s.")
@click.option(
    "--input-tokens", default="1024", show_default=True, metavar="D", help="Lengths of prompts, as serve takes them."
)
@click.option("--output-tokens", default="256", show_default=True, metavar="D", help="Lengths of answers, likewise.")
@click.option(
    "--over",
    multiple=True,
    metavar="PATH=VALUES",
    help="Try these in place of the usual layouts and caps, as in layout.tp=2,4 or stack.scheduler.sequences=32,64.",
)
@click.option(
    "--kind",
    type=click.Choice(["both", "aggregated", "disaggregated"]),
    default="both",
    show_default=True,
    help="Engines that do it all, prompts on engines of their own, or whichever is cheaper.",
)
@click.option(
    "--prefill-set",
    "prefill_overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a value of engines for prompts only, on top of --set. Repeatable.",
)
@click.option(
    "--count", type=click.IntRange(min=10), default=1000, show_default=True, metavar="N", help="Requests of a replay."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S", help="Seed of the load.")
@click.option(
    "--day",
    metavar="CURVE",
    help="Fleet of the best over a day: CSV with hour, rate and perhaps input, output as shares; workday is shipped.",
)
@click.option("--figures", metavar="DIR", help="Draw the fleet over the day into DIR, as SVG and PNG.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes. [default: all cores]")
@executor_options
@click.option("--resume", metavar="FILE", help="Keep what is judged in FILE and go on from what it holds.")
@set_option
@json_option
@quiet_option
@click.pass_context
def size(
    ctx: click.Context,
    job: str,
    slo: str,
    rate: float,
    input_tokens: str,
    output_tokens: str,
    over: tuple[str, ...],
    kind: Literal["both", "aggregated", "disaggregated"],
    prefill_overrides: tuple[str, ...],
    count: int,
    seed: int,
    day: str | None,
    figures: str | None,
    jobs: int | None,
    executor: str,
    address: str,
    resume: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Find the cheapest deployment of JOB that holds a service level at a rate of requests.

    Layouts of a replica, caps of its batch and sizes of its chunks are tried, with and without engines of their own
    for prompts; exit code 3 if none does.
    """
    if prefill_overrides and kind == "aggregated":
        raise click.UsageError("--prefill-set: with --kind aggregated there are no engines for prompts only", ctx)
    if figures is not None and day is None:
        raise click.UsageError("--figures belongs to --day", ctx)
    check_executor(executor, address)
    folder = output_folder(figures, "--figures") if figures is not None else None
    kept = output_file(resume, "--resume") if resume else None
    from simulator.inputs import load_scenario
    from simulator.studies.search.workers import cores
    from simulator.studies.sizing import Wanted, read_curve
    from simulator.studies.sizing import size as run
    from simulator.studies.sizing.targets import parse_targets

    wanted = Wanted(
        job=job,
        overrides=overrides,
        targets=parse_targets(slo),
        rate=rate,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        count=count,
        seed=seed,
        over=over,
        kind=kind,
        prefill=prefill_overrides,
    )
    curve = read_curve(day) if day is not None else None
    began = perf_counter()
    with progress("sizing", quiet=quiet) as done:
        found = run(wanted, jobs=jobs or cores(), address=address, file=kept, progress=done)
    fleet = _fleet(wanted, found, curve, quiet) if curve is not None and found.best is not None else None
    took = perf_counter() - began
    if fleet is not None and folder is not None:
        from reports.figures.fleet_figure import write_fleet_figure

        say(f"drew {len(write_fleet_figure(fleet, folder))} files into {folder}", quiet=quiet)
    from reports.terminal import size_tables

    if as_json:
        print_json(size_tables.as_dict(found, fleet))
    else:
        print_report(*size_tables.report(found, load_scenario(job, overrides), _defaults(ctx), fleet))
    say(f"judged {len(found.choices):,} deployments in {took:.1f} s", quiet=quiet)
    return 0 if found.best is not None else NONE_DOES


def _fleet(wanted: Wanted, found: Sizing, curve: list[Load], quiet: bool) -> Day:
    """The best deployment over the hours of a curve."""
    from simulator.results.metrics import price_of
    from simulator.studies.sizing import over_day

    assert found.best is not None
    price = price_of(wanted.deployed(found.best.settings).scenario)[0]
    with progress("replaying hours", quiet=quiet) as done:
        return over_day(wanted, found.best, curve, price, done)


def _defaults(ctx: click.Context) -> list[str]:
    """Options of the load that nobody gave, with their values."""
    default = click.core.ParameterSource.DEFAULT
    return [
        f"--{name.replace('_', '-')} {ctx.params[name]}"
        for name in ("input_tokens", "output_tokens", "count")
        if ctx.get_parameter_source(name) is default
    ]
