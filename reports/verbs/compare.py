"""`foretrain compare JOB... --vary path=v1,v2`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.options import (
    Input,
    engine_option,
    json_option,
    output_file,
    print_json,
    print_report,
    progress,
    say,
    set_option,
    verbosity,
    warn,
)

if TYPE_CHECKING:
    from pathlib import Path

    from reports.compare import Outcome

NONE_POSSIBLE = 2


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
@set_option
@engine_option
@json_option
@click.option("--html", metavar="FILE", help="Write a page with all variants side by side, on one time axis.")
@verbosity
@click.pass_context
def compare(
    ctx: click.Context,
    jobs: tuple[str, ...],
    vary: tuple[str, ...],
    overrides: tuple[str, ...],
    engine: Literal["events", "longest-path"],
    as_json: bool,
    html: str | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Simulate several jobs, or one job with varied values, side by side.

    A combination that breaks a rule stays in the table, with the reason.
    """
    page = output_file(html, "--html") if html is not None else None
    from reports import compare as runs

    varied = [runs.parse_vary(text) for text in vary]
    chosen = runs.variants(jobs, varied, overrides)
    runs.check_inputs(jobs, varied, overrides)
    began = perf_counter()
    with progress(f"simulating {len(chosen)} variants", quiet=quiet) as done:
        outcomes = runs.run_all(chosen, engine, done, draw=page is not None)
    if page is not None:
        _write_page(outcomes, page, quiet)
    if as_json:
        print_json(runs.as_dict(outcomes))
        warn((outcome.error for outcome in outcomes if outcome.error), quiet=quiet)
    else:
        from reports.comparison import comparison
        from reports.console import width

        print_report(*comparison(outcomes, width(), verbose=verbose))
    say(f"simulated {len(chosen)} variants by {engine} in {perf_counter() - began:.1f} s", quiet=quiet)
    if all(outcome.error for outcome in outcomes):
        ctx.exit(NONE_POSSIBLE)


def _write_page(outcomes: list[Outcome], page: Path, quiet: bool) -> None:
    from reports.compare import differences
    from reports.html import Shown, write_comparison

    columns = list(differences(outcomes).values())
    titles = [", ".join(column[at] for column in columns) or outcomes[at].variant.job for at in range(len(outcomes))]
    named = list(zip(titles, outcomes, strict=True))
    shown = [Shown(title=title, result=o.result, actions=o.actions) for title, o in named if o.result]
    write_comparison(shown, page, [(title, o.error) for title, o in named if o.error])
    say(f"wrote {page}", quiet=quiet)
