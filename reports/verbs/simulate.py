"""`foretrain simulate JOB`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import (
    engine_option,
    interval_asked,
    interval_options,
    job_argument,
    json_option,
    output_file,
    output_folder,
    print_json,
    print_report,
    progress,
    say,
    set_option,
    verbosity,
    warn,
    what_if_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from reports.export.trace import Selection
    from simulator.results.result import Result
    from simulator.spec.scenario import Scenario
    from simulator.studies.uncertainty import Interval

DOES_NOT_FIT = 3


@click.command(
    epilog="Example: foretrain simulate deepseek-v3-pretrain --set layout.schedule=zb1p --trace step.json.gz"
)
@job_argument
@set_option
@what_if_option("all at once")
@engine_option
@interval_options
@json_option
@click.option("--trace", metavar="FILE", help="Write the timeline for ui.perfetto.dev or chrome://tracing (.json.gz).")
@click.option(
    "--ranks",
    metavar="LIST",
    help="Drawn in the trace: pipeline ranks, as in 0,12-15, GPUs of their stages, as in 8.0-3; figures draw the"
    " timeline of these, and maps of ranks by layers, as on the page, those GPUs. [default: all]",
)
@click.option("--window", metavar="START:END", help="Seconds of the step in the trace, as in 2.5:3. [default: all]")
@click.option("--html", metavar="FILE", help="Write a page to look at in a browser: one file, needs no network.")
@click.option("--action", metavar="TEXT", help="Action that the page opens, as in '(2F107;13B39)'. [default: typical]")
@click.option("--sensitivity", is_flag=True, help="On the page: what the step depends on. Takes a minute.")
@click.option("--figures", metavar="DIR", help="Draw figures into DIR, each as SVG and PNG.")
@click.option("--export", metavar="DIR", help="Write tables for pandas into DIR: CSV, and Parquet with pyarrow.")
@verbosity
def simulate(
    job: str,
    overrides: tuple[str, ...],
    what_ifs: tuple[str, ...],
    engine: Literal["events", "longest-path"],
    interval: bool,
    draws: int | None,
    seed: int | None,
    as_json: bool,
    trace: str | None,
    ranks: str | None,
    window: str | None,
    html: str | None,
    action: str | None,
    sensitivity: bool,
    figures: str | None,
    export: str | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Simulate one training step of JOB and report where the time goes.

    Exit code 3 if it does not fit into memory.
    """
    file = output_file(trace, "--trace") if trace is not None else None
    page = output_file(html, "--html") if html is not None else None
    folder = output_folder(figures, "--figures") if figures is not None else None
    tables = output_folder(export, "--export") if export is not None else None
    _check_usage(page is None and sensitivity, "--sensitivity belongs to --html")
    _check_usage(page is None and action is not None, "--action belongs to --html")
    _check_usage(sensitivity and bool(what_ifs), "--sensitivity moves numbers of the job itself: not with --what-if")
    drawn = file is not None or page is not None or folder is not None
    _check_usage(not drawn and ranks is not None, "--ranks belongs to --trace, --figures or --html")
    _check_usage(file is None and window is not None, "--window belongs to --trace")
    asked = interval_asked(interval, draws, seed)
    from simulator.inputs import load_scenario
    from simulator.studies.whatif import simulate as run

    scenario = load_scenario(job, overrides)
    refuse_serving(scenario, __what_if=what_ifs, __action=action)
    chosen = _selection(ranks, window, scenario, what_ifs) if drawn else None
    began = perf_counter()
    with progress("simulating", quiet=quiet) as done:
        result = run(scenario, what_ifs, engine=engine, progress=done)
    took = perf_counter() - began
    spread = _interval(result, asked, quiet)
    if file is not None:
        _write_trace(result, file, chosen, quiet)
    looks = result if chosen is None else chosen.narrowed(result)
    if page is not None:
        _write_page(looks, page, (job, overrides) if sensitivity else None, spread, action, quiet)
    _write_looks(looks, folder, tables, chosen.ranks if chosen else (), quiet)
    if as_json:
        warn(result.warnings, quiet=quiet)
        print_json(result.as_dict() | ({"interval": spread.as_dict()} if spread else {}))
    else:
        if scenario.workload.serves:
            from reports.terminal import serving_tables

            print_report(*serving_tables.report(result, verbose=verbose, interval=spread))
        else:
            from reports.terminal import step_tables

            print_report(*step_tables.report(result, verbose=verbose, interval=spread))
    say(f"simulated {len(result.timeline.start):,} tasks by {engine} in {took:.1f} s", quiet=quiet)
    return 0 if result.memory.fits else DOES_NOT_FIT


def _check_usage(wrong: bool, text: str) -> None:
    if wrong:
        raise click.UsageError(text, click.get_current_context())


def _selection(ranks: str | None, window: str | None, scenario: Scenario, what_ifs: tuple[str, ...]) -> Selection:
    """What goes into the trace, checked before anything is computed."""
    from reports.export.trace import Selection
    from simulator.studies.whatif import apply

    for name in what_ifs if ranks is not None and "." in ranks else ():
        scenario = apply(scenario, name)
    return Selection.parse(ranks, window, scenario)


def _write_trace(result: Result, file: Path, chosen: Selection | None, quiet: bool) -> None:
    from reports.export.trace import write_trace

    with progress(f"writing {file.name}", quiet=quiet) as done:
        events = write_trace(result, file, chosen, progress=done)
    say(f"wrote {events:,} events to {file}", quiet=quiet)


def _interval(result: Result, asked: tuple[int, int] | None, quiet: bool) -> Interval | None:
    """The interval around the step time of a result, by as many draws and with the seed that were asked for."""
    if asked is None:
        return None
    from simulator.studies.uncertainty import interval

    with progress("drawing", quiet=quiet) as done:
        found = interval(result.scenario, draws=asked[0], seed=asked[1], progress=done)
    return found.scaled_to(result.metrics["step_time_s"])


def _write_page(
    result: Result,
    page: Path,
    moved: tuple[str, tuple[str, ...]] | None,
    spread: Interval | None,
    action: str | None,
    quiet: bool,
) -> None:
    """The page, one action opened; with what the step depends on if a job is given whose numbers are to be moved."""
    from reports.html import write_serving, write_simulation

    swings = None
    if moved is not None:
        from simulator.studies.sensitivity import tornado

        with progress("moving numbers", quiet=quiet) as done:
            swings = tornado(*moved, progress=done)
    if result.scenario.workload.serves:
        write_serving(result, page, swings, spread)
    else:
        write_simulation(result, page, swings, spread, action)
    say(f"wrote {page}", quiet=quiet)


def _write_looks(
    result: Result, figures: Path | None, tables: Path | None, ranks: tuple[int, ...], quiet: bool
) -> None:
    """The figures, those of pipeline ranks of these `ranks`, and the tables that were asked for."""
    if figures is not None:
        from reports.figures import write_figures

        say(f"drew {len(write_figures(result, figures, ranks))} files into {figures}", quiet=quiet)
    if tables is not None:
        from reports.export.data_frames import write_tables

        say(f"wrote {len(write_tables(result, tables))} tables into {tables}", quiet=quiet)
