"""`foretrain show graph JOB`: the op graph of a block, as a table, a page, a figure or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reports.verbs.options import (
    Input,
    json_option,
    output_file,
    print_json,
    print_report,
    say,
    set_option,
    verbosity,
)

if TYPE_CHECKING:
    from simulator.studies.block_graph import ActionKind, BlockGraph

_ACTIONS = ("pair", "F", "B", "I", "W")
"""`simulator.studies.block_graph.ACTIONS` (a test holds them equal): here, so that help needs no simulator."""


@click.command(
    short_help="The ops of a block, who waits for whom, and the critical path.",
    epilog="Example: foretrain show graph deepseek-v3-pretrain --block moe --html graph.html",
)
@click.argument("job", type=Input("job"), metavar="[JOB]", required=False)
@set_option
@click.option(
    "--block",
    metavar="N",
    help="Which block: its kind (embed, dense, moe, head, mtp) or its number in the model's order, the embedding being"
    " 0 and the first layer 1. [default: the kind that most layers are]",
)
@click.option(
    "--action",
    "actions",
    multiple=True,
    type=click.Choice(_ACTIONS),
    help="Which action: an overlapped pair, F forward, B backward, I gradients of the inputs alone, W of the weights"
    " alone. Repeatable. [default: the pair if the schedule has pairs, else every action it has]",
)
@click.option("--html", metavar="FILE", help="Write a page to look at in a browser: one file, needs no network.")
@click.option("--svg", metavar="FILE", help="Draw it.")
@click.option("--graphml", metavar="FILE", help="Write the graph for networkx, Gephi, yEd or Cytoscape.")
@json_option
@verbosity
def graph(
    job: str | None,
    overrides: tuple[str, ...],
    block: str | None,
    actions: tuple[ActionKind, ...],
    html: str | None,
    svg: str | None,
    graphml: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show the op graph of a block of JOB, as it is simulated with nothing else on the rank.

    Streams are lanes, an op is as wide as it is long, and the critical path is marked: the chain of ops that decides
    how long the block takes. Without a file to write, a table; -v lists every op.
    """
    from simulator.inputs import list_names, load_scenario

    if job is None:
        for known in list_names("job"):
            click.echo(known)
        return
    files = _files(html=(html, (".html", ".htm")), svg=(svg, (".svg",)), graphml=(graphml, (".graphml", ".xml")))
    from simulator.studies.block_graph import block_graphs

    scenario = load_scenario(job, overrides)
    found = block_graphs(scenario, block, actions)
    for option, file in files.items():
        _write(option, found, scenario.name, file)
        say(f"wrote {file}", quiet=quiet)
    if as_json:
        from reports.views.graph_ops import as_dict

        shown = [as_dict(one) for one in found]
        print_json({"schema": "foretrain.graph/1", "job": scenario.name, "block": found[0].block, "actions": shown})
    elif not files:
        from reports.terminal.showing.graph_tables import report

        print_report(*report(found, scenario.name, verbose=verbose))


def _files(**asked: tuple[str | None, Sequence[str]]) -> dict[str, Path]:
    """The files to write, by option; a path that cannot be one is refused before anything is computed."""
    return {
        option: output_file(path, f"--{option}", endings)
        for option, (path, endings) in asked.items()
        if path is not None
    }


def _write(option: str, found: Sequence[BlockGraph], name: str, file: Path) -> None:
    if option == "html":
        from reports.html.graph_page import write_graphs

        write_graphs(found, name, file)
    elif option == "svg":
        from reports.figures.graph_figure import graph_figure
        from reports.figures.style import styled, write

        with styled():
            write(graph_figure(found, name), file)
    else:
        from reports.export.graphml import write_graphml

        write_graphml(found, name, file)
