"""The events of a Chrome trace (JSON, plain or gzip), one at a time in bounded memory.

The file is an object with a list under `traceEvents`, or that list alone. Text is read in pieces; each event is
decoded by the standard library as soon as it is whole, so that a file of any size needs the memory of one piece and
of its longest event.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from simulator.errors import InputError

PIECE = 1 << 20
"""Bytes read at a time."""
LONGEST = 1 << 26
"""Characters after which something that has not ended is taken to be no trace event."""
NEAR_END = 16
"""An error this close to the end of the text [characters] may be one of text that is still to come."""

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
Progress = Callable[[float], None]


def trace_events(path: Path, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Every event of the trace at `path`; `progress` hears the part of the file that is read (0 to 1).

    Raises InputError with one line for a file that is missing, truncated, or something else.
    """
    try:
        size = max(1, path.stat().st_size)
        with path.open("rb") as raw:
            text = _Text(path, _opened(raw), lambda: progress(raw.tell() / size) if progress else None)
            yield from _events(text)
    except OSError as error:  # BadGzipFile is one
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _opened(raw: IO[bytes]) -> IO[bytes]:
    """The bytes of the file, unpacked if it is gzip."""
    magic = raw.read(2)
    raw.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if magic == b"\x1f\x8b" else raw


class _Text:
    """A window over the text of a file: `buffer` from position `at` on is not used yet."""

    def __init__(self, path: Path, file: IO[bytes], tick: Callable[[], None]) -> None:
        self.path, self.file, self.tick = path, file, tick
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer, self.at, self.over, self.passed = "", 0, False, 0

    def more(self) -> bool:
        """Read one more piece; False at the end of the file."""
        if self.over:
            return False
        try:
            data = self.file.read(PIECE)
            new = self.decoder.decode(data, final=not data)
        except (EOFError, zlib.error):
            raise self.wrong("the gzip stream ends early or is damaged; the file is truncated") from None
        except UnicodeDecodeError:
            raise self.wrong("it holds bytes that are no text") from None
        self.over = not data
        self.passed += self.at
        self.buffer, self.at = self.buffer[self.at :] + new, 0
        self.tick()
        return bool(data)

    def peek(self) -> str:
        """The next character that is no space, not consumed; empty at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> str:
        """Consume the next character, which must be one of `wanted`."""
        found = self.peek()
        if not found:
            raise self.truncated()
        if found not in wanted:
            raise self.wrong(f"it is no JSON: {found!r} where {' or '.join(wanted)} should stand")
        self.at += 1
        return found

    def value(self) -> Any:
        """Consume one whole JSON value."""
        if not self.peek():
            raise self.truncated()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                self._incomplete(error)
                continue
            except RecursionError:
                raise self.wrong("it is nested too deeply") from None
            if end == len(self.buffer) and self.more():  # a number may go on
                continue
            self.at = end
            return value

    def _incomplete(self, error: json.JSONDecodeError) -> None:
        """Read on where the error is only that the value has not ended yet."""
        cut = error.msg.startswith("Unterminated string")
        near = error.pos >= len(self.buffer) - NEAR_END
        place = f"character {self.passed + error.pos}: {error.msg}"
        last = error.pos >= len(self.buffer.rstrip())
        if not (cut or near) or len(self.buffer) - self.at > LONGEST:
            raise self.wrong(place)
        if not self.more():
            raise self.truncated() if cut or last else self.wrong(place)

    def wrong(self, why: str) -> InputError:
        """The error for a file that is no trace."""
        return InputError(f"{self.path}: not a trace of the PyTorch profiler: {why}")

    def truncated(self) -> InputError:
        """The error for a file that ends too early."""
        end = self.passed + len(self.buffer)
        return InputError(f"{self.path}: the file is truncated: it ends after {end} characters, inside the trace")


def _events(text: _Text) -> Iterator[dict[str, Any]]:
    """Events of the list, wherever it stands."""
    first = text.peek()
    if not first:
        raise text.wrong("it is empty")
    if first == "[":
        yield from _listed(text)
        return
    if first != "{":
        raise text.wrong(f"it begins with {first!r}")
    text.take("{")
    found = False
    if text.peek() == "}":
        raise text.wrong("it has no traceEvents")
    while True:
        key = text.value()
        text.take(":")
        if key == "traceEvents":
            found = True
            yield from _listed(text)
        else:
            text.value()
        if text.take(",}") == "}":
            break
    if not found:
        raise text.wrong("it has no traceEvents")


def _listed(text: _Text) -> Iterator[dict[str, Any]]:
    """The items of a list, each an object."""
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        event = text.value()
        if not isinstance(event, dict):
            raise text.wrong("traceEvents holds something that is no event")
        yield event
        if text.take(",]") == "]":
            return
