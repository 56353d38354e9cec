"""`foretrain validate`: published figures next to predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reports.verbs.options import json_option, output_file, print_json, print_report, progress, say, verbosity

if TYPE_CHECKING:
    from pathlib import Path


@click.command(epilog="Example: foretrain validate --only 'E.zerobubble.*' --only B.train.mpft")
@click.option(
    "--only",
    "only",
    multiple=True,
    metavar="GLOB",
    help="Figures and runs by name: E.zerobubble.*, R. Repeatable.",
)
@click.option("--markdown", metavar="FILE", help="Write a page with every figure and its source.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that simulate steps.")
@click.option(
    "--claims",
    is_flag=True,
    help="Only what DeepSeek says of serving DeepSeek-V3, next to what follows from the inputs here.",
)
@click.option("--interval", is_flag=True, help="Count the published steps in their forecasts' intervals. Minutes.")
@json_option
@verbosity
def validate(
    only: tuple[str, ...],
    markdown: str | None,
    jobs: int,
    claims: bool,
    interval: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compute every published figure that can be computed, and show predicted next to published.

    Each figure is marked: used for calibration, given to the program, or only compared with. End-to-end figures, such
    as step times and GPU-hours, are always only compared with. Of runs of others (R.*) it counts how often the verdict
    on memory is right.
    """
    file = output_file(markdown, "--markdown") if markdown is not None else None
    if claims:
        if only or interval:
            raise click.UsageError("--claims stands alone", click.get_current_context())
        _show_claims(file, as_json, quiet)
        return
    from reports.terminal import validation_tables as validation
    from simulator.errors import InputError
    from simulator.validation import intervals_of, known_runs, verdicts
    from simulator.validation import validate as compute

    with progress("computing", quiet=quiet) as done:
        outcomes = compute(only, processes=jobs, progress=done)
    with progress("judging runs", quiet=quiet) as done:
        judged = verdicts(known_runs(only), done)
    if not outcomes and not judged:
        raise InputError(
            f"--only: {' '.join(only)}: no published figure has such a name; try A, B.train, C.deepep, E, R or S"
        )
    placed = None
    if interval:
        with progress("drawing", quiet=quiet) as done:
            placed = intervals_of(outcomes, processes=jobs, progress=done)
    if file is not None:
        from reports.export.files import replacing

        with replacing(file) as out:
            out.write(validation.markdown(outcomes, judged).encode())
        say(f"wrote {file}", quiet=quiet)
    if as_json:
        print_json(validation.as_dict(outcomes, judged, placed))
    elif file is None or not quiet:
        print_report(*validation.report(outcomes, judged, placed, verbose=verbose))


def _show_claims(file: Path | None, as_json: bool, quiet: bool) -> None:
    """Statements about serving: on the terminal, as JSON, or as a page."""
    from reports.terminal import validation_tables as validation
    from simulator.validation.serving.serving_claims import claims, markdown

    found = claims()
    if file is not None:
        from reports.export.files import replacing

        with replacing(file) as out:
            out.write(f"{markdown(found)}\n".encode())
        say(f"wrote {file}", quiet=quiet)
    if as_json:
        print_json(validation.claims_dict(found))
    elif file is None:
        print_report(*validation.claims_report(found))
