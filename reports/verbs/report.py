"""`foretrain report`: what can be said of saved results, without simulating again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reports.verbs.options import json_option, output_file, print_json, print_report, quiet_option, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from reports.export.saved import Saved

SCHEMA = "foretrain.report/2"


@click.group(epilog="Example: foretrain report compare before.json after.json --html change.html")
def report() -> None:
    """Work with results saved by --json."""


@report.command(epilog="Example: foretrain report compare before.json after.json --html change.html")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--html", metavar="FILE", help="Write a page with all results side by side.")
@json_option
@quiet_option
def compare(files: tuple[str, ...], html: str | None, as_json: bool, quiet: bool) -> None:
    """Put saved results side by side; changes are against the first.

    A FILE is the output of simulate --json or compare --json.
    """
    page = output_file(html, "--html") if html is not None else None
    from reports.export.saved import read_saved

    saved = [one for file in files for one in read_saved(Path(file))]
    if len(saved) < 2:
        raise click.UsageError("there must be at least two results to compare", click.get_current_context())
    if page is not None:
        from reports.html import Shown, write_comparison

        write_comparison([Shown(title=one.title, result=one.result) for one in saved], page)
        say(f"wrote {page}", quiet=quiet)
    if as_json:
        print_json(as_dict(saved))
    else:
        print_report(*tables(saved))


def as_dict(saved: list[Saved]) -> dict[str, Any]:
    """The object that `--json` prints."""
    from reports.views.sidebyside import fits, metrics_of, value_of, work_differs

    compared = metrics_of([one.result for one in saved])
    return {
        "schema": SCHEMA,
        "work_differs": work_differs([one.result for one in saved]),
        "results": [
            {
                "title": one.title,
                "scenario": one.result["scenario"].get("hash"),
                "metrics": {m.key: value_of(one.result, m.key) for m in compared},
                "fits": fits(one.result),
                "breakdown_s": one.result["breakdown_s"],
            }
            for one in saved
        ],
    }


def tables(saved: list[Saved]) -> list[RenderableType]:
    """Metrics and differing inputs for the terminal."""
    from rich.text import Text

    from reports.terminal.elements import columns, section
    from reports.views.sidebyside import input_differences, marked, prices, sentence, table

    results = [one.result for one in saved]
    titles = [marked(one.title, one.result) for one in saved]
    metrics = columns("", *(f">{title}" for title in titles))
    for metric, cells in table(results):
        texts = [cell.text + ("" if cell.change is None else f" ({100 * cell.change:+.1f} %)") for cell in cells]
        metrics.add_row(metric.name, *texts)
    inputs = columns("", *titles)
    differences = input_differences(results)
    for path, values in differences:
        inputs.add_row(path, *values)
    parts: list[RenderableType] = [Text(sentence(titles, results), style="bold"), *section("Results", metrics)]
    parts += section("Prices", Text("\n".join(prices(results)) or "not said"))
    return parts + list(section("Inputs that differ", inputs if differences else Text("none")))
