"""Lengths of prompts and answers: one number, a uniform or gamma distribution, or a column of a file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simulator.errors import InputError
from simulator.serving.load.lines import MOST, lines_of

FORMS = (
    "a number, uniform:LOW-HIGHxTOKENS as in uniform:0.8-1.0x1024, gamma:CVxTOKENS as in gamma:1.0x256, or FILE:COLUMN"
)
_BATCH = 4096
_GAMMA = re.compile(r"gamma:(?P<cv>[0-9.]+)x(?P<tokens>[0-9]+)")
_UNIFORM = re.compile(r"uniform:(?P<low>[0-9.]+)-(?P<high>[0-9.]+)x(?P<tokens>[0-9]+)")


def lengths(text: str, option: str, rng: np.random.Generator) -> Iterator[int]:
    """Lengths without end [tokens], as an option says them.

    A column of a file is taken in order, again and again.

    Raises
    ------
    InputError : it is none of the forms, or a length is below 1.
    """
    if text.isdigit():
        return _always(_checked(int(text), text, option))
    uniform = _UNIFORM.fullmatch(text)
    if uniform:
        try:
            low, high = float(uniform["low"]), float(uniform["high"])
        except ValueError:
            raise InputError(f"{option}: {text!r}: must be {FORMS}") from None
        tokens = _checked(int(uniform["tokens"]), text, option)
        first, last = int(low * tokens), int(high * tokens)
        if not 1 <= first <= last:
            raise InputError(f"{option}: {text!r}: from {first} to {last} tokens: must rise from at least 1")
        return _uniform(first, last, rng)
    gamma = _GAMMA.fullmatch(text)
    if gamma:
        try:
            cv = float(gamma["cv"])
        except ValueError:
            cv = 0.0
        if not 0.01 <= cv <= 10:
            raise InputError(f"{option}: {text!r}: the coefficient of variation must be from 0.01 to 10")
        return _gamma(_checked(int(gamma["tokens"]), text, option), cv, rng)
    path, colon, column = text.rpartition(":")
    if not colon or not path or path in ("uniform", "gamma"):
        raise InputError(f"{option}: {text!r}: must be {FORMS}")
    return _repeated(_column(Path(path), column, option))


def scaled(text: str, factor: float, option: str) -> str:
    """Lengths `factor` times as long, as an option says them.

    Raises
    ------
    InputError : they are a column of a file, which has the lengths it has.
    """
    if factor == 1.0:
        return text
    uniform = _UNIFORM.fullmatch(text)
    if uniform:
        tokens = max(1, round(int(uniform["tokens"]) * factor))
        return f"uniform:{uniform['low']}-{uniform['high']}x{tokens}"
    gamma = _GAMMA.fullmatch(text)
    if gamma:
        return f"gamma:{gamma['cv']}x{max(1, round(int(gamma['tokens']) * factor))}"
    if text.isdigit():
        return str(max(1, round(int(text) * factor)))
    raise InputError(f"{option}: {text!r}: lengths of a file cannot be made longer; leave input and output out")


def _checked(tokens: int, text: str, option: str) -> int:
    if not 1 <= tokens <= MOST:
        raise InputError(f"{option}: {text!r}: must be from 1 to {MOST:,} tokens")
    return tokens


def _always(tokens: int) -> Iterator[int]:
    while True:
        yield tokens


def _uniform(first: int, last: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.integers(first, last + 1, size=_BATCH).tolist()


def _gamma(mean: int, cv: float, rng: np.random.Generator) -> Iterator[int]:
    """Gamma variates of this mean and coefficient of variation, rounded, 1 at least."""
    while True:
        found = np.rint(rng.gamma(cv**-2, mean * cv**2, size=_BATCH))
        yield from np.clip(found, 1, MOST).astype(int).tolist()


def _repeated(values: list[int]) -> Iterator[int]:
    while True:
        yield from values


def _column(path: Path, column: str, option: str) -> list[int]:
    """A column of a CSV file, or a key of a JSONL file."""
    values: list[int] = []
    header: list[str] | None = None
    for number, line in lines_of(path):
        if line.lstrip().startswith("{"):
            try:
                cell = json.loads(line).get(column)
            except (ValueError, RecursionError, AttributeError):
                raise InputError(f"{path}:{number}: is no JSON object") from None
        else:
            cells = next(csv.reader([line]))
            if header is None:
                header = cells
                if column not in header:
                    raise InputError(f"{option}: {path} has no column {column!r}; it has {', '.join(header)[:200]}")
                continue
            at = header.index(column)
            cell = cells[at] if at < len(cells) else None
        values.append(_as_length(cell, f"{path}:{number}: {column}"))
    if not values:
        raise InputError(f"{option}: {path}: has no lengths")
    return values


def _as_length(cell: object, where: str) -> int:
    try:
        value = int(str(cell))
    except ValueError:
        value = 0
    if not 1 <= value <= MOST:
        raise InputError(f"{where}: {str(cell)[:60]!r}: must be a whole number of tokens from 1 to {MOST:,}")
    return value
