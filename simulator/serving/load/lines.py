"""Lines of a file of requests, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from simulator.errors import InputError

LONGEST_LINE = 1 << 20
"""Bytes of a line beyond which a file is taken to be no trace."""
MOST = 1 << 22
"""Longest prompt or answer that is believed [tokens]."""
Progress = Callable[[float], None]


def lines_of(path: Path, progress: Progress | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty. InputError for a file that is missing, or no text."""
    try:
        size = max(1, path.stat().st_size)
        with path.open("rb") as file:
            number, read = 0, 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                read += len(raw)
                if len(raw) > LONGEST_LINE:
                    raise InputError(f"{path}:{number}: is longer than {LONGEST_LINE:,} bytes: this is no trace")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    raise InputError(f"{path}:{number}: is no text in UTF-8") from None
                if progress is not None and number % 512 == 0:
                    progress(read / size)
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
