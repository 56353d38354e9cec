"""`foretrain memory JOB`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import (
    job_argument,
    json_option,
    output_file,
    print_json,
    print_report,
    progress,
    quiet_option,
    say,
    set_option,
)

if TYPE_CHECKING:
    from simulator.spec.scenario import Scenario


def _serving(scenario: Scenario, figure: Path | None, page: Path | None, as_json: bool, quiet: bool) -> int:
    """The memory of a serving step, with the figure and the page that were asked for."""
    from reports.terminal.serving_tables import memory_report
    from simulator.memory import memory_of_serving
    from simulator.results.simulate import prepare

    prepare(scenario)
    found = memory_of_serving(scenario)
    if figure is not None:
        from reports.figures.serving_figure import rank_memory_figure
        from reports.figures.style import styled, write

        with styled():
            write(rank_memory_figure(found), figure)
        say(f"wrote {figure}", quiet=quiet)
    if page is not None:
        from reports.html.serving_memory_page import write_serving_memory

        write_serving_memory(scenario, found, page)
        say(f"wrote {page}", quiet=quiet)
    if as_json:
        print_json(found.as_dict())
    else:
        print_report(*memory_report(scenario.name, scenario.job.workload, found, found.assumptions.serving_lines()))
    return 0 if found.fits else 3


def _figure_file(path: str) -> Path:
    from reports.figures.style import METADATA

    return output_file(path, "--figure", METADATA)


@click.command(epilog="Example: foretrain memory deepseek-v3-pretrain --measures --figure memory.png")
@job_argument
@set_option
@json_option
@click.option("--measures", "with_measures", is_flag=True, help="Show what each of DeepSeek-V3's measures saves.")
@click.option("--figure", metavar="FILE", help="Draw memory over the step, stacked (.png, .svg, .pdf).")
@click.option("--html", metavar="FILE", help="Write a page to look at in a browser: one file, needs no network.")
@click.option("--rank", type=int, metavar="N", help="Pipeline rank to draw. [default: the one with the highest peak]")
@quiet_option
def memory(
    job: str,
    overrides: tuple[str, ...],
    as_json: bool,
    with_measures: bool,
    figure: str | None,
    html: str | None,
    rank: int | None,
    quiet: bool,
) -> int:
    """Forecast the memory of every rank over one training step of JOB.

    Exit code 3 if it does not fit.
    """
    file = _figure_file(figure) if figure is not None else None
    page = output_file(html, "--html") if html is not None else None
    from reports.terminal import memory_tables as words
    from simulator.inputs import load_scenario
    from simulator.memory import curve_of, measures, memory_of
    from simulator.results.simulate import prepare, timeline_of
    from simulator.studies.feasibility import SHOWN_FIXES, fixes

    scenario = load_scenario(job, overrides)
    if scenario.workload.serves:
        refuse_serving(scenario, __measures=with_measures, __rank=rank is not None)
        return _serving(scenario, file, page, as_json, quiet)
    built, schedule = prepare(scenario)
    if rank is not None and not 0 <= rank < schedule.ranks:
        raise click.UsageError(f"--rank: {rank}: the pipeline has ranks 0 to {schedule.ranks - 1}")
    with progress("simulating", quiet=quiet) as done:
        timeline = timeline_of(built, schedule, "events", done)  # as simulate, so that the peak is at the same time
    found = memory_of(built, schedule, timeline)
    saved = measures(built, schedule) if with_measures else []
    advice = [] if found.fits else fixes(scenario)[:SHOWN_FIXES]
    if file is not None or page is not None:
        curve = curve_of(built, schedule, timeline, found.worst.rank if rank is None else rank)
        if file is not None:
            from reports.figures.memory_figure import memory_figure
            from reports.figures.style import styled, write

            with styled():
                write(memory_figure(curve, found.capacity, f"Memory of rank {curve.rank}: {scenario.name}"), file)
            say(f"wrote {file}", quiet=quiet)
        if page is not None:
            from reports.html.memory_page import write_memory

            write_memory(scenario, found, curve, page, saved)
            say(f"wrote {page}", quiet=quiet)
    if as_json:
        shown = found.as_dict()
        if with_measures:
            shown["measures"] = [
                {"name": m.name, "source": m.source, "saves_bytes": m.saves, "peak_without_bytes": m.peak_without}
                for m in saved
            ]
        if not found.fits:
            shown["fixes"] = [
                {"set": fix.change, "peak_bytes": fix.candidate.memory, "step_time_s": fix.candidate.step}
                for fix in advice
            ]
        print_json(shown)
    else:
        print_report(*words.report(scenario.name, found, saved, advice))
    return 0 if found.fits else 3
