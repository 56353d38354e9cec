"""Terminals: what is shown in colour, how wide, and the progress bar.

Colour and width follow the terminal; into a pipe or a file goes plain text of 80 columns, so that the same inputs
give the same bytes. NO_COLOR (no-color.org) and FORCE_COLOR are respected, by rich.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_WIDTH = 80
WIDEST = 120
PATIENCE = 1.0
"""Time after which a progress bar appears [s]."""


def is_terminal(*, stderr: bool = False) -> bool:
    """Whether stdout (or stderr) is shown to somebody."""
    stream = sys.stderr if stderr else sys.stdout
    return bool(stream and stream.isatty())


def width() -> int:
    """Columns to fill: those of the terminal, up to a readable width."""
    return min(shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns, WIDEST) if is_terminal() else PLAIN_WIDTH


def rendered(*parts: RenderableType, columns: int | None = None, colour: bool | None = None) -> str:
    """`parts` below each other as text; escape codes only if `colour`, which defaults to what stdout shows."""
    shown = is_terminal() or bool(os.environ.get("FORCE_COLOR")) if colour is None else colour
    buffer = io.StringIO()
    console = Console(
        file=buffer, width=columns or width(), force_terminal=shown, highlight=False, emoji=False, markup=False
    )
    for part in parts:
        console.print(part)
    text = buffer.getvalue()
    return text if shown else "\n".join(line.rstrip() for line in text.split("\n"))


class Bar:
    """A progress bar on stderr that appears after a while and leaves no trace."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = monotonic()
        self.shown: tuple[Progress, TaskID] | None = None

    def update(self, part: float) -> None:
        """`part` (0 to 1) is done."""
        if self.shown is None:
            if monotonic() - self.began < PATIENCE:
                return
            self.shown = self._show()
        progress, task = self.shown
        progress.update(task, completed=part)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self.title, total=1.0)

    def close(self) -> None:
        """Take the bar away."""
        if self.shown is not None:
            self.shown[0].stop()
