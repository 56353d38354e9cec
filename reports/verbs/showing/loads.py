"""`foretrain show loads`: how evenly gates load experts and ranks, as published, and what jobs take from it."""

from __future__ import annotations

import click

from reports.verbs.options import json_option, print_json, print_report


@click.command(
    short_help="How evenly gates load experts and ranks, as published.",
    epilog="Example: foretrain show loads",
)
@json_option
def loads(as_json: bool) -> None:
    """Published loads of experts and ranks, and what routing.kind=published and intervals take from them."""
    from reports.terminal.showing import load_tables as tables
    from simulator.routing.published_loads import default_loads, published_loads

    if as_json:
        return print_json(tables.as_dict(published_loads(), default_loads()))
    return print_report(*tables.loads(published_loads(), default_loads()))
