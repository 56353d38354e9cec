"""Tables of operations: read a CSV, price every row, compare with what was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from simulator.errors import InputError, nearest_name
from simulator.spec.hardware import Cluster
from simulator.studies.kernel.answer import Answer, answer
from simulator.studies.kernel.question import COLUMNS, DEFAULT_HARDWARE, BadColumn, number, question_from_text

SCHEMA = "foretrain.kernel-table/1"
MEASURED = "time_us"
ADDED = ("predicted_us", "error")
SHOWN_PROBLEMS = 20
ALIASES: Mapping[str, str] = {
    "dtype": "precision",
    "prec": "precision",
    "topk": "top_k",
    "head_dim": "d_qk",
    "gpu": "hardware",
    "us": MEASURED,
    "latency_us": MEASURED,
    "measured_us": MEASURED,
    "size": "bytes",
}
"""Other names of columns, used where the column itself is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row: its texts as read, its answer, and what was measured [µs], if anything."""

    number: int
    texts: dict[str, str]
    answer: Answer
    measured_us: float | None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        if self.measured_us is None:
            return None
        return (self.answer.time_us - self.measured_us) / self.measured_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its answers, in the order of its rows. `columns` are those read."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def mape(self) -> dict[str, dict[str, float]]:
        """Per operation: rows with a measurement, mean absolute relative error, and mean error."""
        errors: dict[str, list[float]] = {}
        for row in self.rows:
            if row.error is not None:
                errors.setdefault(row.answer.question.op.replace("_", "-"), []).append(row.error)
        return {
            op: {"rows": len(all_), "mape": sum(map(abs, all_)) / len(all_), "bias": sum(all_) / len(all_)}
            for op, all_ in errors.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": SCHEMA,
            "rows": [
                {
                    **{name: plain_value(text) for name, text in row.texts.items()},
                    "predicted_us": row.answer.time_us,
                    "error": row.error,
                    "bound_by": row.answer.cost.bound_by,
                    "calibrated": row.answer.cost.calibrated,
                }
                for row in self.rows
            ],
            "mape": self.mape(),
        }

    def as_csv(self) -> str:
        """The table with `predicted_us` and `error` as its last columns."""
        buffer = io.StringIO()
        kept = [name for name in self.columns if name not in ADDED]
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*kept, *ADDED])
        for row in self.rows:
            error = "" if row.error is None else f"{row.error:.6g}"
            writer.writerow([*(row.texts.get(name, "") for name in kept), f"{row.answer.time_us:.6g}", error])
        return buffer.getvalue()


def plain_value(text: str) -> Any:
    """A cell for JSON: a number where it is one, null where it is empty, else the text."""
    stripped = text.strip()
    for read in (int, float):
        try:
            value = read(stripped)
        except ValueError:
            continue
        return value if isfinite(value) and "_" not in stripped else text
    return text if stripped else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """Columns and rows of texts as they stand in the file, each row with its line."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_table(text: str, label: str) -> RawTable:
    """Columns and rows of a CSV (comma, semicolon or tab); blank lines and lines that start with # are skipped."""
    kept = [(n, line) for n, line in enumerate(text.lstrip("\ufeff").splitlines(), 1) if _is_data(line)]
    if not kept:
        raise InputError(f"{label}: the table is empty; its first line must name the columns, op among them")
    header = kept[0][1]
    delimiter = max(",;\t", key=header.count)
    columns = tuple(cell.strip() for cell in next(csv.reader([header], delimiter=delimiter)))
    if len(set(columns)) < len(columns):
        double = next(name for name in columns if columns.count(name) > 1)
        raise InputError(f"{label}: line {kept[0][0]}: the column {double!r} is named twice")
    rows = []
    for line, cells in _records(kept[1:], delimiter):
        if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            raise InputError(f"{label}: line {line}: {len(cells)} cells for {len(columns)} columns")
        rows.append((line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False))))
    return RawTable(columns=columns, rows=tuple(rows))


def _is_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _records(lines: Sequence[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Cells of each record; a quoted cell may hold line breaks."""
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter)
    before = 0
    for cells in reader:
        yield lines[before][0], [cell.rstrip("\n") for cell in cells]
        before = reader.line_num


def _spelled(columns: Sequence[str]) -> dict[str, str]:
    """Column as read -> the name it means; `Top-K` is `top_k`."""
    plain = {name: name.strip().lower().replace("-", "_").replace(" ", "_") for name in columns}
    taken = set(plain.values())
    known = {*COLUMNS, MEASURED}
    out = {}
    for name, word in plain.items():
        meant = ALIASES.get(word, word)
        if word in known or (meant in known and meant not in taken):
            out[name] = word if word in known else meant
            taken.add(out[name])
    return out


def misspelt(columns: Sequence[str]) -> list[str]:
    """A line for each column that is not used but is nearly one that would be."""
    spelled = _spelled(columns)
    free = [name for name in (*COLUMNS, MEASURED, *ALIASES) if name not in spelled.values()]
    out = []
    for name in columns:
        if name not in spelled and name not in ADDED:
            near = nearest_name(name.replace("-", "_").replace(" ", "_"), free, cutoff=0.8)
            out += [f"the column {name!r} is not used; did you mean {near}?"] if near else []
    return out


def answer_table(
    raw: RawTable,
    label: str,
    clusters: Callable[[str], Cluster],
    *,
    hardware: str = DEFAULT_HARDWARE,
    progress: Callable[[float], None] | None = None,
) -> Table:
    """Every row answered, in order. Raises InputError with one line a bad row, naming row and column."""
    spelled = _spelled(raw.columns)
    if "op" not in spelled.values():
        raise InputError(f"{label}: no column 'op'; the columns are {', '.join(raw.columns)}")
    rows: list[TableRow] = []
    problems: list[str] = []
    for position, (line, texts) in enumerate(raw.rows, 1):
        try:
            rows.append(_answered(position, texts, spelled, clusters, hardware))
        except InputError as error:
            problems.append(f"{label}: row {position} (line {line}): {error}")
        if progress is not None:
            progress(position / len(raw.rows))
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"{label}: and {more} more bad rows"] if more > 0 else [])
        raise InputError("\n".join(shown))
    return Table(columns=raw.columns, rows=tuple(rows))


def _answered(
    position: int,
    texts: dict[str, str],
    spelled: Mapping[str, str],
    clusters: Callable[[str], Cluster],
    hardware: str,
) -> TableRow:
    meant = {name: texts[column] for column, name in spelled.items()}
    question = question_from_text(meant, hardware)
    said = meant.get(MEASURED, "").strip()
    measured = number(MEASURED, said) if said else None
    if measured is not None and measured <= 0:
        raise BadColumn(MEASURED, said, "must be above 0")
    try:
        cluster = clusters(question.hardware)
    except InputError as error:
        raise InputError(f"hardware: {error}") from None
    return TableRow(number=position, texts=texts, answer=answer(question, cluster), measured_us=measured)
