"""`foretrain compare JOB... --vary path=v1,v2`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import (
    Input,
    engine_option,
    interval_asked,
    interval_options,
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

    from reports.views.variants import Outcome

NONE_POSSIBLE, NONE_FITS = 2, 3


@click.command(
    epilog="Example: foretrain compare deepseek-v3-pretrain --vary layout.schedule=1f1b,zb1p,dualpipe"
    " --vary precision.recipe=bf16,fp8"
)
@click.argument("jobs", nargs=-1, required=True, type=Input("job"), metavar="JOB...")
@click.option(
    "--vary",
    multiple=True,
    metavar="PATH=V1,V2,...",
    help="Values to try, as in model.topk_group=1,2,4,8. Repeatable: every combination is simulated.",
)
@what_if_option("each is compared with the job as it is")
@set_option
@engine_option
@interval_options
@json_option
@click.option("--html", metavar="FILE", help="Write a page with all variants side by side, on one time axis.")
@click.option("--figures", metavar="DIR", help="Draw the variants, and curves over a varied number, into DIR.")
@verbosity
@click.pass_context
def compare(
    ctx: click.Context,
    jobs: tuple[str, ...],
    vary: tuple[str, ...],
    what_ifs: tuple[str, ...],
    overrides: tuple[str, ...],
    engine: Literal["events", "longest-path"],
    interval: bool,
    draws: int | None,
    seed: int | None,
    as_json: bool,
    html: str | None,
    figures: str | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Simulate several jobs, or one job with varied values, side by side.

    A combination that breaks a rule stays in the table, with the reason. Exit code 3 if none fits into memory.
    """
    page = output_file(html, "--html") if html is not None else None
    folder = output_folder(figures, "--figures") if figures is not None else None
    asked = interval_asked(interval, draws, seed)
    from reports.views import variants as runs
    from reports.views import words
    from reports.views.sidebyside import fits
    from simulator.errors import InputError
    from simulator.inputs import load_scenario

    varied = [runs.parse_vary(text) for text in vary]
    chosen = runs.variants(jobs, varied, overrides, what_ifs)
    runs.check_inputs(jobs, varied, overrides)
    served = [load_scenario(each, overrides).workload.serves for each in jobs]
    if any(served):
        if not all(served):
            raise InputError("compare: some of these jobs train and some serve; compare them apart")
        for each in jobs:
            refuse_serving(load_scenario(each, overrides), __what_if=what_ifs)
    began = perf_counter()
    with progress(f"simulating {words.counted(len(chosen), 'variant')}", quiet=quiet) as done:
        outcomes = runs.run_all(chosen, engine, done, draw=page is not None, spread=asked)
    _write_looks(outcomes, page, folder, quiet)
    if as_json:
        print_json(runs.as_dict(outcomes))
        warn((outcome.error for outcome in outcomes if outcome.error), quiet=quiet)
    else:
        from reports.terminal.comparison_tables import comparison
        from reports.terminal.console import width

        print_report(*comparison(outcomes, width(), verbose=verbose))
    say(f"simulated {words.counted(len(chosen), 'variant')} by {engine} in {perf_counter() - began:.1f} s", quiet=quiet)
    if all(outcome.error for outcome in outcomes):
        ctx.exit(NONE_POSSIBLE)
    if not any(outcome.result and fits(outcome.result) for outcome in outcomes):
        ctx.exit(NONE_FITS)


def _write_looks(outcomes: list[Outcome], page: Path | None, folder: Path | None, quiet: bool) -> None:
    """The page and the figures that were asked for."""
    from reports.views.variants import differences

    columns = differences(outcomes)
    titles = [", ".join(c[at] for c in columns.values()) or o.variant.job for at, o in enumerate(outcomes)]
    ran = [(title, o.result, at) for at, (title, o) in enumerate(zip(titles, outcomes, strict=True)) if o.result]
    if page is not None:
        from reports.html import Shown, write_comparison

        shown = [Shown(title=title, result=result, actions=outcomes[at].actions) for title, result, at in ran]
        write_comparison(shown, page, [(title, o.error) for title, o in zip(titles, outcomes, strict=True) if o.error])
        say(f"wrote {page}", quiet=quiet)
    if folder is not None and ran:
        from reports.figures import write_comparison_figures
        from reports.views.sidebyside import marked

        varied = {path: [values[at] for _, _, at in ran] for path, values in columns.items()}
        files = write_comparison_figures(
            [marked(title, result) for title, result, _ in ran], [result for _, result, _ in ran], varied, folder
        )
        say(f"drew {len(files)} files into {folder}", quiet=quiet)
