"""`foretrain show models`: the configs that can be read, the shipped models, and public models tried."""

from __future__ import annotations

import click

from reports.verbs.options import json_option, output_file, print_json, print_report, say


@click.command(
    short_help="What models can be read: types, shipped ones, public ones.",
    epilog="Example: foretrain show models --public",
)
@click.option("--public", is_flag=True, help="Try public models: which load, which are refused and why.")
@click.option("--markdown", metavar="FILE", help="Write a page of the public models, the types, and their sources.")
@json_option
def models(public: bool, markdown: str | None, as_json: bool) -> None:
    """Types of config.json that can be read, and the shipped models with their parameters and sources."""
    file = output_file(markdown, "--markdown") if markdown is not None else None
    from reports.terminal.showing import model_tables as tables
    from simulator.validation.public_models import tried

    if file is not None:
        from reports.export.files import replacing

        with replacing(file) as out:
            out.write(tables.markdown(tried()).encode())
        return say(f"wrote {file}")
    if public:
        return print_json(tables.public_dict(tried())) if as_json else print_report(*tables.public(tried()))
    return _overview(as_json)


def _overview(as_json: bool) -> None:
    """Types and shipped models."""
    from reports.terminal.showing import model_tables as tables
    from simulator.inputs import list_names, load_model
    from simulator.validation.public_models import shipped_sources

    shipped, sources = {name: load_model(name) for name in list_names("model")}, shipped_sources()
    if as_json:
        return print_json(tables.models_dict(shipped, sources))
    return print_report(*tables.models(shipped, sources))
