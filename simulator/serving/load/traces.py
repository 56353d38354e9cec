"""Recorded requests, one at a time in bounded memory.

Two public formats are read. Mooncake's (github.com/kvcache-ai/Mooncake, FAST25-release, 2025): a JSON object a line,
`timestamp` [ms], `input_length`, `output_length` [tokens], and `hash_ids`, one for each 512 tokens of the prompt, equal
where prompts begin equally. Azure's (github.com/Azure/AzurePublicDataset, 2023 and 2024): CSV with `TIMESTAMP` (date
and time), `ContextTokens` and `GeneratedTokens`. CSV with Mooncake's names is read, too: `timestamp` [ms], lengths, and
`hash_ids` divided by spaces.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import InputError
from simulator.serving.load.lines import MOST, Progress, lines_of
from simulator.serving.request import Request

HASH_TOKENS = 512
"""Tokens that one of Mooncake's hashes stands for [tokens]."""


class _Names(NamedTuple):
    time: str
    inputs: str
    outputs: str
    hashes: str | None
    is_date: bool


MOONCAKE = _Names("timestamp", "input_length", "output_length", "hash_ids", False)
AZURE = _Names("TIMESTAMP", "ContextTokens", "GeneratedTokens", None, True)


def requests_of(path: Path, progress: Progress | None = None) -> Iterator[Request]:
    """The requests of a trace in order, the first at time 0.

    Raises
    ------
    InputError : a line is no request, or is earlier than the one before it; names file and line.
    """
    begin, before, count = 0.0, 0.0, 0
    for where, cells, names in _rows(path, progress):
        time = _time(cells.get(names.time), names, where)
        if count and time < before:
            raise InputError(
                f"{where}: {names.time}: {str(cells[names.time])[:60]!r}: is earlier than the line before; sort the"
                " file by it"
            )
        begin = begin if count else time
        before = time
        inputs = _tokens(cells.get(names.inputs), names.inputs, where)
        outputs = _tokens(cells.get(names.outputs), names.outputs, where)
        hashes = _hashes(cells.get(names.hashes), inputs, where) if names.hashes else ()
        yield Request(count, time - begin, inputs, outputs, hashes, HASH_TOKENS)
        count += 1
    if not count:
        raise InputError(f"{path}: holds no requests")


def _rows(path: Path, progress: Progress | None) -> Iterator[tuple[str, dict[str, Any], _Names]]:
    """Place, cells by name, and their names, of every request."""
    header: list[str] | None = None
    names, objects = MOONCAKE, False
    for number, line in lines_of(path, progress):
        where = f"{path}:{number}"
        if header is None and (objects or line.lstrip().startswith("{")):
            objects = True
            yield where, _object(line, where), MOONCAKE
            continue
        try:
            cells = next(csv.reader([line]))
        except (csv.Error, StopIteration):
            raise InputError(f"{where}: is no line of CSV") from None
        if header is None:
            header, names = cells, _names(cells, where)
            continue
        if len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} columns; the first line has {len(header)}")
        yield where, dict(zip(header, cells, strict=True)), names


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{where}: is no JSON object; every line must be one, as the first")
    missing = [name for name in MOONCAKE[:3] if name not in found]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)}: missing")
    return found


def _names(header: list[str], where: str) -> _Names:
    for names in (AZURE, MOONCAKE):
        if set(names[:3]) <= set(header):
            return names if names.hashes in header else names._replace(hashes=None)
    near = AZURE if set(AZURE[:3]) & set(header) else MOONCAKE
    missing = ", ".join(name for name in near[:3] if name not in header)
    azure, mooncake = ", ".join(AZURE[:3]), ", ".join(MOONCAKE[:3])
    raise InputError(f"{where}: {missing}: missing; the first line must name {azure}, or {mooncake}")


def _time(cell: Any, names: _Names, where: str) -> float:
    """Seconds since some beginning."""
    try:
        if names.is_date:
            return _date(str(cell))
        time = float(cell) / 1e3
    except (TypeError, ValueError, OverflowError):
        time = -1.0
    if not 0 <= time < 1e12:
        what = "a date and time, as in 2023-11-16 18:15:46.68" if names.is_date else "milliseconds, at least 0"
        raise InputError(f"{where}: {names.time}: {str(cell)[:60]!r}: must be {what}")
    return time


def _date(text: str) -> float:
    """Seconds of a date and time; fractions of a second may have any number of digits."""
    whole, dot, rest = text.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))] if dot else ""
    when = datetime.fromisoformat(whole + rest[len(digits) :])
    zero = datetime(1970, 1, 1, tzinfo=when.tzinfo)
    return (when - zero).total_seconds() + (float(f"0.{digits}") if digits else 0.0)


def _tokens(cell: Any, name: str, where: str) -> int:
    try:
        count = int(cell) if not isinstance(cell, bool) else 0
    except (TypeError, ValueError, OverflowError):
        count = 0
    if not 1 <= count <= MOST or count != float(cell):
        raise InputError(f"{where}: {name}: {str(cell)[:60]!r}: must be a whole number of tokens from 1 to {MOST:,}")
    return count


def _hashes(cell: Any, inputs: int, where: str) -> tuple[int, ...]:
    """Hashes of the whole blocks of a prompt; one of a last part is left out, since its tokens may differ."""
    if cell is None:
        return ()
    found = cell.split() if isinstance(cell, str) else cell
    try:
        hashes = tuple(map(int, found[: inputs // HASH_TOKENS]))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: hash_ids: {str(cell)[:60]!r}: must be a list of whole numbers") from None
    return hashes
