"""Arguments and options that verbs share, and the few things each does with them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import RenderableType

Command = TypeVar("Command", bound=Callable[..., Any])


class Input(click.ParamType[str]):
    """The name of a shipped input of one kind, or a path; completes names in the shell."""

    def __init__(self, kind: str) -> None:
        self.name = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Shipped names that begin so, and files."""
        from simulator.inputs import list_names

        names = [CompletionItem(name) for name in list_names(self.name) if name.startswith(incomplete)]  # type: ignore[arg-type]
        return [*names, CompletionItem(incomplete, type="file")]


WHAT_IFS = (
    "coprocessor",
    "unified-network",
    "fp8-accumulation",
    "fused-casts",
    "nvlink-900",
    "straggler",
    "narrow-nic",
    "lost-rail",
    "own-clocks",
    "late-hosts",
)
"""Names of `simulator.studies.whatif` (a test holds them equal): here, so that help needs no simulator."""


class WhatIfName(click.ParamType[str]):
    """The name of a what-if; completes in the shell."""

    name = "what-if"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or an error with the nearest one."""
        if value not in WHAT_IFS:
            from simulator.inputs.problems import nearest

            raise click.UsageError(f"--what-if: there is no {value!r}: {nearest(value, WHAT_IFS)}", ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin so."""
        return [CompletionItem(name) for name in WHAT_IFS if name.startswith(incomplete)]


class Ordered(click.Group):
    """A group that lists its commands in the order they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in order."""
        return list(self.commands)


class Complete(click.Command):
    """A command that names all options that it lacks, not the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, but for what is missing."""
        try:
            return super().parse_args(ctx, list(args))
        except click.MissingParameter:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            lacks = [one.opts[0] for one in self.params if one.required and one.name not in given]
            if len(lacks) < 2 or not all(name.startswith("--") for name in lacks):
                raise
            raise click.UsageError(f"Missing options {', '.join(lacks)}", ctx) from None


job_argument = click.argument("job", type=Input("job"), metavar="JOB")
"""One job, by name or path."""

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a value, as in layout.pp=8, model.topk_group=2 or hardware.node.nic.bandwidth=100e9. Repeatable.",
)


def what_if_option(then: str) -> Callable[[Command], Command]:
    """`--what-if NAME`; `then` says what several do."""
    return click.option(
        "--what-if",
        "what_ifs",
        multiple=True,
        type=WhatIfName(),
        metavar="NAME",
        help=f"Ask what hardware of another kind would bring: {', '.join(WHAT_IFS)}. Repeatable: {then}.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a report.")

engine_option = click.option(
    "--engine",
    type=click.Choice(["events", "longest-path"]),
    default="events",
    show_default=True,
    help="events: discrete events, with everything shared that is shared. longest-path: quick, without contention.",
)


def executor_options(command: Command) -> Command:
    """`--executor` and `--address`; see `check_executor`."""
    command = click.option(
        "--address", default="", metavar="URL", help="Scheduler of a Dask cluster, as in tcp://host:8786."
    )(command)
    return click.option(
        "--executor",
        type=click.Choice(["local", "dask"]),
        default="local",
        show_default=True,
        help="local: this machine. dask: a cluster, with --address.",
    )(command)


def check_executor(executor: str, address: str) -> None:
    """A cluster needs an address, and an address a cluster."""
    if (executor == "dask") != bool(address):
        needs = "--executor dask needs --address, as in tcp://host:8786"
        text = "--address belongs to --executor dask" if address else needs
        raise click.UsageError(text, click.get_current_context())


def interval_options(command: Command) -> Command:
    """`--interval`, `--draws` and `--seed`; see `interval_asked`."""
    command = click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of --interval. [default: 0]")(
        command
    )
    return interval_and_draws(command)


def interval_and_draws(command: Command) -> Command:
    """`--interval` and `--draws`, for a verb whose `--seed` serves more."""
    for option in (
        click.option("--draws", type=click.IntRange(min=2), metavar="N", help="Draws of --interval. [default: 200]"),
        click.option(
            "--interval", is_flag=True, help="Between which times the step lies in 8 of 10 cases, by Monte-Carlo."
        ),
    ):
        command = option(command)
    return command


def interval_asked(interval: bool, draws: int | None, seed: int | None) -> tuple[int, int] | None:
    """Draws and seed of an interval, None where none is asked for."""
    if not interval:
        if draws is not None or seed is not None:
            raise click.UsageError("--draws and --seed belong to --interval", click.get_current_context())
        return None
    from simulator.studies.uncertainty import DRAWS, SEED

    return DRAWS if draws is None else draws, SEED if seed is None else seed


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")

_verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Show more: every rank, every kernel class, every source."
)


def verbosity(command: Command) -> Command:
    """`-q` and `-v`."""
    return quiet_option(_verbose_option(command))


def say(text: str, *, quiet: bool = False) -> None:
    """A remark on stderr; lost where that is full, since the result matters more."""
    if not quiet:
        try:
            click.echo(text, err=True)
        except OSError:
            with suppress(OSError, ValueError):  # nothing is to complain at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def warn(warnings: Iterable[str], *, quiet: bool = False) -> None:
    """Warnings on stderr, for when the result itself is read by a program."""
    from reports.views.words import of_warning

    for warning in warnings:
        say(f"foretrain: warning: {of_warning(warning)}", quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON object on stdout; the same value gives the same bytes."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_report(*parts: RenderableType) -> None:
    """A report on stdout, in colour where a terminal shows it."""
    from reports.terminal.console import rendered

    click.echo(rendered(*parts), nl=False, color=True)


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Callable[[float], None] | None]:
    """A function to report the done part to (0 to 1), or None if the bar would not be visible."""
    from reports.terminal.console import Bar, is_terminal

    if quiet or not is_terminal(stderr=True):
        yield None
        return
    bar = Bar(title)
    try:
        yield bar.update
    finally:
        bar.close()


def output_file(path: str, option: str, endings: Collection[str] = ()) -> Path:
    """The path that an option writes to, or an error before anything is computed.

    `endings`: the kinds of files that can be written, any if empty. What another parameter of the command reads or
    writes is refused: it would be lost.
    """
    from reports.export.files import target
    from simulator.errors import InputError

    file = Path(path)
    if file.is_dir():
        raise InputError(f"{option}: {path}: is a directory; give the path of a file")
    if endings and file.suffix not in endings:
        raise InputError(f"{option}: {path}: the name must end in {', '.join(endings)}")
    if not file.parent.is_dir():
        raise InputError(f"{option}: {path}: there is no directory {file.parent}")
    target(file)
    for other, name in _others(option):
        if any(_same(file, one) for one in _files_of(other)):
            raise InputError(f"{option}: {path}: is what {name} names or needs, too; give another file")
    return file


def _others(option: str) -> Iterator[tuple[str, str]]:
    """Value and name of every other parameter of this command that may be a file."""
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context is not None else ():
        if context is None or option in parameter.opts or parameter.name is None:
            continue
        given = context.params.get(parameter.name)
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, str):
                yield value, name


def _files_of(value: str) -> Iterator[Path]:
    """The files a parameter stands for: a path, the files that one names, the path in `layout.schedule=path`."""
    from simulator.inputs.files import files_behind

    for text in (value, value.partition("=")[2]):
        if text:
            with suppress(OSError, ValueError):
                yield from (files_behind(Path(text)) or [Path(text)])


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or would be. Devices and pipes hold nothing that could be lost."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.resolve() == other.resolve()


def output_folder(path: str, option: str) -> Path:
    """The directory that an option writes into, made when needed, or an error before anything is computed."""
    from simulator.errors import InputError

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {path}: is a file; give a directory")
    if not folder.parent.is_dir():
        raise InputError(f"{option}: {path}: there is no directory {folder.parent}")
    return folder
