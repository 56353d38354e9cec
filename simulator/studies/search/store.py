"""What a search has found so far, in one SQLite file: it can be interrupted at any time and resumed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.result import digest, plain
from simulator.studies.search.axes import Question
from simulator.studies.search.candidate import Candidate, Rank

SCHEMA = "foretrain.search/1"
_COLUMNS = tuple(field.name for field in fields(Candidate))
_ORDER = {"time": "per_token", "cost": "cost", "memory": "memory"}


def fingerprint(asked: Question) -> str:
    """Hash of a question with everything its job, model, hardware and stack hold."""
    resolved = plain(load_scenario(asked.job, asked.overrides))
    return digest({"schema": SCHEMA, "scenario": resolved, "axes": [asdict(axis) for axis in asked.axes]})


class Store:
    """Candidates by number; without a file they go into a temporary one."""

    def __init__(self, asked: Question, file: Path | None = None) -> None:
        self.file = file
        self.base = sqlite3.connect(str(file) if file else "")
        try:
            self._open(fingerprint(asked), asked)
        except sqlite3.DatabaseError as error:
            raise InputError(f"--resume: {file}: not a file of an earlier search ({error})") from None

    def _open(self, mark: str, asked: Question) -> None:
        kinds = ", ".join("number INTEGER PRIMARY KEY" if name == "number" else name for name in _COLUMNS)
        with self.base:
            self.base.execute("CREATE TABLE IF NOT EXISTS search (fingerprint TEXT, asked TEXT)")
            self.base.execute(f"CREATE TABLE IF NOT EXISTS candidate ({kinds})")
        known = self.base.execute("SELECT fingerprint, asked FROM search").fetchone()
        if known is None:
            with self.base:
                self.base.execute("INSERT INTO search VALUES (?, ?)", (mark, json.dumps(asdict(asked))))
        elif known[0] != mark:
            raise InputError(
                f"--resume: {self.file}: holds another search (the job, its files, the axes or the version differ:"
                f" {known[1]}); give another file"
            )

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.base.close()

    def add(self, found: Iterable[Candidate]) -> None:
        """Keep candidates; known ones stay as they are."""
        marks = ", ".join("?" * len(_COLUMNS))
        with self.base:
            self.base.executemany(
                f"INSERT OR IGNORE INTO candidate VALUES ({marks})",
                [tuple(getattr(one, name) for name in _COLUMNS) for one in found],
            )

    def done(self) -> set[int]:
        """Numbers of the candidates there are."""
        return {number for (number,) in self.base.execute("SELECT number FROM candidate")}

    def __iter__(self) -> Iterator[Candidate]:
        for row in self.base.execute(f"SELECT {', '.join(_COLUMNS)} FROM candidate ORDER BY number"):
            yield Candidate(**dict(zip(_COLUMNS, row, strict=True)))

    def best(self, rank: Rank, count: int) -> list[Candidate]:
        """The first `count` that can run; ties go to the lower number."""
        names, order = ", ".join(_COLUMNS), _ORDER[rank]
        rows = self.base.execute(
            f"SELECT {names} FROM candidate WHERE status = 'ok' ORDER BY {order}, number LIMIT ?", (count,)
        )
        return [Candidate(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    def obstacle(self) -> str:
        """What makes most of the invalid ones so."""
        query = "SELECT why FROM candidate WHERE status = 'invalid' GROUP BY why ORDER BY COUNT(*) DESC, why LIMIT 1"
        return next((why for (why,) in self.base.execute(query)), "")

    def counts(self) -> dict[str, int]:
        """How many are of each status."""
        found = dict(self.base.execute("SELECT status, COUNT(*) FROM candidate GROUP BY status"))
        return {status: found.get(status, 0) for status in ("ok", "too big", "invalid")}
