"""`foretrain search JOB [--over ...]`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import click

from reports.verbs.options import (
    check_executor,
    executor_options,
    interval_asked,
    interval_options,
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
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from simulator.studies.search import Candidate, Confirmed, Found, Question, Rank
    from simulator.studies.search.ranking import Executor
    from simulator.studies.uncertainty import Interval

INTERRUPTED = 130


@click.command(
    epilog="Example: foretrain search deepseek-v3-pretrain --over layout.pp=4,8,16 --over layout.ep=32,64,128"
    " --over layout.schedule=1f1b,zb1p,dualpipe --top 5"
)
@job_argument
@click.option(
    "--over",
    multiple=True,
    metavar="PATH=VALUES",
    help="Try each of these values, as in layout.pp=4,8,16 or hardware.node.nvlink.bandwidth=160e9,450e9. Repeatable."
    " [default: parallelism, schedule, microbatch and recomputation, in values that divide]",
)
@set_option
@click.option(
    "--rank",
    type=click.Choice(["time", "throughput", "latency", "cost", "memory"]),
    help="What the best have least of: time per token, price of the run, or memory; of a serving job most throughput on"
    " a GPU, or least latency, price of a token, or memory. [default: time; throughput]",
)
@click.option(
    "--max-latency",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Of a serving job: only what takes no longer per output token (decode) or to the first token (prefill).",
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many to show.")
@click.option(
    "--confirm",
    type=click.IntRange(min=0),
    metavar="N",
    help="Run the best N through the full discrete-event engine. [default: all shown]",
)
@interval_options
@json_option
@click.option("--html", metavar="FILE", help="Write a page to look at in a browser: one file, needs no network.")
@click.option("--csv", metavar="FILE", help="Write every combination that was judged.")
@click.option("--figures", metavar="DIR", help="Draw what can run into DIR: time, memory and price against each other.")
@click.option("--resume", metavar="FILE", help="Keep what is found in FILE (SQLite) and go on from what it holds.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. [default: all cores]")
@executor_options
@quiet_option
@click.pass_context
def search(
    ctx: click.Context,
    job: str,
    over: tuple[str, ...],
    overrides: tuple[str, ...],
    rank: Rank | None,
    max_latency: float | None,
    top: int,
    confirm: int | None,
    interval: bool,
    draws: int | None,
    seed: int | None,
    as_json: bool,
    html: str | None,
    csv: str | None,
    figures: str | None,
    resume: str | None,
    jobs: int | None,
    executor: Executor,
    address: str,
    quiet: bool,
) -> None:
    """Try every combination of layouts, schedules, batches or hardware, and rank those that are valid and fit.

    Ctrl-C keeps what is done and shows it; with --resume FILE the same command goes on later.
    """
    table = output_file(csv, "--csv") if csv else None
    page = output_file(html, "--html") if html else None
    folder = output_folder(figures, "--figures") if figures else None
    kept = output_file(resume, "--resume") if resume else None
    check_executor(executor, address)
    spread = interval_asked(interval, draws, seed)
    from reports.terminal import search_tables as words
    from simulator.studies import search as engine

    asked = engine.question(job, overrides, over)
    began = perf_counter()
    with progress("searching", quiet=quiet) as show:
        found = engine.search(
            asked,
            rank=rank,
            limit=max_latency,
            top=top,
            file=kept,
            jobs=jobs,
            executor=executor,
            address=address,
            progress=(lambda done, size: show(done / size)) if show else None,
            every=_kept(asked, table, folder),
        )
    took = perf_counter() - began
    sure, complaints = [], list[str]()
    if found.complete and found.best and confirm != 0:
        with progress("confirming the best by the full engine", quiet=quiet) as done:
            chosen = found.best[: top if confirm is None else confirm]
            sure = engine.confirm(asked, chosen, done, rank=found.rank, jobs=jobs, failed=complaints.append)
    around = _intervals(asked, found, sure, spread, quiet)
    if page is not None:
        from reports.html import write_search

        write_search(found, sure, page)
        say(f"wrote {page}", quiet=quiet)
    if as_json:
        print_json(words.as_dict(found, sure, around))
    else:
        print_report(*words.report(found, sure, took, around))
    warn(complaints, quiet=quiet)
    for path in filter(None, (table, folder)):
        say(f"wrote {path}", quiet=quiet)
    _close(ctx, found, kept, quiet)


def _close(ctx: click.Context, found: Found, kept: Path | None, quiet: bool) -> None:
    """The exit code, and what went wrong: lines on stderr that --quiet does not silence."""
    for line in filter(None, (found.stopped, found.unsaved)):
        click.echo(f"foretrain: {line}", err=True)
    if found.stopped:
        say("what was judged is shown" + (f"; go on with --resume {kept}" if kept else ""), quiet=quiet)
    if found.stopped or found.unsaved:
        ctx.exit(2)
    if not found.complete:
        say("interrupted" + (f"; go on with --resume {kept}" if kept else ""), quiet=quiet)
        ctx.exit(INTERRUPTED)
    if not found.best:
        ctx.exit(3)


def _intervals(
    asked: Question, found: Found, sure: Sequence[Confirmed], spread: tuple[int, int] | None, quiet: bool
) -> dict[int, Interval]:
    """Intervals of the best by number, by as many draws and with the seed that were asked for."""
    if spread is None or not found.complete:
        return {}
    from simulator.studies.search import intervals

    steps = {one.candidate.number: one.step for one in sure}
    with progress("drawing", quiet=quiet) as done:
        return intervals(asked, found.best, draws=spread[0], seed=spread[1], steps=steps, progress=done)


def _kept(asked: Question, table: Path | None, folder: Path | None) -> Callable[[Iterable[Candidate]], None] | None:
    """What becomes of all candidates: the table and the figures that were asked for."""
    if table is None and folder is None:
        return None

    def every(candidates: Iterable[Candidate]) -> None:
        if table is not None:
            from reports.terminal.search_tables import write_csv

            write_csv(table, asked, candidates)
        if folder is not None:
            from reports.figures.search_figure import write_search_figures

            write_search_figures(asked, candidates, folder)

    return every
