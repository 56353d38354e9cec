"""Every command has a help page, recorded, with an example, and fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import cli

FOLDER = Path(__file__).parents[1] / "golden" / "cli"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(cli.foretrain))


def test_help_of_the_program(run: Any, golden: Callable[[str, str], None]) -> None:
    result = run("--help")
    assert result.exit_code == 0
    golden("cli/help.txt", result.stdout)
    assert run("-h").stdout == result.stdout


@pytest.mark.parametrize("path", ALL, ids="-".join)
def test_help_of_a_command(path: tuple[str, ...], run: Any, golden: Callable[[str, str], None]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    golden(f"cli/help-{'-'.join(path)}.txt", result.stdout)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_shows_an_example(verb: str, run: Any) -> None:
    """On the page of the verb, or on those of its commands."""
    pages = [run(*path, "--help").stdout.partition("\n")[2] for path in ALL if path[0] == verb]
    assert any(f"foretrain {verb} " in page for page in pages)


@pytest.mark.parametrize("path", ALL, ids="-".join)
def test_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    silent = [p.name for p in ALL[path].params if isinstance(p, click.Option) and not p.help and not p.hidden]
    assert silent == []


def test_line_in_the_overview_is_short() -> None:
    """One line each: the overview is read first."""
    assert all(len(line) <= 60 for _, line in cli.VERBS.values())


def test_every_recorded_page_belongs_to_a_command() -> None:
    recorded = {path.stem for path in FOLDER.glob("help-*.txt")}
    assert recorded == {f"help-{'-'.join(path)}" for path in ALL}
