"""What every terminal report is made of: sections, tables, notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def section(title: str, *parts: RenderableType) -> Iterator[RenderableType]:
    """A titled part of a report."""
    yield Text("\n" + title, style="bold")
    for part in parts:
        yield Padding(part, (0, 0, 0, 2))


def columns(*headers: str, gap: int = 2) -> Table:
    """An empty table without lines. A header that begins with `>` is aligned right."""
    titled = any(header.removeprefix(">") for header in headers)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim", show_header=titled)
    for header in headers:
        right = header.startswith(">")
        table.add_column(header.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


def note(text: str) -> Text:
    """What a table's words mean, in small print."""
    return Text(text, style="dim")


def listed(texts: Iterable[str]) -> Table:
    """Sentences as a list, a dash before each."""
    table = columns("", "")
    for text in texts:
        table.add_row("-", text)
    return table
