"""Reading text that others wrote, in one place: bounded in size, UTF-8 with or without a byte order mark, sane values.

Every file a user hands over is read here, so that an endless file, another encoding or a number of a thousand digits
is one line, whatever the file is. Traces of the profiler, which may be of any size, are streamed by
`simulator.profile.events` instead.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from simulator.errors import InputError
from simulator.inputs.problems import problem

MIB = 1 << 20
FileKind = Literal["input", "schedule", "table", "result"]
LARGEST: Mapping[FileKind, int] = {"input": 4 * MIB, "schedule": 4 * MIB, "table": 64 * MIB, "result": 64 * MIB}
"""The most a file may hold [B]: `input` is a job, model, profile, stack or campaign. The largest that are shipped or
written by this program have a hundredth of it; parsed, a file takes some twenty times its size of memory."""
_WHAT: Mapping[FileKind, str] = {
    "input": "an input file",
    "schedule": "a schedule file",
    "table": "a table",
    "result": "a saved result",
}
DEEPEST = 64
"""Tables and lists within each other. Ours have six; Python's own limit would leave less room for who reads them."""
LARGEST_INTEGER = 10**30
"""Whole numbers beyond it are refused: nothing here counts that far, and floats lose them."""
_TOO_LONG = "a number has thousands of digits"


class Readable(Protocol):
    """A path, or a resource of a package."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The bytes, to be read."""
        ...


def read_text(file: Readable, label: str, kind: FileKind = "input") -> str:
    """The text of a file, without a byte order mark; InputError if it is unreadable, too large or no UTF-8."""
    try:
        with file.open("rb") as stream:
            return decoded(stream, label, kind)
    except OSError as error:
        raise InputError(f"{label}: cannot be read: {error.strerror}") from None


def decoded(stream: IO[bytes], label: str, kind: FileKind) -> str:
    """The text of an open file or stdin, as `read_text`."""
    most = LARGEST[kind]
    data = stream.read(most + 1)
    if len(data) > most:
        raise InputError(f"{label}: has more than {most // MIB} MiB, the most that {_WHAT[kind]} may have")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: byte {error.start}: not UTF-8; save the file as UTF-8 text") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{label}: line {line}: holds a NUL character; the file is not text")
    return text


def parse_json(text: str, label: str) -> Any:
    """The value that a JSON text holds; keys are given once, and values are sane (`refuse_odd`)."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _without_doubles(label, pairs))
    except json.JSONDecodeError as error:
        raise InputError(f"{label}: line {error.lineno}, column {error.colno}: invalid JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{label}: invalid JSON: nested too deeply") from None
    except ValueError:
        raise InputError(f"{label}: invalid JSON: {_TOO_LONG}") from None
    refuse_odd(value, label)
    return value


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """The table that a TOML text holds; values are sane (`refuse_odd`)."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).rpartition(" (at ")
        where = f"{place.removesuffix(')')}: " if what else ""
        raise InputError(f"{label}: {where}invalid TOML: {what or error}") from None
    except RecursionError:
        raise InputError(f"{label}: invalid TOML: nested too deeply") from None
    except ValueError:
        raise InputError(f"{label}: invalid TOML: {_TOO_LONG}") from None
    refuse_odd(table, label)
    return table


def refuse_odd(value: Any, label: str) -> None:
    """Raise InputError for a value nested too deeply, a whole number no float holds, or text that is no Unicode."""
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        path, one, depth = stack.pop()
        if depth > DEEPEST:
            raise InputError(f"{label}: {_short(path)}: nested too deeply; {DEEPEST} levels are the most")
        if isinstance(one, dict):
            for key, part in one.items():
                _refuse_broken(key, label, path)
                stack.append((f"{path}.{key}" if path else key, part, depth + 1))
        elif isinstance(one, list):
            stack += [(path, part, depth + 1) for part in one]
        elif isinstance(one, str):
            _refuse_broken(one, label, path)
        elif isinstance(one, int) and abs(one) > LARGEST_INTEGER:
            where = f"{label}: {_short(path)}" if path else label
            raise InputError(f"{where}: a whole number of more than 30 digits")


def _refuse_broken(text: str, label: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{label}: {_short(path)}: holds half a character (a lone surrogate); write text") from None


def _short(path: str) -> str:
    return (path or "the file") if len(path) <= 80 else f"{path[:79]}…"


def _without_doubles(label: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise problem(label, double, table[double], "the key is given twice; keep one")
    return table


def schedule_text(path: Path) -> str:
    """The text of a schedule file."""
    return read_text(path, str(path), "schedule")
