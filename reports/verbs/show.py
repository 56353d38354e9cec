"""`foretrain show model|architecture|hardware|schedule|job|stack NAME`; `show graph` and `show models` have modules of
their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reports.verbs.options import (
    Input,
    Ordered,
    json_option,
    print_json,
    print_report,
    progress,
    set_option,
    verbosity,
)
from reports.verbs.showing.graph import graph
from reports.verbs.showing.loads import loads
from reports.verbs.showing.models import models

if TYPE_CHECKING:
    from simulator.inputs import Kind
    from simulator.results.result import Result
    from simulator.schedule import Schedule
    from simulator.spec.scenario import Scenario

_HOST = "deepseek-v3-pretrain"
"""The job whose model, hardware or stack is swapped for the one shown, so that `--set` can change it."""


@click.group(cls=Ordered, epilog="Example: foretrain show model deepseek-v3")
def show() -> None:
    """Print a model, a hardware profile, a schedule, a job, a software stack, or a block's op graph.

    Without a NAME, list those that are shipped; schedules and architectures
    that installed packages offer are listed too.
    """


def _listed(kind: Kind) -> None:
    from simulator.inputs import list_names

    for name in list_names(kind):
        click.echo(name)


def _changed(kind: str, name: str, overrides: Sequence[str]) -> Scenario:
    """A scenario with the named model, hardware or stack, changed by the overrides."""
    from simulator.inputs import load_scenario

    return load_scenario(_HOST, [f"{kind}={name}", *overrides])


def _as_dict(kind: str, value: Any) -> dict[str, Any]:
    from simulator.results.result import plain

    return {"schema": f"foretrain.{kind}/1", **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}


def _named(kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.argument("name", type=Input(kind), metavar="[NAME]", required=False)


@show.command(
    short_help="Shape, parameters and FLOP per token of a model.",
    epilog="Example: foretrain show model deepseek-v3 --set model.n_routed_experts=128",
)
@_named("model")
@set_option
@click.option(
    "--sequence-length",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="TOKENS",
    help="Sequence length that FLOP per token are counted at.",
)
@click.option(
    "--keys/--no-keys",
    default=None,
    help="Which keys of config.json were read, which were ignored and why. [default: for a file of yours]",
)
@json_option
def model(name: str | None, overrides: tuple[str, ...], sequence_length: int, keys: bool | None, as_json: bool) -> None:
    """Shape, parameters by component and FLOP per token of a model (config.json).

    NAME is a shipped model, the path of a config.json, or of a folder that
    holds one. `foretrain show models` lists what can be read.
    """
    if name is None:
        return _listed("model")
    from reports.terminal.showing import model_tables
    from reports.terminal.showing import show_tables as shown
    from simulator.inputs import list_names, read_model

    found = read_model(name)
    spec = _changed("model", name, overrides).model if overrides else found.model
    explained = name.lower() not in list_names("model") if keys is None else keys
    if as_json:
        account = {"keys": model_tables.reading_dict(found)} if explained else {}
        return print_json(_as_dict("model", spec) | {"parameters": model_tables.parameters_dict(spec)} | account)
    return print_report(*shown.model(spec, sequence_length), *(model_tables.reading(found) if explained else ()))


show.add_command(models)
show.add_command(loads)


@show.command(
    short_help="What is read of the config.json of a model_type.",
    epilog="Example: foretrain show architecture qwen3_moe",
)
@click.argument("name", metavar="[NAME]", required=False)
@json_option
def architecture(name: str | None, as_json: bool) -> None:
    """Which keys of config.json a model_type may have, what they are here, and what it implies."""
    from simulator.errors import InputError
    from simulator.inputs import ARCHITECTURES
    from simulator.inputs.problems import nearest

    if name is None:
        for known in ARCHITECTURES:
            click.echo(known)
        return None
    found = ARCHITECTURES.get(name)
    if found is None:
        raise InputError(f"architecture {name!r} is not known: {nearest(name, ARCHITECTURES)}")
    from reports.terminal.showing import show_tables as shown

    if as_json:
        return print_json(shown.architecture_dict(name, found))
    return print_report(*shown.architecture(name, found, ARCHITECTURES.origin(name)))


@show.command(
    short_help="Every number of a hardware profile, with its source.",
    epilog="Example: foretrain show hardware h800 --verbose",
)
@_named("hardware")
@set_option
@json_option
@verbosity
def hardware(name: str | None, overrides: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool) -> None:
    """Every number of a hardware profile, with its source."""
    if name is None:
        return _listed("hardware")
    from reports.terminal.showing import show_tables as shown
    from simulator.inputs import load_hardware

    cluster = _changed("hardware", name, overrides).cluster if overrides else load_hardware(name)
    if as_json:
        return print_json(_as_dict("hardware", cluster))
    return print_report(*shown.hardware(cluster, verbose))


@show.command(
    short_help="A pipeline schedule as a grid, in colour.",
    epilog="Example: foretrain show schedule dualpipe --pp 8 --microbatches 20",
)
@click.argument("name", metavar="[NAME]", required=False)
@set_option
@click.option("--pp", type=click.IntRange(min=1), metavar="N", help="Pipeline ranks. [default: 4]")
@click.option("--microbatches", type=click.IntRange(min=1), metavar="N", help="Microbatches. [default: 2 x pp]")
@click.option(
    "--vpp",
    type=click.IntRange(min=1),
    metavar="N",
    help="Virtual stages on each rank. [default: 2 if it has any]",
)
@click.option("--start", type=click.IntRange(min=0), default=0, metavar="SLOT", help="First slot shown. [default: 0]")
@click.option("--wrap", is_flag=True, help="Go on below where the terminal ends.")
@click.option("--times", is_flag=True, help="Of a job: simulate it, and draw each step as long as it took.")
@click.option("--text", is_flag=True, help="The text form, which --set layout.schedule=FILE reads.")
@json_option
def schedule(
    name: str | None,
    overrides: tuple[str, ...],
    pp: int | None,
    microbatches: int | None,
    vpp: int | None,
    start: int,
    wrap: bool,
    times: bool,
    text: bool,
    as_json: bool,
) -> None:
    """A pipeline schedule as a grid: a line a rank, time from left to right.

    NAME is a schedule, a schedule file, or a job, whose schedule is shown.
    """
    from reports.terminal.showing import show_tables as shown
    from simulator.schedule import SCHEDULES, format_schedule

    if name is None:
        if as_json:
            return print_json(shown.schedules_dict())
        for known in SCHEDULES:
            click.echo(known)
        return None
    found = _schedule(name, overrides, pp, microbatches, vpp)
    if times:
        return _timed(_simulated(name, overrides), start, wrap, as_json)
    if as_json:
        return print_json(shown.schedule_dict(found))
    if text:
        return click.echo(format_schedule(found), nl=False)
    from reports.terminal.console import width

    return print_report(*shown.schedule(found, width(), start=start, wrap=wrap))


@show.command(
    short_help="A job with all its values, as a TOML file.",
    epilog="Example: foretrain show job deepseek-v3-pretrain --set layout.pp=8 > mine.toml",
)
@_named("job")
@set_option
@json_option
def job(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """A job with all its values, as a TOML file that can be edited and run."""
    if name is None:
        return _listed("job")
    from reports.terminal.showing.show_tables import job_toml
    from simulator.inputs import load_scenario

    found = load_scenario(name, overrides)
    if as_json:
        return print_json(_as_dict("job", found.job))
    return click.echo(job_toml(found.job, found.states), nl=False)


@show.command(
    short_help="What a software stack does differently, with sources.",
    epilog="Example: foretrain show stack megatron-core",
)
@_named("stack")
@set_option
@json_option
def stack(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """What a software stack does differently, with sources."""
    if name is None:
        return _listed("stack")
    from reports.terminal.showing import show_tables as shown
    from simulator.inputs import load_stack

    settings = _changed("stack", name, overrides).stack if overrides else load_stack(name)
    return print_json(_as_dict("stack", settings)) if as_json else print_report(*shown.stack(settings))


show.add_command(graph)


def _simulated(name: str, overrides: Sequence[str]) -> Result:
    """One step of the job of that name."""
    from simulator.inputs import load_scenario
    from simulator.results.simulate import simulate
    from simulator.schedule import SCHEDULES

    if name in SCHEDULES or (Path(name).is_file() and Path(name).suffix != ".toml"):
        raise click.UsageError(
            f"--times needs a job to simulate, and {name!r} is a schedule", click.get_current_context()
        )
    scenario = load_scenario(name, overrides)
    with progress("simulating") as done:
        return simulate(scenario, progress=done)


def _timed(result: Result, start: int, wrap: bool, as_json: bool) -> None:
    from reports.terminal.console import width
    from reports.terminal.showing import show_tables as shown

    if as_json:
        return print_json(shown.schedule_dict(result.schedule, shown.times_of(result)))
    return print_report(*shown.timed_schedule(result, width(), start=start, wrap=wrap))


def _schedule(
    name: str, overrides: Sequence[str], pp: int | None, microbatches: int | None, vpp: int | None
) -> Schedule:
    """The schedule of that name, in that file, or of that job."""
    from simulator.schedule import SCHEDULES, build, record_of

    if (record := record_of(name)) is not None:
        if overrides:
            raise click.UsageError(
                "--set changes jobs; a schedule has --pp, --microbatches and --vpp", click.get_current_context()
            )
        ranks = pp or 4
        virtual = vpp or (2 if record.virtual_stages else 1)
        return build(name, pp=ranks, microbatches=microbatches or 2 * ranks, vpp=virtual)
    if pp or microbatches or vpp:
        raise click.UsageError(
            f"--pp, --microbatches and --vpp belong to a schedule's name, and {name!r} is none: {', '.join(SCHEDULES)}",
            click.get_current_context(),
        )
    return _of_file_or_job(name, overrides)


def _of_file_or_job(name: str, overrides: Sequence[str]) -> Schedule:
    from simulator.errors import InputError
    from simulator.inputs import list_names, load_scenario
    from simulator.inputs.reading import schedule_text
    from simulator.results.simulate import schedule_of
    from simulator.schedule import SCHEDULES, parse_schedule, validate

    path = Path(name)
    if path.is_file() and path.suffix != ".toml":
        found = parse_schedule(schedule_text(path), source=name)
        validate(found)
        return found
    if not path.suffix and "/" not in name and name.lower() not in map(str.lower, list_names("job")):
        from simulator.inputs.problems import nearest

        advice = nearest(name, [*SCHEDULES, *list_names("job")])
        raise InputError(f"{name!r} is neither a schedule, nor a job, nor a file: {advice}")
    return schedule_of(load_scenario(name, overrides))
