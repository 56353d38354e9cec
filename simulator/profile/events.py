"""The events of a Chrome trace (JSON, plain or gzip), one at a time in bounded memory.

The file is an object with a list under `traceEvents`, or that list alone. ijson parses it as it is read, so that a
file of any size needs the memory of one piece and of its longest event.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from simulator.errors import InputError

PIECE = 1 << 13
"""Bytes parsed at a time. Small, because nesting is checked once a piece."""
LONGEST = 1 << 24
"""Bytes without a new event after which the file is taken to be no trace."""
LONGEST_TOKEN = 1 << 20
"""Bytes of one text; the parser reads an unfinished one anew with each piece."""
DEEPEST = 1000
"""Brackets open at once after which the file is taken to be no trace; the parser's memory grows with their square."""
_DIGITS = re.compile(rb"[0-9]{2048}")
"""Half of the digits that Python reads as a whole number: of a longer one, one of two pieces holds so many. ijson's C
backend (3.6) crashes over it, so that no parser may see it."""
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
Progress = Callable[[float], None]


def trace_events(path: Path, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Every event of the trace at `path`; `progress` is called with the part of the file that is read (0 to 1).

    Whole numbers are int of any size, others Decimal. Raises InputError with one line for a file that is missing,
    truncated, or something else.
    """
    try:
        size = max(1, path.stat().st_size)
        with path.open("rb") as raw:
            source = _Source(path, _opened(raw), lambda: progress(raw.tell() / size) if progress else None)
            yield from _events(source)
    except OSError as error:  # BadGzipFile is one
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


HEAD = 1 << 16
"""Bytes in which Kineto names the GPUs."""
_GPU = re.compile(rb'"deviceProperties"\s*:\s*\[[^\]]*?"name"\s*:\s*"([^"]{1,80})"')


def gpu_name(path: Path) -> str:
    """The name of the first GPU that the head of the trace lists; "" if it lists none.

    Raises InputError if the file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            found = _GPU.search(_opened(raw).read(HEAD))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return found[1].decode(errors="replace") if found else ""


def _opened(raw: IO[bytes]) -> IO[bytes]:
    """The bytes of the file, unpacked if it is gzip."""
    magic = raw.read(2)
    raw.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if magic == b"\x1f\x8b" else raw


class _Source:
    """The bytes of a file for the parser, with bounds on what it may have to keep between two events."""

    def __init__(self, path: Path, file: IO[bytes], tick: Callable[[], None]) -> None:
        self.path, self.file, self.tick = path, file, tick
        self.passed = 0  # bytes read in all
        self.since, self.depth = 0, 0  # bytes and brackets left open since the last event
        self.unbroken = 0  # bytes without a comma or a quotation mark

    def read(self, size: int = PIECE) -> bytes:
        """The next bytes of the file, at most `size`."""
        data = self._bytes(size)
        self.passed += len(data)
        self.since += len(data)
        # Brackets in names are counted, too; they do not add up, because every event restarts the count.
        self.depth += data.count(b"[") + data.count(b"{") - data.count(b"]") - data.count(b"}")
        self.unbroken = 0 if b"," in data or b'"' in data else self.unbroken + len(data)
        if _DIGITS.search(data):
            raise self.wrong("it holds a number of thousands of digits")
        if self.unbroken > LONGEST_TOKEN:
            raise self.wrong("a text in it has more than 1 MiB")
        if self.depth > DEEPEST:
            raise self.wrong("it is nested too deeply")
        if self.since > LONGEST:
            raise self.wrong(f"there is no event in {LONGEST >> 20} MiB of it")
        self.tick()
        return data

    def _bytes(self, size: int) -> bytes:
        try:
            return self.file.read(size)
        except (EOFError, zlib.error):
            raise self.wrong("the gzip stream ends early or is damaged; the file is truncated") from None

    def first(self) -> bytes:
        """The first byte that is no space; reading then goes on from the start, behind a byte order mark."""
        start = len(_BOM) if self._bytes(len(_BOM)) == _BOM else 0
        self.file.seek(start)
        while (byte := self._bytes(1)) and byte in _SPACE:
            pass
        self.file.seek(start)
        return byte

    def at_event(self) -> None:
        """An event was found: the bounds count from here."""
        self.since = self.depth = 0

    def wrong(self, why: str) -> InputError:
        """The error for a file that is no trace."""
        return InputError(f"{self.path}: not a trace of the PyTorch profiler: {why}")


def _events(source: _Source) -> Iterator[dict[str, Any]]:
    """Events of the list, wherever it is in the file."""
    import ijson

    first = source.first()
    if not first:
        raise source.wrong("it is empty")
    if first not in b"[{":
        raise source.wrong(f"it begins with {first.decode(errors='replace')!r}")
    within = "item" if first == b"[" else "traceEvents.item"
    found = False
    try:
        for event in ijson.items(source, within, buf_size=PIECE):
            if not isinstance(event, dict):
                raise source.wrong("traceEvents holds something that is no event")
            found = True
            source.at_event()
            yield event
        if not found and not _has_list(source):
            raise source.wrong("it has no traceEvents")
    except ijson.JSONError as error:
        raise _damaged(source, error) from None
    except (ValueError, ArithmeticError):  # of an exponent that is none
        raise source.wrong("it holds a number that cannot be read") from None


def _has_list(source: _Source) -> bool:
    """Whether there is a list of events at all, if an empty one."""
    import ijson

    within = "" if source.first() == b"[" else "traceEvents"
    return (within, "start_array", None) in ijson.parse(source, buf_size=PIECE)


def _damaged(source: _Source, error: Exception) -> InputError:
    """The error for what the parser met: its first line, and the text around it."""
    said = error.args[0] if error.args else ""
    lines = (said.decode(errors="replace") if isinstance(said, bytes) else str(said)).splitlines() or ["no JSON"]
    if "premature EOF" in lines[0] or "Incomplete" in lines[0]:
        return InputError(
            f"{source.path}: the file is truncated: it ends after {source.passed} bytes, inside the trace"
        )
    around = f", near {lines[1].strip()!r}" if len(lines) > 1 else ""
    return source.wrong(f"{lines[0]}{around}")
