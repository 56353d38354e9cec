"""Published figures (`workloads/facts/*.toml`), and which of them a calibration has used."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

Row = dict[str, str]

FILES = ("published.toml", "published_more.toml", "trace_phases.toml")
RUNS = ("bridge_runs.csv", "dgxc_runs.csv")
"""Tables of published training runs, a row each."""
END_TO_END = ("E.", "B.train.", "A.cost.", "A.v2.", "D.", "Q.", "S.", "T.")
"""Beginnings of the names of end-to-end figures: compared with, never fitted to."""
MEMORY = {"peak_memory_GB": "GB", "alloc_GiB": "GiB"}
"""Memory peaks that figures of steps also state, with their units."""
TABLES = (
    "published_kernels",
    "fabric_ep",
    "fabric_low_latency",
    "fabric_collective",
    "fabric_topology",
    "fabric_latency",
)
"""Tables of the calibration that name figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure.

    Parameters
    ----------
    id : its name.
    section : where in `published.toml` it is.
    system : what was measured.
    quantity : what it states.
    value : the figure.
    unit : its unit.
    source : who published it, and where.
    config : configuration that it was measured in.
    config_complete : whether the source states the whole configuration (full, partial, none).
    recalled : whether it was written down from memory.
    note : remarks.
    also : other figures of the same measurement.
    """

    id: str
    section: str
    system: str
    quantity: str
    value: float | int | str
    unit: str
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    config_complete: str = "full"
    recalled: bool = False
    note: str = ""
    also: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> float | None:
        """The value, if it is a number."""
        return float(self.value) if isinstance(self.value, (int, float)) else None

    @property
    def group(self) -> str:
        """The family of the figure: the first two parts of its name."""
        return ".".join(self.id.split(".")[:2])

    @property
    def end_to_end(self) -> bool:
        """Whether it describes whole steps or runs."""
        return self.id.startswith(END_TO_END)


def load_figures() -> list[Figure]:
    """All figures in the order of the files and tables, then the memory peaks that some of them also state."""
    out: list[Figure] = []
    for name in FILES:
        text = resources.files("workloads.facts").joinpath(name).read_text(encoding="utf-8")
        out += [Figure(**table) for table in tomllib.loads(text)["figure"]]
    for name in RUNS:
        out += table_figures(name, "E")
    return out + memory_figures(out)


def fact_rows(name: str) -> list[Row]:
    """The rows of a table of `workloads/facts`; lines that begin with # are remarks."""
    text = resources.files("workloads.facts").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def table_figures(name: str, section: str) -> list[Figure]:
    """The figures of a table of `workloads/facts`; columns that are not of the figure itself are its configuration."""
    about = ("id", "quantity", "value", "unit", "source", "date", "engine", "config_complete")
    return [
        Figure(
            id=row["id"],
            section=section,
            system=row["engine"],
            quantity=row["quantity"],
            value=float(row["value"]),
            unit=row["unit"],
            source=f"{row['source']}, {row['date']}",
            config={key: value for key, value in row.items() if key not in about},
            config_complete=row["config_complete"],
        )
        for row in fact_rows(name)
    ]


def memory_figures(figures: Sequence[Figure]) -> list[Figure]:
    """Peaks of memory as figures of their own: runs that differ only in their number of microbatches, of which memory
    does not depend, have one."""
    found: dict[str, Figure] = {}
    for figure in figures:
        for key, unit in MEMORY.items():
            if key in figure.also:
                run = {name: value for name, value in figure.config.items() if name != "microbatches"}
                section, family, rest = figure.id.split(".", 2)
                name = f"{section}.{family}_mem.{rest}"
                peak = replace(figure, id=name, quantity="peak_memory", value=figure.also[key], unit=unit, also={})
                found.setdefault(f"{figure.group}{run}", peak)
    return list(found.values())


@cache
def calibration_rows() -> Mapping[str, Row]:
    """Figure -> its row in a table of the calibration: the operation in full, and `use` (fit or held out)."""
    folder = resources.files("hardware_profiles").joinpath("calibration", "tables")
    found: dict[str, Row] = {}
    for name in TABLES:
        text = folder.joinpath(f"{name}.csv").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        for row in csv.DictReader(lines):
            found[row["id"]] = {**row, "table": name}
    return found


def row_of(figure: Figure) -> Row | None:
    """The figure's row in a calibration table; of the topologies, the row that all figures of one share."""
    rows = calibration_rows()
    return rows.get(figure.id) or rows.get(figure.id.rpartition(".")[0])


def used_by_calibration(figure: Figure) -> bool:
    """Whether a calibration script fits a parameter to the figure (held-out rows only judge the fit)."""
    row = row_of(figure)
    if row is None or figure.end_to_end:
        return False
    if row["table"] == "published_kernels":
        judged = row["op"] == "gemm" or (row["hardware"], row["impl"]) == ("h100", "fa2")  # there are larger tables
        return ".r0226." not in figure.id and not judged  # superseded figures are left out of the fit too
    if row["table"] == "fabric_topology":
        return "cost" in figure.quantity  # unit prices are solved from the costs; sizes are formulas
    return row.get("use", "fit") == "fit"
