"""What a search has found so far. With a file (SQLite) it can be interrupted at any time and resumed.

The search itself reads from a temporary base of its own, into which the file is copied at the start: a file that cannot
be written to, or that breaks, takes nothing from what this run has found.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.result import digest, plain
from simulator.studies.search.axes import Question
from simulator.studies.search.candidate import Candidate, Rank, Status

SCHEMA = "foretrain.search/2"
_COLUMNS = tuple(field.name for field in fields(Candidate))
_INSERT = f"INSERT OR IGNORE INTO candidate VALUES ({', '.join('?' * len(_COLUMNS))})"
_ORDER = {"time": "per_token", "throughput": "-rate", "latency": "latency", "cost": "cost", "memory": "memory"}
_WAIT, _LAST_WAIT = 5.0, 30.0
"""How long a file that another process holds is waited for: at the start, and before the search gives it up [s]."""


def fingerprint(asked: Question) -> str:
    """Hash of a question with everything its job, model, hardware and stack hold."""
    resolved = plain(load_scenario(asked.job, asked.overrides))
    return digest({"schema": SCHEMA, "scenario": resolved, "axes": [asdict(axis) for axis in asked.axes]})


class Store:
    """Candidates by number; those of a `file` are there from the start, and new ones are written to it."""

    def __init__(self, asked: Question, file: Path | None = None) -> None:
        self.base = sqlite3.connect("")  # a temporary file, which SQLite deletes
        _create(self.base)
        self.kept = _File(file, asked, self.base) if file is not None else None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.base.close()
        if self.kept is not None:
            self.kept.base.close()

    def add(self, found: Iterable[Candidate]) -> None:
        """Keep candidates; known ones stay as they are."""
        rows = [tuple(getattr(one, name) for name in _COLUMNS) for one in found]
        with self.base:
            self.base.executemany(_INSERT, rows)
        if self.kept is not None:
            self.kept.add(rows)

    def unsaved(self) -> str:
        """Why the file lacks something that was found; empty where it holds everything."""
        return self.kept.unsaved() if self.kept is not None else ""

    def done(self) -> set[int]:
        """Numbers of the candidates there are."""
        return {number for (number,) in self.base.execute("SELECT number FROM candidate")}

    def __iter__(self) -> Iterator[Candidate]:
        for row in self.base.execute(f"SELECT {', '.join(_COLUMNS)} FROM candidate ORDER BY number"):
            yield Candidate(**dict(zip(_COLUMNS, row, strict=True)))

    def best(self, rank: Rank, count: int, limit: float | None = None) -> list[Candidate]:
        """The first `count` that can run, with a latency of `limit` [s] at most; ties go to the lower number."""
        names, order = ", ".join(_COLUMNS), _ORDER[rank]
        rows = self.base.execute(
            f"SELECT {names} FROM candidate WHERE status = 'ok' AND latency <= ? ORDER BY {order}, number LIMIT ?",
            (float("inf") if limit is None else limit, count),
        )
        return [Candidate(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    def slower(self, limit: float | None) -> int:
        """How many that can run have a latency above `limit` [s]."""
        if limit is None:
            return 0
        ((count,),) = self.base.execute("SELECT COUNT(*) FROM candidate WHERE status = 'ok' AND latency > ?", (limit,))
        return int(count)

    def commonest(self, status: Status) -> str:
        """The reason that most of the candidates of a status give."""
        query = "SELECT why FROM candidate WHERE status = ? GROUP BY why ORDER BY COUNT(*) DESC, why LIMIT 1"
        return next((why for (why,) in self.base.execute(query, (status,))), "")

    def counts(self) -> dict[str, int]:
        """How many are of each status."""
        found = dict(self.base.execute("SELECT status, COUNT(*) FROM candidate GROUP BY status"))
        return {status: found.get(status, 0) for status in get_args(Status)}


class _File:
    """The file of a search: checked and read once, then only added to."""

    def __init__(self, path: Path, asked: Question, into: sqlite3.Connection) -> None:
        self.path, self.waiting, self.error = path, list[tuple[Any, ...]](), ""
        try:
            self.base = sqlite3.connect(str(path), timeout=_WAIT)
        except sqlite3.Error as error:
            raise self._refused(error) from None
        try:
            self._open(asked)
            rows = self.base.execute(f"SELECT {', '.join(_COLUMNS)} FROM candidate").fetchall()
            if not all(_is_candidate(row, asked.size) for row in rows):
                raise sqlite3.DatabaseError("a row is damaged")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self.base.close()
            raise self._refused(error) from None
        except BaseException:
            self.base.close()
            raise
        with into:
            into.executemany(_INSERT, rows)

    def _open(self, asked: Question) -> None:
        columns = tuple(name for _, name, *_ in self.base.execute("PRAGMA table_info(candidate)"))
        if columns not in ((), _COLUMNS):
            raise sqlite3.DatabaseError(f"its table candidate has the columns {', '.join(columns)}")
        broken = [text for (text,) in self.base.execute("PRAGMA quick_check(1)") if text != "ok"]
        if broken:
            raise sqlite3.DatabaseError(" ".join(str(broken[0]).split()))
        with self.base:
            _create(self.base)
            self.base.execute("CREATE TABLE IF NOT EXISTS search (fingerprint TEXT, asked TEXT)")
        mark, known = fingerprint(asked), self.base.execute("SELECT fingerprint, asked FROM search").fetchone()
        if known is None:
            with self.base:
                self.base.execute("INSERT INTO search VALUES (?, ?)", (mark, json.dumps(asdict(asked))))
        elif known[0] != mark:
            raise InputError(
                f"--resume: {self.path}: holds another search (the job, its files, the axes or the version differ:"
                f" {known[1]}); give another file"
            )

    def _refused(self, error: Exception) -> InputError:
        """What is wrong with the file, and what would do."""
        code = getattr(error, "sqlite_errorcode", None)
        code = None if code is None else code & 0xFF  # extended codes hold the plain one in their lowest byte
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return InputError(
                f"--resume: {self.path}: another process holds it ({error}); wait for that, or name another"
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return InputError(f"--resume: {self.path}: cannot be written ({error}); name a file that can")
        return InputError(f"--resume: {self.path}: not a file of an earlier search, or damaged ({error}); name another")

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Write rows, with those that could not be written before."""
        self.waiting += rows
        try:
            with self.base:
                self.base.executemany(_INSERT, self.waiting)
        except sqlite3.Error as error:
            self.error = str(error)
            self.base.execute("PRAGMA busy_timeout = 100")  # do not hold up the search again
        else:
            self.waiting, self.error = [], ""

    def unsaved(self) -> str:
        """What is missing in the file and why, after a last try."""
        if self.waiting:
            self.base.execute(f"PRAGMA busy_timeout = {1000 * _LAST_WAIT:.0f}")
            self.add([])
        if not self.waiting:
            return ""
        return f"--resume: {self.path}: {self.error}: {len(self.waiting):,} combinations that were judged are not in it"


def _create(base: sqlite3.Connection) -> None:
    kinds = ", ".join("number INTEGER PRIMARY KEY" if name == "number" else name for name in _COLUMNS)
    base.execute(f"CREATE TABLE IF NOT EXISTS candidate ({kinds})")


def _is_candidate(row: tuple[Any, ...], size: int) -> bool:
    """Whether a row of a file can be one of this program's."""
    number, status, *numbers, why = row
    return (
        isinstance(number, int)
        and 0 <= number < size
        and status in get_args(Status)
        and isinstance(why, str)
        and all(value is None or isinstance(value, float) for value in numbers)
        and (status != "ok" or None not in numbers)
    )
