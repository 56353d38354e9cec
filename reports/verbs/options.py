"""Arguments and options that verbs share, and the few things each does with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
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


WHAT_IFS = ("coprocessor", "unified-network", "fp8-accumulation", "fused-casts", "nvlink-900")
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


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")

_verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Show more: every rank, every kernel class, every source."
)


def verbosity(command: Command) -> Command:
    """`-q` and `-v`."""
    return quiet_option(_verbose_option(command))


def say(text: str, *, quiet: bool = False) -> None:
    """A remark on stderr."""
    if not quiet:
        click.echo(text, err=True)


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

    `endings`: the kinds of files that can be written, any if empty.
    """
    from simulator.errors import InputError

    file = Path(path)
    if file.is_dir():
        raise InputError(f"{option}: {path}: is a directory; give the path of a file")
    if endings and file.suffix not in endings:
        raise InputError(f"{option}: {path}: the name must end in {', '.join(endings)}")
    if not file.parent.is_dir():
        raise InputError(f"{option}: {path}: there is no directory {file.parent}")
    return file


def output_folder(path: str, option: str) -> Path:
    """The directory that an option writes into, made when needed, or an error before anything is computed."""
    from simulator.errors import InputError

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {path}: is a file; give a directory")
    if not folder.parent.is_dir():
        raise InputError(f"{option}: {path}: there is no directory {folder.parent}")
    return folder
