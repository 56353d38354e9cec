"""What `foretrain calibrate measure` runs under sustained load, and the rows of its table that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

from hardware_profiles.calibration.fit_power import PRECISIONS, Mix
from hardware_profiles.calibration.sample import rows
from simulator.errors import InputError

OP = "power"
FORMS = ("gemm", "other", "mix", "idle")
PAUSE = "pause"
LATE = 1.1
"""A kernel alone that takes so many times as long as behind a GEMM waits for the host."""
MEMORY = ("norm", "swiglu", "copy")
"""Kernels whose mean power is that of memory-bound ones."""


@dataclass(frozen=True, slots=True)
class Case:
    """What runs in turn: a GEMM (`precision`) and another kernel that takes about `share` of the time at full clock."""

    precision: str = ""
    other: str = ""
    share: float = 0.0

    @property
    def form(self) -> str:
        """Its name in the table."""
        if self.precision:
            return "mix" if self.other else "gemm"
        return "other" if self.other else "idle"


def plan(*, quick: bool) -> list[Case]:
    """The cases: few, but GEMMs both slowed and at full clock among them, at any GPU's limit."""
    copies, pauses = ((0.35, 0.8), (0.2, 0.45, 0.75)) if quick else ((0.25, 0.6, 0.85), (0.15, 0.35, 0.55, 0.75))
    norms: dict[str, tuple[float, ...]] = {"bf16": (0.5,), "fp8_tensor": (0.3, 0.6)}
    alone = [*MEMORY, "attention_both"]
    if not quick:
        norms = {"bf16": (0.25, 0.5, 0.75), "fp8_tensor": (0.2, 0.4, 0.6, 0.8), "fp8_tensor_split": (0.3, 0.6)}
        alone += ["attention", "adamw_layers", "mul_rows", "index_add"]
    out = [*(Case(precision) for precision in norms), *(Case(other=name) for name in alone)]
    out += [Case("bf16", "copy", share) for share in copies] + [Case("bf16", PAUSE, share) for share in pauses]
    out += [Case(precision, "norm", share) for precision, shares in norms.items() for share in shares]
    return [*out, Case()]


class Row(NamedTuple):
    """A case as measured: `us` after rest, the others under sustained load, of one call [us], power [W]."""

    form: str
    precision: str
    other: str
    calls: int
    us: float
    gemm_us: float
    other_us: float
    power: float
    limit: float


def read(table: Path) -> list[Row]:
    """The rows under sustained load; none in a table without them.

    Raises InputError: a row lacks a number or names what is not known.
    """
    return [_row(row, f"{table}: row {at}") for at, row in enumerate(rows(table), 1) if row.get("op") == OP]


def _row(row: Mapping[str, str], where: str) -> Row:
    form, precision, other = row.get("form", ""), row.get("precision", ""), row.get("other", "")
    if form not in FORMS:
        raise InputError(f"{where}: form: {form!r}: must be one of {', '.join(FORMS)} under sustained load")
    gemm, second = form in ("gemm", "mix"), form in ("other", "mix")
    if gemm and precision not in PRECISIONS:
        raise InputError(f"{where}: precision: {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if second and not other:
        raise InputError(f"{where}: other: nothing: must name the kernel that runs")

    def number(column: str, wanted: bool = True) -> float:
        text = row.get(column) or ""
        if not wanted:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if value <= 0.0 or not isfinite(value):
            raise InputError(f"{where}: {column}: {text!r}: must be a number above 0")
        return value

    return Row(
        form=form, precision=precision, other=other, calls=int(number("calls", second)),
        us=number("us", gemm or other.startswith("attention")), gemm_us=number("gemm_us", gemm),
        other_us=number("other_us", second), power=number("power_w"), limit=number("limit_w"),
    )  # fmt: skip


def held_back(table: Sequence[Row]) -> tuple[str, ...]:
    """Kernels alone that the host held back: a call took longer than behind a GEMM, where the GPU had more queued."""
    least: dict[str, float] = {}
    for row in table:
        if row.form == "mix":
            least[row.other] = min(row.other_us, least.get(row.other, inf))
    return tuple(r.other for r in table if r.form == "other" and r.other_us > LATE * least.get(r.other, inf))


def mixes_of(table: Sequence[Row], idle: float) -> dict[Row, Mix]:
    """GEMMs alone and in mixes, by precision; `idle`: power of pauses [W].

    A GEMM's time at full clock is the least of all that were measured, as in `fit_power.at_full_clock`.
    """
    watts = {row.other: row.power for row in table if row.form == "other"} | {PAUSE: idle, "": 0.0}
    fastest: dict[str, float] = {}
    for row in table:
        if row.precision:
            fastest[row.precision] = min(row.us, row.gemm_us, fastest.get(row.precision, row.us))
    return {
        row: Mix(
            row.precision, fastest[row.precision] * 1e-6, row.other_us * row.calls * 1e-6, watts[row.other],
            row.gemm_us * 1e-6, row.other == PAUSE, row.power,
        )
        for row in sorted(table, key=lambda row: row.precision)
        if row.precision and row.other in watts
    }  # fmt: skip
